"""Serves the page of `eoid-predict --serve`.

The page is built with gradio (extra `demo`) and needs no internet connection. A request can name no
file of this machine: only files that were uploaded to the page are read, as pictures or videos by
their content, and only the addresses that the page itself uses are served. Uploads and drawings are
in a temporary folder, which is removed at the end.

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
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.utils.cli import EXIT_INTERRUPTED
from pipeline.utils.errors import InputError
from pipeline.utils.logging import get_logger
from pipeline.utils.signals import exit_on_sigterm
from student.inference.detector import Detector
from student.inference.page import MAX_ACTIONS_TEXT, MAX_UPLOAD_MB, PageConfig, build_page
from student.models.text_head import TextVerbHead
from student.utils.preemption import StopRequest, StopSignalHandler
from teacher_cache.reader.cache import open_cache

logger = get_logger(__name__)

# Name of the folder of uploads and drawings in the temporary folder.
UPLOADS = "uploads"
MAX_UPLOAD_BYTES = MAX_UPLOAD_MB * 1_000_000
# Of requests, beside an uploaded file.
MAX_REQUEST_BYTES = 1_000_000
# Of the errors of requests, in characters.
MAX_ERROR = 200
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
CSS = """
footer { display: none !important; }
.drawn img { object-fit: contain; }
.error { border-left: 4px solid #d55e00; padding-left: 10px; }
"""


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
            logger.debug(done.stderr.strip())
            reason = (done.stderr.strip().splitlines() or ["eoid-cache: it ended early"])[-1]
            text = reason.partition(": ")[2].removeprefix("--add: ")
            raise InputError(text.replace(str(self._cache), "the cache"))
        return self._open_detector(file)


def serve(
    detector: Detector,
    config: PageConfig,
    listener: socket.socket,
    encoder: ActionEncoder | None = None,
) -> None:
    """Serves the page until Ctrl-C.

    Removes gradio's variables from the environment of this process and sets its own.

    Args:
        detector: the detector.
        config: settings of the page.
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

        # Without handlers of signals, which uvicorn has. The process ends only with its threads.
        stop = StopSignalHandler()
        app = build_app(detector, config, encoder, Path(folder), stop)
        host, port = listener.getsockname()[:2]
        if host not in LOOPBACK:
            logger.warning("everyone who reaches this address can use the page, without a password")
        shown = f"[{host}]" if ":" in host else host
        debug = logger.isEnabledFor(logging.DEBUG)
        settings = uvicorn.Config(
            app,
            # Open pages keep a connection: waiting for them is no error worth a line.
            log_level="info" if debug else "critical",
            timeout_graceful_shutdown=1,
            ws="none",
        )

        class Server(uvicorn.Server):
            """Prints the address when the page is there, and Ctrl-C is handled by uvicorn."""

            async def startup(self, sockets: list[socket.socket] | None = None) -> None:
                await super().startup(sockets)
                print(f"page at http://{shown}:{port} (Ctrl-C ends it)", flush=True)

        try:
            Server(settings).run(sockets=[listener])
        except KeyboardInterrupt:
            # There is nothing to resume, as the message about an interruption would say.
            sys.exit(EXIT_INTERRUPTED)
        finally:
            stop.request = StopRequest.REQUEUE


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
        spec = importlib.util.find_spec(package)
        # pip may leave a folder of files that a package has made since, which can be imported too.
        if spec is None or spec.origin is None:
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
    detector: Detector,
    config: PageConfig,
    encoder: ActionEncoder | None,
    folder: Path,
    stop: StopSignalHandler,
) -> Any:
    """The page as an ASGI application; see `serve`."""
    import gradio
    from fastapi import FastAPI

    # gradio prints tracebacks, also for values that no slider has.
    for module in (gradio.queueing, gradio.routes):
        module.traceback = _OneLineTraceback
    app = FastAPI(openapi_url=None)
    app.add_middleware(RequestFilter)
    open_with = None if encoder is None else partial(encoder.open, folder=folder)
    return gradio.mount_gradio_app(
        app,
        build_page(detector, config, open_with, folder / UPLOADS, stop),
        path="/",
        # Fonts of the system; others would be loaded from the internet.
        theme=gradio.themes.Default(
            font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
        ),
        css=CSS,
        max_file_size=MAX_UPLOAD_BYTES,
        footer_links=[],
        run_history=False,
        show_error=False,
        ssr_mode=False,
        enable_monitoring=False,
        mcp_server=False,
        pwa=False,
    )


class _OneLineTraceback:
    """Reports failed requests in one line, in place of the module `traceback`."""

    @staticmethod
    def print_exc() -> None:
        error = sys.exc_info()[1]
        text = " ".join(f"{type(error).__name__}: {error}".split())
        logger.warning(f"page: a request failed ({text[:MAX_ERROR]})")
        logger.debug("its traceback:", exc_info=True)


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
        if not length.isdigit():
            return 411 if scope["method"] == "POST" else None
        # The form of an upload has some more bytes than the file.
        upload = MAX_UPLOAD_BYTES if scope["path"] == UPLOAD_ADDRESS else 0
        return 413 if int(length) > MAX_REQUEST_BYTES + upload else None
