"""The page of `eoid-predict --serve`: drop a picture, see people, objects and their actions.

The page is built with gradio (extra `demo`) and needs no internet connection. A request can name no
file of this machine: only files that were uploaded to the page are read, as images whatever their
name is, and only the addresses that the page itself uses are served. Uploads and drawings are in a
temporary folder, which is removed at the end.

The detector runs once per picture. Its 100 best interactions are kept, so that the sliders select
and draw again without it.

A sentence for a new action has to be embedded by the teacher's CLIP, which the student never
imports. With a teacher cache at hand, the page therefore runs `eoid-cache prompts` on it, in a
process of its own, and opens the student again with the prompts file that this writes.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import re
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pipeline.images import read_image, read_image_size
from pipeline.utils.errors import InputError
from pipeline.utils.logging import get_logger
from pipeline.utils.signals import exit_on_sigterm
from pipeline.utils.text import count_noun
from pipeline.vocabulary import Vocabulary
from student.inference.batch_predictor import Prediction, UnreadableImage
from student.inference.detector import Detector
from student.inference.postprocess import NUM_DETECTIONS, SelectionConfig
from student.inference.results import HOIResult, build_result
from student.models.text_head import TextVerbHead
from student.weights.checkpoint_file import BEST, CHECKPOINT
from teacher_cache.reader.cache import open_cache

logger = get_logger(__name__)

# Name of the folder of uploads and drawings in the temporary folder.
UPLOADS = "uploads"
MAX_UPLOAD_MB = 50
# Every visitor's picture is decoded in memory: less is allowed than for files of the user.
MAX_MEGAPIXELS = 64
# Long side of drawings on the page, in pixels; larger ones take seconds to draw and encode.
MAX_DRAWN = 1280
# Age in seconds at which files and kept pictures of a page that is still open are removed.
MAX_AGE = 3600
# Of requests that are not uploads.
MAX_REQUEST_BYTES = 1_000_000
MAX_QUEUE = 20
MAX_ACTIONS_TEXT = 1000
# `eoid-cache`, which need not be on the path of a service.
ENCODE = "from teacher_cache.cli import main; main()"
ENCODER_SECONDS = 600
LOOPBACK = ("127.0.0.1", "::1", "localhost")
# What the page and gradio's Python client ask for. gradio has further addresses, for example to
# fetch other servers' files, which nothing here needs.
ADDRESSES = re.compile(
    r"/|/(config|theme\.css|favicon\.ico|manifest\.json)|/(assets|static)/.*"
    r"|/gradio_api/(info|upload|upload_progress|startup-events|cancel|reset|queue/(join|data))/?"
    r"|/gradio_api/(heartbeat/[^/]+|file=/.*)"
)
UPLOAD_ADDRESS = "/gradio_api/upload"
WELCOME = "Drop a picture to see people, objects and the actions that connect them."
CSS = """
footer { display: none !important; }
.drawn img { object-fit: contain; }
.error { border-left: 4px solid #d55e00; padding-left: 10px; }
"""


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
        kept = replace(selection.select(self.prediction.detections), image_id=self.name)
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
    # An array has no EXIF orientation that would be applied a second time.
    pixels = np.asarray(read_image(path))
    (prediction,) = detector.predictor.stream([pixels])
    if isinstance(prediction, UnreadableImage):
        raise InputError(prediction.reason)
    image = Image.fromarray(pixels)
    image.thumbnail((MAX_DRAWN, MAX_DRAWN), Image.Resampling.LANCZOS)
    return Picture(path.name, prediction, image, detector.vocabulary, detector.unseen)


class ActionEncoder:
    """Opens the student with further actions, whose sentences a teacher cache's CLIP embeds.

    Args:
        detector: a student with a text verb head.
        cache: a teacher cache of the CLIP that it was trained with.
        open_detector: opens the student with a prompts file, or without one.

    Raises:
        InputError: the student has another verb head, or the cache is another CLIP's.
    """

    def __init__(
        self, detector: Detector, cache: Path, open_detector: Callable[[Path | None], Detector]
    ) -> None:
        model = detector.predictor.model
        if not isinstance(model.verb_head, TextVerbHead):
            raise InputError(
                f"{detector.file}: expected a student trained with --verb-head text for --cache,"
                " found a linear one"
            )
        if open_cache(cache).text_model != model.config.text_model:
            raise InputError(
                f"{cache}: expected a cache of the CLIP that {detector.file} was trained with,"
                " found another's"
            )
        self._cache, self._open_detector = cache, open_detector

    def open(self, actions: str, folder: Path) -> Detector:
        """Opens the student with the actions of a text, one per line, in the form of `--add`.

        Args:
            actions: an empty text opens the student as it was trained.
            folder: for the prompts file.

        Raises:
            InputError: an action is not accepted, or the CLIP cannot be loaded.
        """
        lines = [line.strip() for line in actions.splitlines() if line.strip()]
        if not lines:
            return self._open_detector(None)
        if len(actions) > MAX_ACTIONS_TEXT:
            raise InputError(f"expected at most {MAX_ACTIONS_TEXT} characters of actions")
        file = folder / "prompts.h5"
        # With "=", an action that begins with a dash is no option.
        words = [f"--add={line}" for line in lines]
        done = subprocess.run(
            [
                *(sys.executable, "-c", ENCODE, "prompts", str(self._cache), *words),
                *("--out", str(file), "--overwrite", "--device", "cpu"),
            ],
            capture_output=True,
            text=True,
            timeout=ENCODER_SECONDS,
        )
        if done.returncode:
            logger.warning(done.stderr.strip())
            reason = done.stderr.strip().splitlines()[-1:] or ["no reason"]
            raise InputError(reason[0].partition(": ")[2].replace(str(self._cache), "the cache"))
        return self._open_detector(file)


def serve(
    detector: Detector,
    selection: SelectionConfig,
    listener: socket.socket,
    encoder: ActionEncoder | None = None,
) -> None:
    """Serves the page until Ctrl-C.

    Removes gradio's variables from the environment of this process and sets its own.

    Args:
        detector: the detector.
        selection: initial values of the sliders, and the pairwise NMS.
        listener: where the page is served, see `listen`.
        encoder: for the box of new actions; None for a page without it.
    """
    for name in [name for name in os.environ if name.startswith("GRADIO_")]:
        del os.environ[name]
    with tempfile.TemporaryDirectory(prefix="eoid-page-") as folder, exit_on_sigterm():
        # gradio reads these when it is imported. Without the second, it serves the files of a
        # folder below the current one.
        os.environ["GRADIO_TEMP_DIR"] = f"{folder}/{UPLOADS}"
        os.environ["GRADIO_EXAMPLES_CACHE"] = f"{folder}/examples"
        os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
        os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
        import uvicorn

        app = build_app(detector, selection, encoder, Path(folder))
        host, port = listener.getsockname()[:2]
        if host not in LOOPBACK:
            logger.warning("everyone who reaches this address can use the page, without a password")
        shown = f"[{host}]" if ":" in host else host
        print(f"page at http://{shown}:{port} (Ctrl-C ends it)", flush=True)
        debug = logger.isEnabledFor(logging.DEBUG)
        config = uvicorn.Config(
            app,
            # Open pages keep a connection: waiting for them is no error worth a line.
            log_level="info" if debug else "critical",
            timeout_graceful_shutdown=1,
            ws="none",
        )
        uvicorn.Server(config).run(sockets=[listener])


@contextmanager
def listen(host: str, port: int) -> Iterator[socket.socket]:
    """Opens a port, before the model is loaded, so that a taken one is found at once.

    Args:
        host: address of this machine, or a name for one.
        port: 0 takes a free one.

    Raises:
        InputError: gradio is not installed, the host is no address of this machine, or the port is
            taken.
    """
    for package in ("gradio", "uvicorn"):
        if importlib.util.find_spec(package) is None:
            raise InputError(
                f"--serve: expected the package {package}, found none; pip install '.[demo]'"
            )
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (socket.gaierror, UnicodeError):
        raise InputError(f"--host: expected an address of this machine, found {host!r}") from None
    with socket.socket(family, kind, protocol) as listener:
        # A port stays taken for a minute after its server ended.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(address)
            listener.listen()
        except OSError as error:
            raise InputError(
                f"--host, --port: expected a free port of this machine, found {host}:{port}"
                f" ({error.strerror})"
            ) from None
        yield listener


def build_app(
    detector: Detector, selection: SelectionConfig, encoder: ActionEncoder | None, folder: Path
) -> Any:
    """The page as an ASGI application; see `serve`."""
    import gradio
    from fastapi import FastAPI

    app = FastAPI(openapi_url=None)
    app.add_middleware(RequestFilter)
    return gradio.mount_gradio_app(
        app,
        build_page(detector, selection, encoder, folder),
        path="/",
        # Fonts of the system; others would be loaded from the internet.
        theme=gradio.themes.Default(
            font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
        ),
        css=CSS,
        max_file_size=MAX_UPLOAD_MB * 1_000_000,
        footer_links=[],
        run_history=False,
        show_error=False,
        ssr_mode=False,
        enable_monitoring=False,
        mcp_server=False,
        pwa=False,
    )


class RequestFilter:
    """ASGI middleware that refuses requests which the page does not make: other addresses, and
    bodies that are large or of unknown size."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http" and (status := self._refusal(scope)):
            await send({"type": "http.response.start", "status": status, "headers": []})
            await send({"type": "http.response.body", "body": b""})
        else:
            await self._app(scope, receive, send)

    def _refusal(self, scope: Any) -> int | None:
        """The HTTP status of a refused request."""
        if ADDRESSES.fullmatch(scope["path"]) is None:
            return 404
        length = dict(scope["headers"]).get(b"content-length", b"")
        if scope["method"] == "POST" and not length.isdigit():
            return 411
        # gradio limits uploads itself, with an error that the page shows.
        is_large = length.isdigit() and int(length) > MAX_REQUEST_BYTES
        return 413 if is_large and scope["path"] != UPLOAD_ADDRESS else None


def build_page(
    detector: Detector, selection: SelectionConfig, encoder: ActionEncoder | None, folder: Path
) -> Any:
    """The page as gradio `Blocks`; see `serve`."""
    import gradio as gr

    # gradio fetches the file of a request that names an address of another server.
    gr.processing_utils.async_ssrf_protected_download = _refuse_address
    # Adding actions replaces the detector, for all pages.
    current = [detector]

    def show(picture: Picture | None, threshold: float, top: float) -> list[Any]:
        if picture is None:
            return [gr.skip()] * 5
        result = picture.select(replace(selection, threshold=threshold, top=int(top)))
        rows = [
            [f"{score:.2f}", f"★ {action}" if unseen else action]
            for score, action, unseen in zip(
                result.scores.tolist(), result.actions, result.unseen.tolist(), strict=True
            )
        ]
        return [
            gr.Markdown(_summary(result, threshold), elem_classes=[]),
            gr.Column(visible=True),
            picture.draw(result),
            rows,
            result.to_dict(),
        ]

    def predict(path: str | None, threshold: float, top: float) -> list[Any]:
        text, classes = WELCOME, []
        try:
            if path is not None:
                # gradio has checked this already, but for addresses of "streams".
                if not Path(path).resolve().is_relative_to((folder / UPLOADS).resolve()):
                    raise InputError("expected an uploaded file, found another")
                picture = read_picture(current[0], Path(path))
                return [picture, *show(picture, threshold, top)]
        except InputError as error:
            # The folder of uploads means nothing to the reader of the page.
            text, classes = str(error).replace(str(path), Path(str(path)).name), ["error"]
        return [
            None,
            gr.Markdown(text, elem_classes=classes),
            gr.Column(visible=False),
            *[None] * 3,
        ]

    def set_actions(actions: str) -> Any:
        assert encoder is not None
        try:
            current[0] = encoder.open(actions, folder)
        except InputError as error:
            return gr.Markdown(str(error), elem_classes=["error"])
        names = _added_actions(detector, current[0])
        return gr.Markdown(f"Added: {', '.join(names)}." if names else "", elem_classes=[])

    with gr.Blocks(
        title="EoID", analytics_enabled=False, delete_cache=(60, MAX_AGE), fill_width=False
    ) as page:
        gr.Markdown(_introduction(detector))
        picture = gr.State(None, time_to_live=MAX_AGE)
        with gr.Row():
            with gr.Column(scale=1, min_width=320):
                upload = gr.File(label="Picture", height=150)
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
                if encoder is not None:
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
                    table = gr.Dataframe(
                        headers=["Score", "Action"], datatype="str", interactive=False, buttons=[]
                    )
                    with gr.Accordion("JSON", open=False):
                        json = gr.JSON(show_label=False, buttons=["copy"], max_height=400)
        shown = [status, results, drawn, table, json]
        model = {"concurrency_id": "model", "concurrency_limit": 1}
        inputs, outputs = [upload, threshold, top], [picture, *shown]
        upload.change(predict, inputs, outputs, api_name="predict", **model)
        for name, slider in (("threshold", threshold), ("top", top)):
            slider.input(
                show,
                [picture, threshold, top],
                shown,
                api_name=name,
                trigger_mode="always_last",
                show_progress="hidden",
            )
        if encoder is not None:
            button.click(set_actions, actions, added, api_name="actions", **model).then(
                predict, inputs, outputs, api_name=False, **model
            )
    # gradio checks the paths in requests only if this is set, as it is by its own server.
    page.has_launched = True
    return page.queue(max_size=MAX_QUEUE)


async def _refuse_address(*_: Any) -> str:
    raise ValueError("expected an uploaded file, found an address")


def _introduction(detector: Detector) -> str:
    vocabulary, file = detector.vocabulary, detector.file
    unseen = (
        f", {len(detector.unseen)} of them without a label in training (★)"
        if detector.unseen
        else ""
    )
    return (
        "# People, objects and their actions\n"
        f"The model **{file.parent.name if file.name in (CHECKPOINT, BEST) else file.name}** knows"
        f" {count_noun(vocabulary.num_interactions, 'interactions')}{unseen}. Pictures may have"
        f" {MAX_UPLOAD_MB} MB and {MAX_MEGAPIXELS} megapixels, and are deleted after an hour."
    )


def _summary(result: HOIResult, threshold: float) -> str:
    if not len(result):
        return f"No interaction has a score of at least {threshold:g}. A lower one shows more."
    unseen = int(result.unseen.sum())
    marked = f", {unseen} of them unseen in training (★)" if unseen else ""
    count = count_noun(len(result), "interactions")
    return f"{count} with a score of at least {threshold:g}{marked}."


def _added_actions(before: Detector, after: Detector) -> list[str]:
    known = set(before.vocabulary.interaction_names)
    verbs = (verb for verb, name in after.vocabulary.interaction_names if (verb, name) not in known)
    return [verb.replace("_", " ") for verb in dict.fromkeys(verbs)]
