"""Serves the page of `eoid-predict --serve`.

The page is built with gradio (extra `demo`) and needs no internet connection. A request can name no
file of this machine: only files that were uploaded to the page are read, as pictures or videos by
their content, and only the addresses that the page itself uses are served. Uploads and drawings are
in a temporary folder, which is removed at the end.

The module imports neither PyTorch nor gradio before they are needed, so that a taken port is
reported at once.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import re
import socket
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.utils.cli import EXIT_INTERRUPTED
from pipeline.utils.errors import InputError
from pipeline.utils.logging import get_logger
from pipeline.utils.signals import exit_on_sigterm
from student.utils.preemption import StopRequest, StopSignalHandler

if TYPE_CHECKING:
    from student.inference.action_encoder import ActionEncoder
    from student.inference.detector import Detector
    from student.inference.page import PageConfig

logger = get_logger(__name__)

# Name of the folder of uploads and drawings in the temporary folder.
UPLOADS = "uploads"
# Of requests, beside an uploaded file.
MAX_REQUEST_BYTES = 1_000_000
# Of the errors of requests, in characters.
MAX_ERROR = 200
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
.prose.error { border-left: 4px solid #d55e00; padding-left: 10px; }
"""


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
        stops: dict[str, StopSignalHandler] = {}
        app = build_app(detector, config, encoder, Path(folder), stops)
        host, port = listener.getsockname()[:2]
        if host not in LOOPBACK:
            logger.warning("everyone who reaches this address can use the page, without a password")
        shown = f"[{host}]" if ":" in host else host
        debug = logger.isEnabledFor(logging.DEBUG)
        if not debug:
            # What libraries log and warn about uploads means nothing to the user of the command.
            logging.captureWarnings(True)
            logging.getLogger().addHandler(logging.NullHandler())
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
            for stop in list(stops.values()):
                stop.request = StopRequest.REQUEUE


def listen(host: str, port: int) -> socket.socket:
    """Opens a port.

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
    listener = socket.socket(family, kind, protocol)
    # A port stays taken for a minute after its server ended.
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(address)
        listener.listen()
    except OSError as error:
        listener.close()
        raise InputError(
            f"--host, --port: expected a free port of this machine, found {host}:{port}"
            f" ({error.strerror})"
        ) from None
    return listener


def build_app(
    detector: Detector,
    config: PageConfig,
    encoder: ActionEncoder | None,
    folder: Path,
    stops: dict[str, StopSignalHandler],
) -> Any:
    """The page as an ASGI application; see `serve` and `build_page`."""
    import gradio
    from fastapi import FastAPI

    from student.inference.page import MAX_UPLOAD_MB, build_page, make_room

    # gradio prints tracebacks, also for values that no slider has.
    for module in (gradio.queueing, gradio.routes):
        module.traceback = _OneLineTraceback
    app = FastAPI(openapi_url=None)
    uploads, max_upload = folder / UPLOADS, MAX_UPLOAD_MB << 20
    app.add_middleware(RequestFilter, max_upload=max_upload, make_room=partial(make_room, uploads))
    open_with = None if encoder is None else partial(encoder.open, folder=folder)
    return gradio.mount_gradio_app(
        app,
        build_page(detector, config, open_with, uploads, stops),
        path="/",
        # Fonts of the system; others would be loaded from the internet.
        theme=gradio.themes.Default(
            font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
        ),
        css=CSS,
        max_file_size=max_upload,
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
    bodies that are large or of unknown size. It also limits what visitors fill the disk with.

    Args:
        app: the application.
        max_upload: largest uploaded file in bytes.
        make_room: see `student.inference.page.make_room`.
    """

    def __init__(self, app: Any, max_upload: int, make_room: Callable[[], None]) -> None:
        self._app, self._max_upload, self._make_room = app, max_upload, make_room

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http" and (status := self._refusal(scope)):
            await send({"type": "http.response.start", "status": status, "headers": []})
            await send({"type": "http.response.body", "body": b""})
        else:
            if scope["type"] == "http" and scope["method"] == "POST":
                self._make_room()
            await self._app(scope, receive, send)

    def _refusal(self, scope: Any) -> int | None:
        """The HTTP status of a refused request."""
        if ADDRESSES.fullmatch(scope["path"]) is None:
            return 404
        length = dict(scope["headers"]).get(b"content-length", b"")
        if not length.isdigit():
            return 411 if scope["method"] == "POST" else None
        # The form of an upload has some more bytes than the file.
        upload = self._max_upload if scope["path"] == UPLOAD_ADDRESS else 0
        return 413 if int(length) > MAX_REQUEST_BYTES + upload else None
