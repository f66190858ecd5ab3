"""Gives shards to Dask workers, one at a time to each, and takes their records."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from queue import Empty, Queue

from distributed import Client, Future, get_worker
from distributed.scheduler import KilledWorker

from pipeline.errors import InputError
from pipeline.progress import Progress
from teacher_cache.shards import ShardTask, make_shard
from teacher_cache.writer import ShardRecord

# Seconds after which somebody looks whether workers came or went.
PATIENCE = 1.0
# Those to which Dask gives a level of their own.
LOGGERS = ("distributed", "distributed.client", "distributed.gc")


@dataclass(frozen=True)
class Crew:
    """Workers, some of which may still be on their way.

    Attributes:
        client: speaks to their scheduler.
        look_after: told from time to time how many shards are left; raises `InputError` where no
            worker will come any more.
    """

    client: Client
    look_after: Callable[[int], None]


@contextmanager
def quiet_dask() -> Iterator[None]:
    """Keeps Dask's log to itself: what people should know is said here, in one line."""
    loggers = [logging.getLogger(name) for name in LOGGERS]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def share_out(tasks: Sequence[ShardTask], crew: Crew, progress: Progress) -> list[ShardRecord]:
    """Makes shards with a crew.

    No more shards are given out than there are workers, so that a worker that dies takes one
    shard with it; Dask gives that one to another worker.

    Args:
        tasks: the shards, of files that the workers see under the same names.
        crew: who makes them.
        progress: moved on by every finished shard.

    Raises:
        InputError: a shard could not be made from what the user gave, or every worker died over
            it, or the crew is lost.
    """
    waiting = deque(tasks)
    running: dict[Future, ShardTask] = {}
    done: Queue[Future] = Queue()
    records = []
    try:
        while waiting or running:
            crew.look_after(len(waiting) + len(running))
            workers = _num_workers(crew.client)
            while waiting and len(running) < workers:
                task = waiting.popleft()
                future = crew.client.submit(work, task, pure=False)
                running[future] = task
                future.add_done_callback(done.put)
            progress.advance(0, note=f"{workers} workers")
            with suppress(Empty):
                future = done.get(timeout=PATIENCE)
                task = running.pop(future)
                records.append(_record(future, task))
                progress.advance(len(task))
    finally:
        with suppress(Exception):
            crew.client.cancel(list(running), force=True)
    return records


def _num_workers(client: Client) -> int:
    try:
        return len(client.nthreads())
    except OSError:
        raise _lost() from None


def _lost() -> InputError:
    return InputError("--scheduler: the Dask scheduler is gone; the same command goes on from here")


def work(task: ShardTask) -> ShardRecord:
    """Makes a shard in a worker's process; a worker's Dask threads are its share of the cores."""
    if task.sources.threads is None:
        sources = replace(task.sources, threads=get_worker().state.nthreads)
        task = replace(task, sources=sources)
    return make_shard(task)


def _record(future: Future, task: ShardTask) -> ShardRecord:
    try:
        return future.result()
    except KilledWorker as error:
        raise InputError(
            f"{task.path}: {error.allowed_failures + 1} workers died one after the other while"
            f" they made this shard, the last at {error.last_worker.address}; do they lack memory?"
        ) from None
    except CancelledError:
        raise _lost() from None
    except ModuleNotFoundError as error:
        raise InputError(
            f"--scheduler: expected workers with this project installed, found {error}"
        ) from None
