"""Predicts a video into a drawn video and a file with one JSON line per frame.

The lines are written to `NAME.jsonl.partial`, which is renamed when the clip is finished, so that
the existence of `NAME.jsonl` shows that it is. An interrupted command leaves a drawn video and the
lines of the frames so far; the same command predicts the clip again from its start.
"""

from __future__ import annotations

import glob
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from evaluation.drawing.canvas import PAIR_COLOURS
from evaluation.drawing.interactions import MIN_LONG_SIDE, draw_tracked
from pipeline.types import Detections
from pipeline.utils.errors import InputError
from pipeline.utils.files import atomic_write, encode_utf8
from pipeline.utils.logging import get_logger
from pipeline.utils.progress import Progress
from pipeline.utils.text import count_noun
from student.inference.batch_predictor import UnreadableImage
from student.inference.detector import BATCH_SIZE, Detector
from student.inference.postprocess import SelectionConfig
from student.inference.results import build_result
from student.inference.tracking import PairTracker, TrackedDetections
from student.inference.video import Frame, VideoReader, VideoWriter
from student.utils.preemption import StopSignalHandler

logger = get_logger(__name__)

# A track ends after this time without its box, and never before this number of frames.
LOST_SECONDS, LOST_FRAMES = 1.0, 5
# A batch also ends when its decoded frames take so much memory, which matters for large frames and
# for `every`: a batch contains all the frames between those that are detected.
MAX_BATCH_BYTES = 1 << 28


def predict_video(
    detector: Detector,
    path: Path,
    drawn: Path,
    lines: Path,
    selection: SelectionConfig,
    every: int,
    smooth: float,
    settings: dict[str, Any],
    batch_size: int = BATCH_SIZE,
    stop: StopSignalHandler | None = None,
) -> str:
    """Predicts a video; the memory that this takes does not depend on the video's length.

    Args:
        detector: the detector.
        path: the video.
        drawn: MP4 file for the drawn frames, with the times and the sound of the video. Frames
            between two that are detected are drawn with the detections of the first.
        lines: JSON lines file: `settings`, then a line per detected frame.
        selection: which detections are written and drawn.
        every: detect in every `every`-th frame.
        smooth: see `PairTracker`.
        settings: the first line of the file, with further entries about the clip.
        batch_size: maximum number of frames per batch.
        stop: handler of stop signals, so that an interrupted video is playable; None lets them end
            the writing at any time, without files.

    Returns:
        A sentence about the results.

    Raises:
        InputError: the file is no video; no file is written.
        KeyboardInterrupt, SystemExit: from `stop`, after `drawn` is completed.
    """
    # No result of another clip has this name.
    partial = lines.with_name(f"{lines.name}.partial")
    num_frames = num_interacting = 0
    interruption: BaseException | None = None
    defer = stop.defer if stop else nullcontext
    with VideoReader(path) as reader:
        size = drawn_size(reader.size)
        tracker = PairTracker(
            detector.vocabulary,
            selection,
            smooth,
            max(LOST_FRAMES, round(LOST_SECONDS * reader.rate / every)),
        )
        header = settings | {
            "video": str(path),
            "width": reader.size[0],
            "height": reader.size[1],
            "drawn": drawn.name,
        }
        # Of killed commands.
        for stale in drawn.parent.glob(f".{glob.escape(drawn.name)}.*.tmp"):
            stale.unlink(missing_ok=True)
        try:
            with (
                defer(),
                atomic_write(drawn) as temporary,
                open(partial, "wb") as file,
                Progress(reader.num_frames, path.name, "frames") as progress,
            ):
                file.write(_to_line(header))
                writer = VideoWriter(temporary, reader, size)
                try:
                    for frame, tracked, is_detected in _track_frames(
                        detector, tracker, reader, every, batch_size, stop
                    ):
                        with _deliver(stop):
                            image = _draw(frame.image, tracked, detector, size)
                        writer.write(image, frame)
                        if is_detected:
                            file.write(_to_line(_build_line(frame, tracked, detector)))
                            num_interacting += len(tracked.detections.hois) > 0
                        num_frames += 1
                        progress.update()
                except (KeyboardInterrupt, SystemExit) as error:
                    interruption = error
                finally:
                    writer.close(is_complete=interruption is None)
                if interruption and not num_frames:
                    raise interruption
        # An unfinished file of lines is of use only beside the unfinished video.
        except BaseException:
            with suppress(OSError):
                partial.unlink()
            raise
    if interruption:
        logger.info(f"{path}: interrupted; {drawn} contains {count_noun(num_frames, 'frames')}")
        raise interruption
    os.replace(partial, lines)
    return (
        f"{path}: {count_noun(num_frames, 'frames')}, {num_interacting} with a score"
        f" of at least {selection.threshold:g}; results in {drawn} and {lines}"
    )


def drawn_size(size: tuple[int, int]) -> tuple[int, int]:
    """(width, height) of the drawing of frames of this size: enlarged like images, and even, as
    H.264 requires."""
    scale = max(1.0, MIN_LONG_SIDE / max(size))
    width, height = (max(2, 2 * round(side * scale / 2)) for side in size)
    return width, height


def _track_frames(
    detector: Detector,
    tracker: PairTracker,
    reader: VideoReader,
    every: int,
    batch_size: int,
    stop: StopSignalHandler | None,
) -> Iterator[tuple[Frame, TrackedDetections, bool]]:
    """(frame, detections of the last detected frame, whether that is this frame)."""
    batches = _batches(reader, every, batch_size)
    tracked: TrackedDetections | None = None
    while True:
        with _deliver(stop):
            batch = next(batches, None)
            if batch is None:
                return
            found = iter(_detect(detector, reader.path, batch, every, batch_size))
        for frame in batch:
            is_detected = frame.index % every == 0
            if is_detected:
                tracked = tracker.update(next(found))
            assert tracked is not None
            yield frame, tracked, is_detected


def _batches(reader: VideoReader, every: int, batch_size: int) -> Iterator[list[Frame]]:
    batch: list[Frame] = []
    max_frames = max(1, MAX_BATCH_BYTES // (3 * reader.size[0] * reader.size[1]))
    for frame in reader.frames():
        batch.append(frame)
        num_detected = sum(one.index % every == 0 for one in batch)
        if num_detected == batch_size or len(batch) == max_frames:
            yield batch
            batch = []
    if batch:
        yield batch


def _detect(
    detector: Detector, path: Path, batch: Iterable[Frame], every: int, batch_size: int
) -> list[Detections]:
    """All detections in those frames of the batch that are detected."""
    images = [frame.image for frame in batch if frame.index % every == 0]
    found = {}
    for prediction in detector.predictor.stream(images, batch_size):
        if isinstance(prediction, UnreadableImage):
            raise InputError(f"{path}: {prediction.reason.partition(': ')[2]}")
        found[prediction.index] = prediction.detections
    return [found[index] for index in range(len(images))]


def _draw(
    image: Image.Image, tracked: TrackedDetections, detector: Detector, size: tuple[int, int]
) -> Image.Image:
    colours = {pair: PAIR_COLOURS[slot % len(PAIR_COLOURS)] for pair, slot in tracked.slots.items()}
    return draw_tracked(
        image,
        tracked.detections,
        detector.vocabulary,
        detector.unseen,
        tracked.ids,
        colours,
        size,
    )


def _build_line(frame: Frame, tracked: TrackedDetections, detector: Detector) -> dict[str, Any]:
    """The JSON line of a frame: that of an image, with time, ids and unsmoothed scores."""
    result = build_result(
        tracked.detections, frame.image.size, detector.vocabulary, detector.unseen, frame.image
    ).to_dict()
    # The detections contain no box without interaction, so that the result has the same ones.
    ids = tracked.ids.tolist()
    raw_scores = np.round(tracked.raw_scores.astype(np.float64), 6).tolist()
    return {
        "frame": frame.index,
        "time": round(frame.time, 6),
        "boxes": [box | {"id": number} for box, number in zip(result["boxes"], ids, strict=True)],
        "interactions": [
            one
            | {
                "raw_score": raw_score,
                "person_id": ids[one["person"]],
                "object_id": None if one["object"] is None else ids[one["object"]],
            }
            for one, raw_score in zip(result["interactions"], raw_scores, strict=True)
        ],
    }


def _deliver(stop: StopSignalHandler | None) -> AbstractContextManager[None]:
    return stop.deliver() if stop else nullcontext()


def _to_line(value: dict[str, Any]) -> bytes:
    return encode_utf8(json.dumps(value, ensure_ascii=False) + "\n")
