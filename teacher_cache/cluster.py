"""Shares a build's shards out: one Dask task for each."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from typing import Any

import dask
import torch
from dask.callbacks import Callback

from pipeline.errors import InputError
from pipeline.progress import Progress
from teacher_cache.shards import ShardTask, make_shard
from teacher_cache.sources import forget_sources
from teacher_cache.writer import ShardRecord


def run_tasks(
    tasks: Sequence[ShardTask], workers: int, progress: Progress
) -> Sequence[ShardRecord]:
    """Makes shards.

    Args:
        tasks: the shards.
        workers: processes to share them out to; 0 makes them in this one.
        progress: moved on by every finished image or shard.

    Raises:
        InputError: a shard could not be made from what the user gave.
    """
    if workers == 0:
        calls = [_call(task, partial(make_shard, task, progress.advance)) for task in tasks]
        return dask.compute(*calls, scheduler="synchronous")
    forget_sources()
    calls = [_call(task, partial(make_shard, task)) for task in tasks]
    threads = max(1, (os.cpu_count() or 1) // workers)
    # Spawned, because forked copies of a process that ran torch's thread pools can hang.
    pool = ProcessPoolExecutor(
        workers, multiprocessing.get_context("spawn"), _start_worker, (threads,)
    )
    try:
        with _ShardsDone(progress):
            return dask.compute(*calls, scheduler="processes", pool=pool, chunksize=1)
    except InputError as error:
        # Dask adds the worker's traceback to the message; the last line is the cause's own.
        raise InputError(str(getattr(error, "exception", error))) from None
    except BaseException:
        for worker in multiprocessing.active_children():
            worker.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _call(task: ShardTask, work: Callable[[], ShardRecord]) -> Any:
    """Dask's form of a task; its name decides the order."""
    return dask.delayed(work)(dask_key_name=task.path.name)


def _start_worker(threads: int) -> None:
    torch.set_num_threads(threads)
    # The parent answers Ctrl-C by ending its workers, who also leave when it was killed.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_leave_with_parent, daemon=True).start()


def _leave_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


class _ShardsDone(Callback):
    """Moves the progress on with every shard that a worker finished."""

    def __init__(self, progress: Progress) -> None:
        super().__init__(posttask=self._advance)
        self._progress = progress

    def _advance(self, key: Any, result: Any, *_: Any) -> None:
        if isinstance(result, ShardRecord):
            self._progress.advance(len(result.images) + len(result.failed))
