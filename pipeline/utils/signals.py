"""Context managers that change how SIGINT (Ctrl-C) and SIGTERM are handled.

They are used where child processes start and end, so that one Ctrl-C in the terminal, which every
process of the group receives, does not kill children before their parent has stopped them.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from pipeline.utils.logging import get_logger

logger = get_logger(__name__)

# Exit code of a stopped command that resumes when it is started again (EX_TEMPFAIL of sysexits.h).
# Batch scripts requeue the job on it.
EXIT_REQUEUE = 75


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
