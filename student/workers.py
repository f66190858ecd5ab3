"""Processes that prepare samples: deaf to signals, gone with the run, plain in their errors."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Generic, TypeVar

from pipeline.errors import InputError
from student.signals import STOPPING

Batch = TypeVar("Batch")


def start_work(_: int) -> None:
    """For a worker's start: it ends when the process it works for decides so, or is no more.

    A terminal and a cluster signal every process of a run, so signals are ignored. A run that was
    killed tells its workers nothing; torch's own look after it sees a change of the parent, which
    the server that forks workers (from Python 3.14 on the default) prevents.
    """
    for number in STOPPING:
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, name="end-with-parent", daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None, "workers are processes of their own"
    parent.join()
    os._exit(1)


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
