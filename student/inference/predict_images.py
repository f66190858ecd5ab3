"""Predicts image files and folders into drawn images and JSON, resumable after an interruption.

In the output folder every image has a drawn image and a JSON file. The JSON file is written last,
so that its existence shows that the image is finished. Videos among the files are predicted after
the images, by `predict_video`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline.cluster.lock import lock_folder
from pipeline.utils.devices import default_num_workers
from pipeline.utils.errors import InputError
from pipeline.utils.files import (
    atomic_write,
    differing_keys,
    is_up_to_date,
    read_json,
    refuse_existing,
    sha256_of_file,
    write_json,
)
from pipeline.utils.logging import get_logger
from pipeline.utils.progress import Progress
from pipeline.utils.text import count_noun
from student.inference.batch_predictor import UnreadableImage
from student.inference.detector import BATCH_SIZE, Detector
from student.inference.input_files import find_images, missing_video_packages
from student.inference.postprocess import SelectionConfig
from student.inference.results import HOIResult
from student.utils.preemption import StopSignalHandler

logger = get_logger(__name__)

SETTINGS = "settings.json"
JPEG_QUALITY = 92
FORMAT, VIDEO_FORMAT = "eoid-predict-2", "eoid-predict-video-1"


@dataclass(frozen=True)
class ImageOutputs:
    """An image or video file and the files of its results."""

    path: Path
    drawn: Path
    result: Path


def predict_images(
    detector: Detector,
    patterns: Sequence[str],
    out: Path | None,
    json_file: Path | None,
    selection: SelectionConfig,
    batch_size: int = BATCH_SIZE,
    workers: int | None = None,
    overwrite: bool = False,
    every: int = 1,
    smooth: float = 0.0,
) -> int:
    """Predicts images and videos, and prints a summary.

    With `out`, an interrupted prediction with the same settings is resumed.

    Args:
        detector: the detector.
        patterns: files, folders and glob patterns, see `find_images`.
        out: folder for a drawn image and a JSON file per image, and for a drawn video and a file of
            JSON lines per video; None writes none, and allows no videos.
        json_file: file for the results of all images; None writes none.
        selection: which detections are written.
        batch_size: maximum number of images per batch.
        workers: number of threads that read images; None takes the spare cores.
        overwrite: replace existing results.
        every, smooth: of videos, see `predict_video`.

    Returns:
        The number of images and videos with results, including those of an interrupted command.

    Raises:
        InputError: see `find_images`; or results exist, or another command writes to `out`; or,
            after all others are predicted, some could not be read.
    """
    no_videos = "videos need --out" if out is None else missing_video_packages()
    inputs = find_images(patterns, out, no_videos)
    images, videos = inputs.images, inputs.videos
    is_only = len(videos) + len(images) == 1
    if json_file is not None:
        refuse_existing(json_file, overwrite)
        if not images:
            raise InputError("--json: expected at least one image, found only videos")
        # Otherwise this would be found out after the prediction.
        json_file.parent.mkdir(parents=True, exist_ok=True)
        if not os.access(json_file.parent, os.W_OK):
            raise InputError(f"{json_file}: expected a place that can be written to, found another")
    settings = prediction_settings(detector, selection)
    video_settings = settings | {"format": VIDEO_FORMAT, "every": every, "smooth": smooth}
    planned, clips, results = [], [], {}
    if out is not None:
        planned = plan_outputs(images, out)
        clips = plan_outputs(videos, out, ".mp4", ".jsonl")
    failed, num_broken = [], 0
    # Two commands could have other images of the same names.
    with nullcontext() if out is None else lock_folder(out):
        if out is not None:
            results = _open_out_folder(out, planned, clips, settings, video_settings, overwrite)
        if images:
            failed = _predict_images(
                detector,
                list(images),
                planned,
                out,
                results,
                selection,
                batch_size,
                workers,
                is_only,
            )
        if results:
            if json_file is not None:
                entries = [results[index] for index in sorted(results)]
                write_json(json_file, {**settings, "pictures": entries, "failed": failed})
            count = sum(len(result["interactions"]) for result in results.values())
            places = [str(place) for place in (out, json_file) if place is not None]
            print(
                f"{count_noun(len(results), 'images')}, {count_noun(count, 'interactions')} with a"
                f" score of at least {selection.threshold:g}; results in {' and '.join(places)}"
            )
            if not count and detector.limits:
                logger.info(f"{detector.file}: no interaction was found; {detector.limits}")
        if videos:
            num_broken = _predict_videos(
                detector,
                clips,
                selection,
                every,
                smooth,
                video_settings,
                batch_size,
                overwrite,
                is_only,
            )
    reasons = [f"{len(failed)} of {len(images)} images could not be read"] if failed else []
    if num_broken:
        reasons.append(f"{num_broken} of {len(videos)} videos could not be read")
    if inputs.num_unused:
        reasons.append(f"{inputs.num_unused} of the arguments give no image or video")
    if reasons:
        raise InputError("; ".join(reasons))
    return len(results) + len(videos)


def _predict_images(
    detector: Detector,
    paths: Sequence[Path],
    planned: Sequence[ImageOutputs],
    out: Path | None,
    results: dict[int, dict[str, Any]],
    selection: SelectionConfig,
    batch_size: int,
    workers: int | None,
    is_only: bool,
) -> list[dict[str, Any]]:
    """Predicts the images whose index is not in `results`, and adds them there; returns those that
    could not be read, with the reasons, which are raised for the only input."""
    remaining = [index for index in range(len(paths)) if index not in results]
    failed = []
    with Progress(len(paths), "predicting", "images", initial=len(results)) as progress:
        for position, prediction in detector.stream(
            [paths[index] for index in remaining],
            selection,
            batch_size,
            default_num_workers(workers),
        ):
            index = remaining[position]
            try:
                if isinstance(prediction, UnreadableImage):
                    raise InputError(prediction.reason)
                result = prediction.to_dict()
                if out is not None:
                    _write_outputs(prediction, result, planned[index], out)
                results[index] = result
            # Drawing reads the file again, which may be gone by then.
            except InputError as error:
                if is_only:
                    raise
                logger.warning(str(error))
                failed.append({"image": str(paths[index]), "reason": str(error)})
            progress.update()
    return failed


def _predict_videos(
    detector: Detector,
    clips: Sequence[ImageOutputs],
    selection: SelectionConfig,
    every: int,
    smooth: float,
    settings: dict[str, Any],
    batch_size: int,
    overwrite: bool,
    is_only: bool,
) -> int:
    """Predicts the videos that are not finished; returns the number of those that are unreadable,
    whose errors are printed, or raised for the only input."""
    # They import optional packages.
    from student.inference.predict_video import predict_video

    num_broken = 0
    with StopSignalHandler() as stop:
        for clip in clips:
            if not overwrite and _is_finished(clip):
                logger.info(f"{clip.path}: finished by an earlier command")
                continue
            try:
                line = predict_video(
                    detector,
                    clip.path,
                    clip.drawn,
                    clip.result,
                    selection,
                    every,
                    smooth,
                    settings,
                    batch_size,
                    stop,
                )
                print(line)
            except InputError as error:
                if is_only:
                    raise
                logger.warning(str(error))
                num_broken += 1
    return num_broken


def prediction_settings(detector: Detector, selection: SelectionConfig) -> dict[str, Any]:
    """Settings that the results depend on, as JSON: model, vocabulary, split and selection."""
    vocabulary, split = detector.vocabulary, detector.split
    return {
        "format": FORMAT,
        "model": str(detector.file),
        "model_sha256": sha256_of_file(detector.file),
        "vocabulary": vocabulary.name,
        "split": split.name if split else None,
        "unseen": [vocabulary.interaction_name(hoi) for hoi in sorted(detector.unseen)],
        "prompts": sha256_of_file(detector.prompts) if detector.prompts else None,
        **asdict(selection),
    }


def _open_out_folder(
    out: Path,
    planned: Sequence[ImageOutputs],
    clips: Sequence[ImageOutputs],
    settings: dict[str, Any],
    video_settings: dict[str, Any],
    overwrite: bool,
) -> dict[int, dict[str, Any]]:
    """Prepares the output folder; gives the results of an interrupted command, by index.

    Raises:
        InputError: the folder contains results of other settings, or files that would be replaced.
    """
    file = out / SETTINGS
    results = {}
    resumed = file.exists() and not overwrite
    if resumed:
        _refuse_other_settings(file, read_json(file), settings)
    for index, outputs in enumerate(planned):
        if resumed and (result := _read_result(outputs)) is not None:
            results[index] = result
            continue
        refuse_existing(outputs.result, overwrite)
        # An interrupted command may leave a drawn image without its JSON file.
        if not resumed:
            refuse_existing(outputs.drawn, overwrite)
    for clip in clips:
        if resumed and _is_finished(clip):
            _refuse_other_settings(clip.result, _read_first_line(clip.result), video_settings)
            continue
        refuse_existing(clip.result, overwrite)
        if not resumed:
            refuse_existing(clip.drawn, overwrite)
    write_json(file, settings)
    return results


def _refuse_other_settings(file: Path, found: Any, settings: dict[str, Any]) -> None:
    # The file of the model may have been moved.
    compared = {key: value for key, value in settings.items() if key != "model"}
    if different := differing_keys(found, compared):
        raise InputError(
            f"{file}: expected results with the same settings, found others"
            f" ({', '.join(different)}); choose a new folder or give --overwrite"
        )


def _is_finished(clip: ImageOutputs) -> bool:
    """Whether a video has results that are not of another or older video."""
    if not (clip.result.is_file() and clip.drawn.is_file() and clip.path.is_file()):
        return False
    header = _read_first_line(clip.result)
    is_same = isinstance(header, dict) and header.get("video") == str(clip.path)
    return is_same and is_up_to_date(clip.result, clip.path)


def _read_first_line(file: Path) -> Any:
    try:
        with open(file, "rb") as lines:
            return json.loads(lines.readline())
    except ValueError:
        return None


def _read_result(outputs: ImageOutputs) -> dict[str, Any] | None:
    """The finished result of an image; None where it is missing, or of another or older image."""
    if not (outputs.result.is_file() and outputs.drawn.is_file() and outputs.path.is_file()):
        return None
    result = read_json(outputs.result)
    is_same = isinstance(result, dict) and result.get("image") == str(outputs.path)
    return result if is_same and is_up_to_date(outputs.result, outputs.path) else None


def _write_outputs(
    prediction: HOIResult, result: dict[str, Any], outputs: ImageOutputs, out: Path
) -> None:
    """Writes the drawn image, then the JSON file, which marks the image as finished."""
    drawn = prediction.draw()
    with atomic_write(outputs.drawn) as temporary:
        drawn.save(temporary, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    result["drawn"] = outputs.drawn.relative_to(out).as_posix()
    write_json(outputs.result, result)


def plan_outputs(
    inputs: Mapping[Path, Path], out: Path, drawn: str = ".jpg", result: str = ".json"
) -> list[ImageOutputs]:
    """Chooses distinct result files below `out` for every input, from its preferred path there.

    They are "a.jpg" and "a.json" for "a.png", and "a-2.jpg" and "a-2.json" for a second image with
    this name; `drawn` and `result` are the endings.

    Raises:
        InputError: a result would replace one of the inputs.
    """
    # Some file systems do not distinguish "A" and "a".
    taken = {Path(SETTINGS).stem}
    sources = {os.path.realpath(path) for path in inputs}
    planned = []
    for path, relative in inputs.items():
        stem = relative.with_suffix("").as_posix()
        name, number = stem, 1
        while name.lower() in taken:
            number += 1
            name = f"{stem}-{number}"
        taken.add(name.lower())
        planned.append(ImageOutputs(path, out / f"{name}{drawn}", out / f"{name}{result}"))
        if os.path.realpath(planned[-1].drawn) in sources:
            raise InputError(
                f"--out: expected a folder without input files, found {planned[-1].drawn}"
            )
    return planned
