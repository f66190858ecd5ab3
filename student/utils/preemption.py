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


class Stop(IntEnum):
    """What somebody asks of a run; of several requests the largest counts."""

    NO = 0
    INTERRUPT = 1
    REQUEUE = 2


# Ctrl-C is a person's wish; the other two are how clusters announce the end of a job's time.
STOPPING = {
    signal.SIGINT: Stop.INTERRUPT,
    signal.SIGTERM: Stop.REQUEUE,
    signal.SIGUSR1: Stop.REQUEUE,
}


def leave(stop: Stop) -> NoReturn:
    """Ends the program in the way that was asked for.

    Raises:
        KeyboardInterrupt: for an interrupt.
        SystemExit: with `EXIT_REQUEUE`, for the others.
    """
    if stop is Stop.INTERRUPT:
        raise KeyboardInterrupt
    raise SystemExit(EXIT_REQUEUE)


class StopSignals:
    """While entered, the signals of `STOPPING` end the program; inside `held` they wait.

    Attributes:
        asked: the largest request so far.
    """

    def __init__(self) -> None:
        self.asked = Stop.NO
        self._held = False
        self._patience = 0.0
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopSignals:
        self._before = {number: signal.signal(number, self._note) for number in STOPPING}
        self._before[signal.SIGALRM] = signal.signal(signal.SIGALRM, lambda *_: leave(self.asked))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Signals are only noted in `asked`: the work inside has a state to save first."""
        self._held = True
        try:
            yield
        finally:
            self._held = False

    @contextmanager
    def released(self) -> Iterator[None]:
        """Inside `held`: what was asked takes effect, and signals end the program again."""
        self._held = False
        if self.asked:
            leave(self.asked)
        try:
            yield
        finally:
            self._held = True

    @contextmanager
    def held_for(self, seconds: float) -> Iterator[None]:
        """Inside `held`, around a wait that may not end: what is asked takes effect so long after
        it was asked, or after the wait began."""
        self._patience = seconds
        if self.asked:
            signal.setitimer(signal.ITIMER_REAL, seconds)
        try:
            yield
        finally:
            self._patience = 0.0
            signal.setitimer(signal.ITIMER_REAL, 0)

    def _note(self, number: int, _: FrameType | None) -> None:
        self.asked = max(self.asked, STOPPING[signal.Signals(number)])
        if not self._held:
            leave(self.asked)
        if self._patience:
            signal.setitimer(signal.ITIMER_REAL, self._patience)
