"""Context managers that change how SIGINT (Ctrl-C) and SIGTERM are handled.

They are used where child processes start and end, so that one Ctrl-C in the terminal, which every
process of the group receives, does not kill children before their parent has stopped them.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


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
def sigterm_as_interrupt() -> Iterator[None]:
    """Raises KeyboardInterrupt on SIGTERM, which batch systems send, so that cleanup runs."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
