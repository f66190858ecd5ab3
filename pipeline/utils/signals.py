"""Context managers that change how SIGINT (Ctrl-C) and SIGTERM are handled.

They are used where child processes start and end, so that one Ctrl-C in the terminal, which every
process of the group receives, does not kill children before their parent has stopped them.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.machinery import ExtensionFileLoader
from types import FrameType

from pipeline.utils.logging import get_logger

logger = get_logger(__name__)

# Exit code of a stopped command that resumes when it is started again (EX_TEMPFAIL of sysexits.h).
# Batch scripts requeue the job on it.
EXIT_REQUEUE = 75
# Seconds after which an interrupt that came during the import of a module in C is tried again.
RETRY_INTERVAL = 0.05


@contextmanager
def defer_interrupts() -> Iterator[None]:
    """Blocks SIGINT for the calling thread until the end of the block.

    Processes that are started inside inherit the blocked signal and never receive it; the caller
    has to stop them.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def interrupt_outside_extensions() -> Iterator[None]:
    """Raises the `KeyboardInterrupt` of SIGINT after the import of a module in C, if that goes on.

    Such modules lose an exception in a module that they import, or turn it into an `ImportError`,
    with which others do without numpy, for example. Handlers other than Python's own stay.
    """

    def interrupt(number: int, frame: FrameType | None) -> None:
        while frame is not None:
            if isinstance(frame.f_locals.get("self"), ExtensionFileLoader):
                main = threading.main_thread().ident
                again = threading.Timer(RETRY_INTERVAL, signal.pthread_kill, (main, number))
                again.daemon = True
                again.start()
                return
            frame = frame.f_back
        raise KeyboardInterrupt

    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@contextmanager
def exit_on_sigterm() -> Iterator[None]:
    """Exits with `EXIT_REQUEUE` on SIGTERM, which batch systems send, so that cleanup runs.

    The command of the body must be able to resume.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        raise SystemExit(EXIT_REQUEUE)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    except SystemExit as error:
        if error.code == EXIT_REQUEUE:
            logger.info("stopped by SIGTERM; run the same command again to resume")
        raise
    finally:
        signal.signal(signal.SIGTERM, before)
