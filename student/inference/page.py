"""The page of `eoid-predict --serve`: drop a picture or a clip, see people, objects and actions.

The detector runs once per picture. Its 100 best interactions are kept, so that the sliders select
and draw again without it. Clips are drawn once, with the values of the sliders.
"""

from __future__ import annotations

import json
import math
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from pipeline.images import read_image, read_image_size
from pipeline.utils.errors import InputError
from pipeline.utils.text import count_noun
from pipeline.vocabulary import Vocabulary
from student.inference.action_encoder import MAX_ACTIONS_TEXT
from student.inference.batch_predictor import Prediction, UnreadableImage
from student.inference.detector import Detector
from student.inference.postprocess import NUM_DETECTIONS, SelectionConfig
from student.inference.results import HOIResult, build_result
from student.utils.preemption import StopRequest, StopSignalHandler
from student.weights.checkpoint_file import BEST, CHECKPOINT

MAX_UPLOAD_MB = 200
# Every visitor's picture is decoded in memory: less is allowed than for files of the user.
MAX_MEGAPIXELS = 64
# Long side of drawings on the page, in pixels; larger ones take seconds to draw and encode.
MAX_DRAWN = 1280
# Of clips: length, and number of frames that are detected, at equal distances.
MAX_CLIP_SECONDS, MAX_CLIP_FRAMES = 30, 100
# Frames per second, for all of which there is time to decode and draw.
MAX_CLIP_RATE = 120
# Age in seconds at which files and kept pictures of a page that is still open are removed.
MAX_AGE = 3600
# Of all files together.
MAX_STORED_MB = 2000
# Of requests that wait: a class of students can drop pictures at once.
MAX_QUEUE = 50
# Kept pictures have some megabytes each.
MAX_KEPT_PICTURES = 100
WELCOME = "Drop a picture or a clip to see people, objects and the actions that connect them."


@dataclass(frozen=True)
class PageConfig:
    """Settings of the page.

    Attributes:
        selection: initial values of the sliders, and the pairwise NMS.
        every: detect in every `every`-th frame of a clip, or in fewer if it is long.
        smooth: see `student.inference.tracking.PairTracker`.
    """

    selection: SelectionConfig
    every: int
    smooth: float


@dataclass(frozen=True, eq=False)
class Picture:
    """An uploaded picture and all its detections, kept for its page.

    Attributes:
        name: name of the uploaded file.
        prediction: the detector's, with boxes in pixels of the upright picture.
        image: the picture, upright, at most `MAX_DRAWN` pixels long.
        vocabulary, unseen: of the detector.
    """

    name: str
    prediction: Prediction
    image: Image.Image
    vocabulary: Vocabulary
    unseen: frozenset[int]

    def select(self, selection: SelectionConfig) -> HOIResult:
        """The result of a `Detector` with these settings."""
        kept = replace(
            selection.select(self.prediction.detections, self.vocabulary), image_id=self.name
        )
        size = self.prediction.size
        return build_result(kept, size, self.vocabulary, self.unseen, self.image)

    def draw(self, result: HOIResult) -> Image.Image:
        """Draws a result of `select` at the size of `image`."""
        scale = max(self.image.size) / max(result.size)
        return replace(result, boxes=result.boxes * np.float32(scale)).draw()


def read_picture(detector: Detector, path: Path) -> Picture:
    """Detects the interactions in an uploaded file.

    Raises:
        InputError: it is no image, or too large.
    """
    width, height = read_image_size(path)
    if width * height > MAX_MEGAPIXELS * 1_000_000:
        raise InputError(
            f"{path}: expected a picture of at most {MAX_MEGAPIXELS} megapixels, found"
            f" {width} x {height} pixels"
        )
    image = read_image(path)
    (prediction,) = detector.predictor.stream([image])
    if isinstance(prediction, UnreadableImage):
        raise InputError(prediction.reason)
    image.thumbnail((MAX_DRAWN, MAX_DRAWN), Image.Resampling.LANCZOS)
    return Picture(path.name, prediction, image, detector.vocabulary, detector.unseen)


def predict_clip(
    detector: Detector,
    path: Path,
    out: Path,
    config: PageConfig,
    stop: StopSignalHandler | None = None,
) -> tuple[Path, list[dict[str, Any]]]:
    """Detects and tracks the interactions in an uploaded video.

    Args:
        detector: the detector.
        path: the video.
        out: folder for the drawn video.
        config: which interactions are drawn, and the settings of clips.
        stop: ends the prediction by `SystemExit` or `KeyboardInterrupt` when its `request` is set.

    Returns:
        The drawn video, and the lines of `predict_video`.

    Raises:
        InputError: it is no video, too long, or the extra `video` is not installed.
    """
    try:
        from student.inference.predict_video import predict_video
        from student.inference.video import VideoReader
    except ImportError:
        raise InputError(
            f"{path}: expected a picture, found another kind of file; clips need the extra video"
        ) from None
    try:
        with VideoReader(path) as reader:
            num_frames, seconds = reader.measure()
    except InputError:
        # The reason may be that of an image format, which FFmpeg also takes for videos.
        raise InputError(
            f"{path}: expected a picture or a video, found another kind of file, or a damaged one"
        ) from None
    if seconds > MAX_CLIP_SECONDS or num_frames > MAX_CLIP_SECONDS * MAX_CLIP_RATE:
        raise InputError(
            f"{path}: expected a clip of at most {MAX_CLIP_SECONDS} seconds and {MAX_CLIP_RATE}"
            f" frames per second, found {seconds:.0f} seconds with {num_frames} frames"
        )
    out.mkdir(exist_ok=True)
    folder = Path(tempfile.mkdtemp(dir=out))
    drawn, lines = folder / f"{path.stem}.mp4", folder / "lines.jsonl"
    every = max(config.every, math.ceil(num_frames / MAX_CLIP_FRAMES))
    settings = {"every": every, "smooth": config.smooth}
    try:
        predict_video(
            detector,
            path,
            drawn,
            lines,
            config.selection,
            every,
            config.smooth,
            settings,
            stop=stop,
        )
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    found = [json.loads(line) for line in lines.read_text(encoding="utf-8").splitlines()]
    lines.unlink()
    found[0]["video"] = path.name
    return drawn, found


def build_page(
    detector: Detector,
    config: PageConfig,
    open_with: Callable[[str], Detector] | None,
    uploads: Path,
    stops: dict[str, StopSignalHandler],
) -> Any:
    """The page as gradio `Blocks`.

    Args:
        detector: the detector.
        config: the settings.
        open_with: opens the detector with the further actions of a text; None for a page without a
            box for them.
        uploads: the folder in which gradio puts uploaded files, for drawn clips too.
        stops: receives a handler for each clip that is being predicted, by its visitor.
    """
    import gradio as gr

    # gradio fetches the file of a request that names an address of another server.
    gr.processing_utils.async_ssrf_protected_download = _refuse_address
    selection = config.selection
    # Adding actions replaces the detector, for all pages.
    current = [detector]

    def show(kept: Picture | None, threshold: float, top: float) -> dict[Any, Any]:
        if kept is None:
            return {status: gr.skip()}
        result = kept.select(replace(selection, threshold=threshold, top=int(top)))
        rows = [
            [f"{score:.2f}", f"★ {action}" if unseen else action]
            for score, action, unseen in zip(
                result.scores.tolist(), result.actions, result.unseen.tolist(), strict=True
            )
        ]
        text = _summary(len(result), int(result.unseen.sum()), threshold)
        return {
            status: gr.Markdown(text, elem_classes=[]),
            drawn: gr.Image(kept.draw(result), visible=True),
            table: rows,
            values_json: result.to_dict(),
        }

    def show_clip(path: Path, threshold: float, top: float, visitor: str) -> dict[Any, Any]:
        chosen = replace(config, selection=replace(selection, threshold=threshold, top=int(top)))
        stop = stops[visitor] = StopSignalHandler()
        try:
            video, lines = predict_clip(current[0], path, uploads, chosen, stop)
        except SystemExit:
            # In this thread it would end the server.
            raise InputError("the prediction was stopped") from None
        finally:
            del stops[visitor]
        rows = _clip_rows(lines)
        unseen = sum(action.startswith("★") for _, action in rows)
        return {
            status: gr.Markdown(_summary(len(rows), unseen, threshold), elem_classes=[]),
            clip: gr.Video(str(video), visible=True),
            again: gr.Button(visible=True),
            table: rows,
            values_json: lines,
        }

    def leave(visit: Any) -> None:
        if stop := stops.get(visit.session_hash):
            stop.request = StopRequest.REQUEUE

    def predict(path: str | None, threshold: float, top: float, visit: Any) -> dict[Any, Any]:
        values = {
            source: path,
            # Another file can be dropped at once.
            upload: None,
            picture: None,
            status: gr.Markdown(WELCOME, elem_classes=[]),
            results: gr.Column(visible=False),
            drawn: gr.Image(None, visible=False),
            clip: gr.Video(None, visible=False),
            again: gr.Button(visible=False),
            table: [],
            values_json: None,
        }
        if path is None:
            return values
        file = Path(path)
        try:
            # gradio has checked this already, but for addresses of "streams".
            if not file.resolve().is_relative_to(uploads.resolve()):
                raise InputError("expected an uploaded file, found another")
            if _is_image(file):
                kept = read_picture(current[0], file)
                values |= {picture: kept, **show(kept, threshold, top)}
            else:
                values |= show_clip(file, threshold, top, visit.session_hash)
            values[results] = gr.Column(visible=True)
        except InputError as error:
            # The folder of uploads means nothing to the reader of the page.
            text = str(error).replace(path, file.name)
            values[status] = gr.Markdown(text, elem_classes=["error"])
        return values

    def set_actions(actions: str) -> Any:
        assert open_with is not None
        try:
            current[0] = open_with(actions)
        except InputError as error:
            return gr.Markdown(str(error), elem_classes=["error"])
        names = _added_actions(detector, current[0])
        return gr.Markdown(f"Added: {', '.join(names)}." if names else "", elem_classes=[])

    # gradio passes the request by this annotation.
    predict.__annotations__["visit"] = leave.__annotations__["visit"] = gr.Request
    with gr.Blocks(title="EoID", analytics_enabled=False, delete_cache=(60, MAX_AGE)) as page:
        gr.Markdown(_introduction(detector))
        source = gr.State(None)
        picture = gr.State(None, time_to_live=MAX_AGE)
        with gr.Row():
            with gr.Column(scale=1, min_width=320):
                upload = gr.File(label="Picture or clip", height=150)
                threshold = gr.Slider(
                    0, 1, selection.threshold, step=0.01, label="Minimum score", buttons=[]
                )
                top = gr.Slider(
                    1,
                    NUM_DETECTIONS,
                    min(selection.top, NUM_DETECTIONS),
                    step=1,
                    label="Maximum number of interactions",
                    buttons=[],
                )
                again = gr.Button("Detect in the clip again", visible=False)
                if open_with is not None:
                    actions = gr.Textbox(
                        lines=2,
                        max_lines=6,
                        label="Further actions, one per line",
                        placeholder="jumping over\npulling: chair, umbrella",
                        max_length=MAX_ACTIONS_TEXT,
                    )
                    button = gr.Button("Use these actions")
                    added = gr.Markdown()
            with gr.Column(scale=2, min_width=320):
                status = gr.Markdown(WELCOME)
                with gr.Column(visible=False) as results:
                    drawn = gr.Image(
                        show_label=False,
                        interactive=False,
                        format="png",
                        buttons=["download", "fullscreen"],
                        elem_classes=["drawn"],
                    )
                    clip = gr.Video(
                        show_label=False,
                        interactive=False,
                        visible=False,
                        autoplay=True,
                        loop=True,
                        buttons=["download"],
                        elem_classes=["clip"],
                    )
                    table = gr.Dataframe(
                        headers=["Score", "Action"],
                        datatype="str",
                        interactive=False,
                        buttons=[],
                        wrap=True,
                        # Without widths, columns become wider than a phone.
                        column_widths=["20%", "80%"],
                    )
                    with gr.Accordion("JSON", open=False):
                        values_json = gr.JSON(show_label=False, buttons=["copy"], max_height=400)
        model = {"concurrency_id": "model", "concurrency_limit": 1}
        # On outputs, the progress would cover their texts.
        shown = {"show_progress_on": upload}
        inputs = [source, threshold, top]
        outputs = [picture, status, results, drawn, clip, again, table, values_json, source, upload]
        upload.upload(
            predict, [upload, threshold, top], outputs, api_name="predict", **model, **shown
        )
        again.click(predict, inputs, outputs, api_name=False, **model, **shown)
        for name, slider in (("threshold", threshold), ("top", top)):
            slider.input(
                show,
                [picture, threshold, top],
                [status, drawn, table, values_json],
                api_name=name,
                trigger_mode="always_last",
                show_progress="hidden",
            )
        if open_with is not None:
            added_event = button.click(
                set_actions, actions, added, api_name="actions", show_progress_on=actions, **model
            )
            added_event.then(predict, inputs, outputs, api_name=False, **model, **shown)
        page.unload(leave)
    # gradio checks the paths in requests only if this is set, as it is by its own server.
    page.has_launched = True
    page.state_session_capacity = MAX_KEPT_PICTURES
    return page.queue(max_size=MAX_QUEUE)


def make_room(folder: Path, max_mb: int = MAX_STORED_MB) -> None:
    """Deletes files that are older than `MAX_AGE`, and the oldest ones of more than `max_mb`.

    gradio deletes old files too, but not those of uploads that were broken off.
    """
    found = []
    for path in folder.glob("**/*"):
        # gradio may delete it at the same time.
        with suppress(OSError):
            status = path.lstat()
            if stat.S_ISREG(status.st_mode):
                found.append((status.st_ctime, status.st_size, path))
    total = sum(size for _, size, _ in found)
    for changed, size, path in sorted(found):
        if total <= max_mb << 20 and changed > time.time() - MAX_AGE:
            break
        path.unlink(missing_ok=True)
        total -= size


def _is_image(path: Path) -> bool:
    try:
        with Image.open(path):
            return True
    except UnidentifiedImageError:
        return False
    # Damaged or too large: reading it says so.
    except Exception:
        return True


def _clip_rows(lines: Sequence[dict[str, Any]]) -> list[list[str]]:
    """A row for every action of a tracked pair: its best score, and the action with the ids and
    the time in seconds; the best first."""
    found: dict[tuple[str, bool, str], list[tuple[float, float]]] = {}
    for line in lines[1:]:
        names = [f"{box['label']} {box['id']}".replace("_", " ") for box in line["boxes"]]
        for one in line["interactions"]:
            rows_of_boxes = (row for row in (one["person"], one["object"]) if row is not None)
            key = (one["action"], one["unseen"], ", ".join(names[row] for row in rows_of_boxes))
            found.setdefault(key, []).append((one["score"], line["time"]))
    rows = []
    for (action, unseen, ids), entries in found.items():
        seconds = [time for _, time in entries]
        first, last = f"{min(seconds):.1f}", f"{max(seconds):.1f}"
        times = first if first == last else f"{first} to {last}"
        text = f"{'★ ' * unseen}{action} ({ids}; {times} s)"
        rows.append((max(score for score, _ in entries), text))
    return [[f"{score:.2f}", text] for score, text in sorted(rows, reverse=True)]


async def _refuse_address(*_: Any, **__: Any) -> str:
    raise ValueError("expected an uploaded file, found an address")


def _introduction(detector: Detector) -> str:
    vocabulary, file = detector.vocabulary, detector.file
    unseen = (
        f", {len(detector.unseen)} of them without a label in training (★)"
        if detector.unseen
        else ""
    )
    limits = f"; {detector.limits}" if detector.limits else ""
    return (
        "# People, objects and their actions\n"
        f"The model **{file.parent.name if file.name in (CHECKPOINT, BEST) else file.stem}** knows"
        f" {count_noun(vocabulary.num_interactions, 'interactions')}{unseen}{limits}."
        f" Pictures may have {MAX_MEGAPIXELS} megapixels, clips {MAX_CLIP_SECONDS} seconds (of"
        f" which at most {MAX_CLIP_FRAMES} frames are detected), files {MAX_UPLOAD_MB} MB; they are"
        " deleted after an hour."
    )


def _summary(num_shown: int, num_unseen: int, threshold: float) -> str:
    if not num_shown:
        return f"No interaction has a score of at least {threshold:g}. A lower one shows more."
    marked = f", {num_unseen} of them unseen in training (★)" if num_unseen else ""
    count = count_noun(num_shown, "interactions")
    return f"{count} with a score of at least {threshold:g}{marked}."


def _added_actions(before: Detector, after: Detector) -> list[str]:
    known = set(before.vocabulary.interaction_names)
    verbs = (verb for verb, name in after.vocabulary.interaction_names if (verb, name) not in known)
    return [verb.replace("_", " ") for verb in dict.fromkeys(verbs)]
