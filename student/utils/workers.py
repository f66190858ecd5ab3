"""DataLoader workers: their number by shared memory, their lifecycle, and one-line errors."""

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
# torch warns of more workers than cores, which is the user's choice.
warnings.filterwarnings("ignore", message="This DataLoader will create", category=UserWarning)
# Folder of the shared memory in which workers pass batches, on Linux only.
SHARED_MEMORY = "/dev/shm"
# Batches that a worker prepares in advance; the default of torch.
PREFETCH_FACTOR = 2
# Batches in shared memory beside the prefetched ones: one in use, one on its way to pinned memory.
BATCHES_IN_USE = 2
# Method that `multiprocessing.Queue` calls when its feeder thread fails.
FEEDER_ERROR = "_on_queue_feeder_error"
# Seconds after which workers that have not ended are killed.
SHUTDOWN_SECONDS = 2.0
# Start of torch's error messages about dead workers.
WORKER_DIED = "DataLoader worker (pid"


def loader_options(workers: int, batch_bytes: int, processes: int = 1) -> dict[str, Any]:
    """`DataLoader` arguments for workers whose batches fit into the free shared memory.

    Warns where the number of workers or of prefetched batches is reduced. `batch_bytes` is the
    size of the largest batch, `processes` the number of training processes on this machine.
    """
    prefetch, free = PREFETCH_FACTOR, _free_shared_memory()
    if workers and free is not None:
        max_batches = max(0, free // max(1, batch_bytes) // processes - BATCHES_IN_USE)
        requested = workers, prefetch
        prefetch = min(prefetch, max_batches // workers)
        if not prefetch:
            workers, prefetch = max_batches, 1
        if (workers, prefetch) != requested:
            logger.warning(
                f"{SHARED_MEMORY}: {free / 2**20:.0f} MB free for batches of up to"
                f" {batch_bytes / 2**20:.1f} MB: using {workers} workers with {prefetch} prefetched"
                f" batches instead of {requested[0]} with {requested[1]}"
            )
    options = {"prefetch_factor": prefetch, "worker_init_fn": init_worker} if workers else {}
    return {"num_workers": workers, **options}


def _free_shared_memory() -> int | None:
    """Free bytes of shared memory; None on systems without a separate limit."""
    with suppress(OSError):
        stats = os.statvfs(SHARED_MEMORY)
        return stats.f_bavail * stats.f_frsize
    return None


def init_worker(_: int) -> None:
    """Sets a worker up to ignore stop signals and to end with its parent process.

    Terminals and clusters signal every process of a run, but the parent decides when workers end.
    torch's own watchdog compares parent ids, which does not notice a killed parent under the start
    method "forkserver", the default from Python 3.14.
    """
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    # The feeder thread of the queue drops a batch that it cannot send, for example without a free
    # file descriptor, and the parent would wait for this batch for ever.
    setattr(multiprocessing.queues.Queue, FEEDER_ERROR, staticmethod(_exit_worker))
    # A failure of the thread that sends the file descriptors of shared tensors ends here.
    sys.excepthook = lambda *_: os._exit(1)
    threading.Thread(target=_exit_with_parent, name="end-with-parent", daemon=True).start()


def _exit_worker(error: BaseException, _: object) -> None:
    os._exit(1)


def _exit_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None, "init_worker runs in worker processes only"
    parent.join()
    os._exit(1)


class BatchIterator(Iterator[Batch], Generic[Batch]):
    """Iterates over a DataLoader's batches; a context manager that ends the workers at its exit.

    torch ends workers when the loader's iterator is garbage-collected. The frames of a traceback
    can keep it alive, so that they are cleared first. Workers that still do not end are killed.

    Raises:
        InputError: a worker died or failed, or found bad input; raised by all methods.
    """

    def __init__(self, loader: Iterable[Batch]) -> None:
        self._loader = loader
        self._batches: Iterator[Batch] = iter(())
        self._workers: list[BaseProcess] = []

    def __enter__(self) -> BatchIterator[Batch]:
        before = set(multiprocessing.active_children())
        failure = None
        try:
            self._batches = iter(self._loader)
        # Processes or threads cannot be started, for example without a free file descriptor.
        except (OSError, RuntimeError, MemoryError) as error:
            failure = error
        self._workers = [
            child for child in multiprocessing.active_children() if child not in before
        ]
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
        # Another worker may die meanwhile.
        with _default_sigchld():
            while error is not None:
                traceback.clear_frames(error.__traceback__)
                error = error.__context__
            kill = threading.Timer(SHUTDOWN_SECONDS, self._kill)
            kill.start()
            self._batches = iter(())
            kill.cancel()
        # torch raises this error from a signal handler, at any line of the body.
        if isinstance(first, RuntimeError) and str(first).startswith(WORKER_DIED):
            raise InputError(_error_line(first)) from None

    def _kill(self) -> None:
        for worker in self._workers:
            worker.kill()


def _mark_shut_down(error: Exception) -> None:
    """Marks the iterator of a loader whose start failed as shut down.

    Its destructor would otherwise read attributes that do not exist yet, and wait for workers that
    ignore its signals.
    """
    for frame, _ in traceback.walk_tb(error.__traceback__):
        iterator = frame.f_locals.get("self")
        if isinstance(iterator, _MultiProcessingDataLoaderIter):
            iterator._shutdown = True


def _error_line(error: Exception) -> str:
    """Describes an error of a worker in one line, without the worker's traceback."""
    line = (str(error).strip().splitlines() or [""])[-1]
    if isinstance(error, InputError):
        return line.removeprefix(f"{InputError.__module__}.InputError: ")
    name = type(error).__name__
    found = line if line.startswith(name) else f"{name}: {line}"
    return (
        f"a DataLoader worker failed ({found}); if memory, {SHARED_MEMORY} or the number of open"
        " files (ulimit -n) is exhausted, use fewer --workers"
    )


@contextmanager
def _default_sigchld() -> Iterator[None]:
    """Within, torch's SIGCHLD handler, which raises an error about killed workers, is disabled."""
    # Only the main thread may set handlers.
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGCHLD, handler)
