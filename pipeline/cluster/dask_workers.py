"""Runs shard tasks on Dask workers: local processes or an existing cluster, one shard each."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, Queue
from typing import Any

import dask.config
import torch
from distributed import Client, Future, Nanny, Scheduler, SpecCluster, get_worker
from distributed.comm.addressing import get_address_host_port
from distributed.scheduler import KilledWorker

from pipeline.cluster.modes import Task, TaskType
from pipeline.utils.devices import resolve_device
from pipeline.utils.errors import InputError
from pipeline.utils.logging import get_logger
from pipeline.utils.progress import Progress
from pipeline.utils.signals import defer_interrupts
from pipeline.utils.text import count_noun

logger = get_logger(__name__)

# Seconds to wait for a finished shard before the workers are counted again.
POLL_TIMEOUT = 1.0
# Seconds without a worker process on this machine after which none is expected any more.
START_TIMEOUT = 30.0
# Dask sets a level on each of these loggers, so that silencing the parent alone has no effect.
DASK_LOGGERS = ("distributed", "distributed.client", "distributed.gc")


@dataclass(frozen=True)
class Workers:
    """A Dask cluster whose workers may not all have started yet.

    Attributes:
        client: connected to the cluster's scheduler.
        monitor: called with the number of unfinished shards; raises `InputError` when no worker
            can be expected any more.
    """

    client: Client
    monitor: Callable[[int], None] = lambda remaining: None


@contextmanager
def silence_dask() -> Iterator[None]:
    """Suppresses Dask's log messages; errors that matter are raised as one-line `InputError`s."""
    loggers = [logging.getLogger(name) for name in DASK_LOGGERS]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def dispatch(
    tasks: Sequence[TaskType],
    make: Callable[[TaskType, Callable[[int], None]], Any],
    workers: Workers,
    progress: Progress,
    threads: int | None = None,
) -> list[Any]:
    """Makes shards on the workers, which must see all files under the same paths.

    At most one shard per worker is submitted at a time, so that a worker that dies loses one
    shard only; Dask then gives this shard to another worker.

    Args:
        tasks, make: see `run_tasks`.
        workers: the workers.
        progress: counts images.
        threads: see `WorkerSettings`.

    Returns:
        The records of the shards, in the order in which they were finished.

    Raises:
        InputError: the input of a shard is bad, several workers died while they made the same
            shard, or the scheduler is lost.
    """
    waiting = deque(tasks)
    running: dict[Future, TaskType] = {}
    done: Queue[Future] = Queue()
    records = []
    try:
        while waiting or running:
            workers.monitor(len(waiting) + len(running))
            num_workers = _num_workers(workers.client)
            while waiting and len(running) < num_workers:
                task = waiting.popleft()
                future = workers.client.submit(run_task, task, make, threads, pure=False)
                running[future] = task
                future.add_done_callback(done.put)
            progress.update(0, note=f"{num_workers} workers")
            with suppress(Empty):
                future = done.get(timeout=POLL_TIMEOUT)
                task = running.pop(future)
                records.append(_get_record(future, task))
                # Here, because messages of other processes do not reach this command's logger.
                logger.debug(str(records[-1]))
                progress.update(len(task))
    finally:
        with suppress(Exception):
            workers.client.cancel(list(running), force=True)
    return records


def _num_workers(client: Client) -> int:
    try:
        return len(client.nthreads())
    except OSError:
        raise _scheduler_lost_error() from None


def _scheduler_lost_error() -> InputError:
    return InputError(
        "--scheduler: lost the connection to the Dask scheduler; run the same command to resume"
    )


# A worker with several Dask threads gets the shards of a dead one in addition to its own.
_shard_lock = threading.Lock()


def run_task(
    task: TaskType, make: Callable[[TaskType, Callable[[int], None]], Any], threads: int | None
) -> Any:
    """Makes a shard within a Dask worker, one at a time.

    Without a number of threads, torch uses as many as the worker has Dask threads, which is the
    worker's share of the machine's cores.
    """
    with _shard_lock:
        torch.set_num_threads(threads or get_worker().state.nthreads)
        return make(task, lambda count: None)


def _get_record(future: Future, task: Task) -> Any:
    try:
        return future.result()
    except KilledWorker as error:
        raise InputError(
            f"{task.name}: {error.allowed_failures + 1} workers died one after the other while"
            f" they made this shard, the last at {error.last_worker.address}; they may be out of"
            " memory"
        ) from None
    except CancelledError:
        raise _scheduler_lost_error() from None
    except ModuleNotFoundError as error:
        raise InputError(
            f"--scheduler: expected workers with this project installed, found {error}"
        ) from None


LOCALHOST = "127.0.0.1"
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


@contextmanager
def local_workers(count: int, threads: int | None, device: str) -> Iterator[Workers]:
    """Starts worker processes on this machine, and ends them when the context ends.

    They have `threads` CPU threads each, or the libraries' defaults; with a `device` "auto" or
    "cuda" the GPUs are distributed over them.
    """
    workers = {
        number: {
            "cls": Nanny,
            "options": {
                "nthreads": 1,
                "host": LOCALHOST,
                # Without a limit: Dask cannot spill models to disk and would pause the worker.
                "memory_limit": 0,
                "silence_logs": logging.CRITICAL,
                "env": {
                    **({name: str(threads) for name in THREAD_VARIABLES} if threads else {}),
                    **gpu_environment(number, device),
                },
            },
        }
        for number in range(count)
    }
    # By default Dask limits numeric libraries to one thread, in this process's environment too.
    with (
        dask.config.set({"distributed.nanny.pre-spawn-environ": {}}),
        open_cluster(workers, host=LOCALHOST) as (cluster, client),
    ):
        try:
            yield Workers(client, _monitor_processes(cluster))
        finally:
            _kill_workers(cluster)


def _monitor_processes(cluster: SpecCluster) -> Callable[[int], None]:
    """A monitor for worker processes of this machine, which Dask restarts when they die.

    Dask gives a worker up if its restart fails. Without a limit, the command would wait for ever.
    """
    last_seen = time.monotonic()

    def monitor(remaining: int) -> None:
        nonlocal last_seen
        if any(nanny.pid is not None for nanny in cluster.workers.values()):
            last_seen = time.monotonic()
        elif time.monotonic() - last_seen > START_TIMEOUT:
            raise InputError(
                f"all {len(cluster.workers)} worker processes ended and could not be"
                f" started again, with {count_noun(remaining, 'shards')} left; run the same command"
                " to resume"
            )

    return monitor


CLOSE_TIMEOUT = 15.0


@contextmanager
def open_cluster(workers: dict[int, Any], **options: Any) -> Iterator[tuple[SpecCluster, Client]]:
    """Starts a Dask scheduler in this process, with `options`, and the specified workers."""
    options = {"port": 0, "dashboard": False, "dashboard_address": f"{LOCALHOST}:0", **options}
    scheduler = {"cls": Scheduler, "options": options}
    # Ctrl-C must reach this process only: threads and processes inherit the blocked signal.
    with defer_interrupts():
        cluster = SpecCluster(workers, scheduler, silence_logs=logging.CRITICAL)
    try:
        with Client(cluster, set_as_default=False) as client:
            yield cluster, client
    finally:
        # After workers died, some versions of Dask wait for ever for their restart.
        with suppress(TimeoutError, asyncio.TimeoutError):
            cluster.close(timeout=CLOSE_TIMEOUT)


def _kill_workers(cluster: SpecCluster) -> None:
    """Kills the workers, because closing the cluster would wait for their unfinished shards."""
    for nanny in cluster.workers.values():
        nanny.close_gracefully()
        if nanny.pid is not None:
            with suppress(ProcessLookupError):
                os.kill(nanny.pid, signal.SIGKILL)


def gpu_environment(number: int, device: str) -> dict[str, str]:
    """Environment variables that restrict a worker to one GPU; the workers take them in turn.

    With the CPU or a numbered GPU as `device` there are none.
    """
    if device not in ("auto", "cuda") or not torch.cuda.device_count():
        return {}
    visible = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(
        str(index) for index in range(torch.cuda.device_count())
    )
    gpus = [gpu.strip() for gpu in visible.split(",")][: torch.cuda.device_count()]
    return {"CUDA_VISIBLE_DEVICES": gpus[number % len(gpus)]}


CONNECT_TIMEOUT = 30.0


@contextmanager
def running_workers(address: str) -> Iterator[Workers]:
    """Connects to an existing Dask cluster by the address of its scheduler, or its scheduler file.

    Raises:
        InputError: no scheduler can be reached at the address.
    """
    try:
        client = Client(_resolve_address(address), timeout=CONNECT_TIMEOUT, set_as_default=False)
    except (OSError, ValueError, TypeError) as error:
        raise InputError(
            f"--scheduler: expected the address or file of a running Dask scheduler, found"
            f" {address} ({' '.join(str(error).split())[:160]})"
        ) from None
    with client:
        yield Workers(client)


def get_workers_device(address: str) -> str:
    """The device type on a running cluster's workers, "cpu" or "cuda"; waits for the first one.

    Raises:
        InputError: no scheduler can be reached at the address.
    """
    with silence_dask(), running_workers(address) as workers:
        if not workers.client.nthreads():
            logger.info(f"{address}: waiting for the cluster's first worker")
            workers.client.wait_for_workers(1)
        return workers.client.submit(_detect_device, pure=False).result()


def _detect_device() -> str:
    return resolve_device("auto").type


def _resolve_address(text: str) -> str:
    """The address itself, or the one in the scheduler file.

    Raises:
        ValueError: the file contains no address, or the address has another form.
    """
    if Path(text).is_file():
        found = json.loads(Path(text).read_text())
        if not isinstance(found, dict) or not isinstance(found.get("address"), str):
            raise ValueError("the file contains no address")
        text = found["address"]
    # Checked here, because closing a client that never connected takes a minute.
    get_address_host_port(text)
    return text
