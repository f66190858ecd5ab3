"""Processes that prepare samples: deaf to signals, plain in their errors."""

from __future__ import annotations

import signal
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Generic, TypeVar

from pipeline.errors import InputError
from student.signals import STOPPING

Batch = TypeVar("Batch")


def ignore_signals(_: int) -> None:
    """For a worker's start: a terminal and a cluster signal every process of a run, and only the
    one that trains decides when to stop."""
    for number in STOPPING:
        signal.signal(number, signal.SIG_IGN)


class Batches(Iterator[Batch], Generic[Batch]):
    """A loader's batches, one after the other; to be entered, and left to end the workers.

    Workers that are deaf to signals have to be told, or else the program waits for them as it
    ends. They are told when nothing refers to the loader's iterator any more, which an error's
    traceback does.
    """

    def __init__(self, loader: Iterable[Batch]) -> None:
        self._loader = loader
        self._batches: Iterator[Batch] = iter(())

    def __enter__(self) -> Batches[Batch]:
        self._batches = iter(self._loader)
        return self

    def __next__(self) -> Batch:
        return next(self._batches)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        while error is not None:
            traceback.clear_frames(error.__traceback__)
            error = error.__context__
        self._batches = iter(())


@contextmanager
def plain_errors() -> Iterator[None]:
    """Bad input that a worker process met: its own line again, without the worker's traceback."""
    try:
        yield
    except InputError as error:
        line = str(error).strip().splitlines()[-1]
        raise InputError(line.removeprefix(f"{InputError.__module__}.InputError: ")) from None
