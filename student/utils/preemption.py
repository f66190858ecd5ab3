"""Stop signals: ends a run by Ctrl-C or at a cluster's preemption, after its state is saved."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum
from types import FrameType, TracebackType
from typing import Any, NoReturn

from pipeline.utils.logging import get_logger
from pipeline.utils.signals import EXIT_REQUEUE

logger = get_logger(__name__)


class StopRequest(IntEnum):
    """Kind of a requested stop; of several requests the largest one counts."""

    NO = 0
    INTERRUPT = 1
    REQUEUE = 2


# SIGINT comes from Ctrl-C. Clusters send the other two before they end a job.
STOP_SIGNALS = {
    signal.SIGINT: StopRequest.INTERRUPT,
    signal.SIGTERM: StopRequest.REQUEUE,
    signal.SIGUSR1: StopRequest.REQUEUE,
}


def exit_process(stop: StopRequest) -> NoReturn:
    """Ends the program as the request demands.

    Raises:
        KeyboardInterrupt: for an interrupt.
        SystemExit: with code `EXIT_REQUEUE`, for other requests.
    """
    if stop is StopRequest.INTERRUPT:
        raise KeyboardInterrupt
    raise SystemExit(EXIT_REQUEUE)


class StopSignalHandler:
    """Context manager in which `STOP_SIGNALS` end the program, or are deferred.

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
        """Within, signals are only recorded in `request`, so that state can be saved first."""
        self._deferring = True
        try:
            yield
        finally:
            self._deferring = False

    @contextmanager
    def deliver(self) -> Iterator[None]:
        """Within `defer`: ends the program on a recorded request, and on signals in the body."""
        self._deferring = False
        try:
            if self.request:
                exit_process(self.request)
            yield
        finally:
            self._deferring = True

    @contextmanager
    def defer_for(self, seconds: float) -> Iterator[None]:
        """Within `defer`, around a wait that may not end: ends the program `seconds` after a
        request, or after the start of the wait if the request came earlier.
        """
        self._defer_seconds = seconds
        if self.request:
            signal.setitimer(signal.ITIMER_REAL, seconds)
        try:
            yield
        finally:
            self._defer_seconds = 0.0
            signal.setitimer(signal.ITIMER_REAL, 0)

    def _record(self, number: int, _: FrameType | None) -> None:
        is_first = not self.request
        self.request = max(self.request, STOP_SIGNALS[signal.Signals(number)])
        if not self._deferring:
            exit_process(self.request)
        if is_first:
            # A step can take minutes.
            name = signal.Signals(number).name
            logger.info(f"{name}: the run stops after this step, when its state is saved")
        if self._defer_seconds:
            signal.setitimer(signal.ITIMER_REAL, self._defer_seconds)
