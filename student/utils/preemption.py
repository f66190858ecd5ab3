"""Being asked to stop: what a signal means, and when it takes effect."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum
from types import FrameType, TracebackType
from typing import Any, NoReturn

# The exit code of a run that was told to make room and goes on when it is started again ("try
# again later" in sysexits.h). Batch scripts requeue on it.
EXIT_REQUEUE = 75


class StopRequest(IntEnum):
    """What somebody asks of a run; of several requests the largest counts."""

    NO = 0
    INTERRUPT = 1
    REQUEUE = 2


# Ctrl-C is a person's wish; the other two are how clusters announce the end of a job's time.
STOP_SIGNALS = {
    signal.SIGINT: StopRequest.INTERRUPT,
    signal.SIGTERM: StopRequest.REQUEUE,
    signal.SIGUSR1: StopRequest.REQUEUE,
}


def exit_process(stop: StopRequest) -> NoReturn:
    """Ends the program in the way that was asked for.

    Raises:
        KeyboardInterrupt: for an interrupt.
        SystemExit: with `EXIT_REQUEUE`, for the others.
    """
    if stop is StopRequest.INTERRUPT:
        raise KeyboardInterrupt
    raise SystemExit(EXIT_REQUEUE)


class StopSignalHandler:
    """While entered, the signals of `STOP_SIGNALS` end the program; inside `defer` they wait.

    Attributes:
        request: the largest request so far.
    """

    def __init__(self) -> None:
        self.request = StopRequest.NO
        self._deferring = False
        self._defer_seconds = 0.0
        self._previous_handlers: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopSignalHandler:
        self._previous_handlers = {
            number: signal.signal(number, self._record) for number in STOP_SIGNALS
        }
        self._previous_handlers[signal.SIGALRM] = signal.signal(
            signal.SIGALRM, lambda *_: exit_process(self.request)
        )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._previous_handlers.items():
            signal.signal(number, handler)

    @contextmanager
    def defer(self) -> Iterator[None]:
        """Signals are only noted in `request`: the work inside has a state to save first."""
        self._deferring = True
        try:
            yield
        finally:
            self._deferring = False

    @contextmanager
    def deliver(self) -> Iterator[None]:
        """Inside `defer`: what was asked takes effect, and signals end the program again."""
        self._deferring = False
        if self.request:
            exit_process(self.request)
        try:
            yield
        finally:
            self._deferring = True

    @contextmanager
    def defer_for(self, seconds: float) -> Iterator[None]:
        """Inside `defer`, around a wait that may not end: what is asked takes effect so long after
        it was asked, or after the wait began."""
        self._defer_seconds = seconds
        if self.request:
            signal.setitimer(signal.ITIMER_REAL, seconds)
        try:
            yield
        finally:
            self._defer_seconds = 0.0
            signal.setitimer(signal.ITIMER_REAL, 0)

    def _record(self, number: int, _: FrameType | None) -> None:
        self.request = max(self.request, STOP_SIGNALS[signal.Signals(number)])
        if not self._deferring:
            exit_process(self.request)
        if self._defer_seconds:
            signal.setitimer(signal.ITIMER_REAL, self._defer_seconds)
