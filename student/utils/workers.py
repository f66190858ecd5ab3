"""Worker processes of data loaders: how many fit, how they end, what their errors say."""

from __future__ import annotations

import multiprocessing
import multiprocessing.queues
import os
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.process import BaseProcess
from types import TracebackType
from typing import Any, Generic, TypeVar

from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from pipeline.utils.errors import InputError
from pipeline.utils.logging import get_logger
from student.utils.preemption import STOP_SIGNALS

logger = get_logger(__name__)

Batch = TypeVar("Batch")
# More worker processes than cores are the user's choice.
warnings.filterwarnings("ignore", message="This DataLoader will create", category=UserWarning)
# Where torch keeps what workers hand over; other systems than Linux have no such folder.
SHARED_MEMORY = "/dev/shm"
# Batches that a worker prepares in advance; torch's default.
PREFETCH_FACTOR = 2
# Batches beside those in preparation: one in use, one on its way to page-locked memory.
BATCHES_IN_USE = 2
# What Python calls where a queue's thread fails.
FEEDER_ERROR = "_on_queue_feeder_error"
# Seconds that workers have to end by themselves before they are killed.
SHUTDOWN_SECONDS = 2.0


def loader_options(workers: int, batch_bytes: int, processes: int = 1) -> dict[str, Any]:
    """Settings of a `DataLoader` whose workers' batches fit into the free shared memory.

    Args:
        workers: processes that shall prepare batches.
        batch_bytes: of the largest batch.
        processes: of the run on this machine, each with as many workers.
    """
    prefetch, free = PREFETCH_FACTOR, _free_shared_memory()
    if workers and free is not None:
        room = max(0, free // max(1, batch_bytes) // processes - BATCHES_IN_USE)
        wanted = workers, prefetch
        prefetch = min(prefetch, room // workers)
        if not prefetch:
            workers, prefetch = room, 1
        if (workers, prefetch) != wanted:
            logger.warning(
                f"{SHARED_MEMORY}: {free / 2**20:.0f} MB free for batches of up to"
                f" {batch_bytes / 2**20:.1f} MB: {workers} workers with {prefetch} in advance,"
                f" {wanted[0]} with {wanted[1]} were asked for"
            )
    options = {"prefetch_factor": prefetch, "worker_init_fn": init_worker} if workers else {}
    return {"num_workers": workers, **options}


def _free_shared_memory() -> int | None:
    """Bytes that are free for this user; None where the system has no limit of its own."""
    with suppress(OSError):
        found = os.statvfs(SHARED_MEMORY)
        return found.f_bavail * found.f_frsize
    return None


def init_worker(_: int) -> None:
    """For a worker's start: it ends when the process it works for decides so, or is no more.

    A terminal and a cluster signal every process of a run, so signals are ignored. A run that was
    killed tells its workers nothing; torch's own look after it sees a change of the parent, which
    the server that forks workers (from Python 3.14 on the default) prevents.
    """
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    # A thread of the queue hands batches over. Where it cannot, as without a file descriptor, it
    # would drop the batch, for which the run then waits for ever.
    setattr(multiprocessing.queues.Queue, FEEDER_ERROR, staticmethod(_exit_worker))
    # The thread that sends the descriptors of shared tensors reports its failure here.
    sys.excepthook = lambda *_: os._exit(1)
    threading.Thread(target=_exit_with_parent, name="end-with-parent", daemon=True).start()


def _exit_worker(error: BaseException, _: object) -> None:
    os._exit(1)


def _exit_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None, "workers are processes of their own"
    parent.join()
    os._exit(1)


class BatchIterator(Iterator[Batch], Generic[Batch]):
    """A loader's batches, one after the other; to be entered, and left to end the workers.

    Workers that ignore signals have to be told, or else the program waits for them as it ends.
    They are told when nothing refers to the loader's iterator any more, which an error's traceback
    does; those that do not answer are killed.

    Raises:
        InputError: a worker died, failed, or met bad input; from all methods.
    """

    def __init__(self, loader: Iterable[Batch]) -> None:
        self._loader = loader
        self._batches: Iterator[Batch] = iter(())
        self._workers: list[BaseProcess] = []

    def __enter__(self) -> BatchIterator[Batch]:
        others = set(multiprocessing.active_children())
        failure = None
        try:
            self._batches = iter(self._loader)
        # Processes or threads that cannot be started, as without a file descriptor.
        except (OSError, RuntimeError, MemoryError) as error:
            failure = error
        self._workers = [one for one in multiprocessing.active_children() if one not in others]
        if failure is not None:
            self._kill()
            for worker in self._workers:
                worker.join()
            _mark_shut_down(failure)
            raise InputError(_error_line(failure)) from None
        return self

    def __next__(self) -> Batch:
        try:
            return next(self._batches)
        except StopIteration:
            raise
        except Exception as error:
            if not self._workers:
                raise
            raise InputError(_error_line(error)) from None

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        first = error
        while error is not None:
            traceback.clear_frames(error.__traceback__)
            error = error.__context__
        kill = threading.Timer(SHUTDOWN_SECONDS, self._kill)
        kill.start()
        with _default_sigchld():
            self._batches = iter(())
        kill.cancel()
        # A death is noticed wherever the run is, by a signal's handler.
        if isinstance(first, RuntimeError) and str(first).startswith(WORKER_DIED):
            raise InputError(_error_line(first)) from None

    def _kill(self) -> None:
        for worker in self._workers:
            worker.kill()


def _mark_shut_down(error: Exception) -> None:
    """Keeps torch from ending workers of a loader whose start failed halfway: it looks for fields
    that are not there yet, and waits for workers that ignore its signals."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        started = frame.f_locals.get("self")
        if isinstance(started, _MultiProcessingDataLoaderIter):
            started._shutdown = True


# How torch's errors about a worker that is no more begin.
WORKER_DIED = "DataLoader worker (pid"


def _error_line(error: Exception) -> str:
    """One line about an error that a worker caused; where it stood there is of no use here."""
    line = (str(error).strip().splitlines() or [""])[-1]
    if isinstance(error, InputError):
        return line.removeprefix(f"{InputError.__module__}.InputError: ")
    name = type(error).__name__
    found = line if line.startswith(name) else f"{name}: {line}"
    return (
        f"a worker that prepares images failed ({found}); where memory, {SHARED_MEMORY} or the"
        " number of open files (ulimit -n) is at its limit, fewer --workers need less"
    )


@contextmanager
def _default_sigchld() -> Iterator[None]:
    """Within this torch raises no error about workers that are killed."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGCHLD, handler)
