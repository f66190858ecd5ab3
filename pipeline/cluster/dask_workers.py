"""Runs shard tasks on Dask workers: local processes or an existing cluster, one shard each."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, Queue
from statistics import median
from typing import Any

import dask.config
import torch
from distributed import Client, Future, Nanny, Scheduler, SpecCluster, get_worker
from distributed.comm.addressing import get_address_host_port
from distributed.scheduler import KilledWorker
from distributed.utils import format_dashboard_link

from pipeline.cluster.modes import LOCALHOST, parse_dashboard
from pipeline.cluster.tasks import Task, TaskQueue, TaskType
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
# A shard that takes so many times as long as the median of the others is made by a second worker.
LATE_FACTOR = 1.5
# Number of workers that may die over one shard, and seconds to wait for the record of a shard.
MAX_DEATHS, RESULT_TIMEOUT = 4, 30.0
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
    queue: TaskQueue[TaskType],
    make: Callable[[TaskType, Callable[[int], None]], Any],
    workers: Workers,
    progress: Progress,
    threads: int | None = None,
) -> list[Any]:
    """Makes shards on the workers, which must see all files under the same paths.

    Every worker gets one shard at a time, and the next one when that is finished. So a slow worker
    makes fewer shards, and one that dies loses one shard only, which another worker makes. When
    none is left, free workers also make those that take others very long (`find_late_task`), and
    the first result counts.

    Args:
        queue, make: see `run_tasks`.
        workers: the workers.
        progress: counts images.
        threads: see `WorkerSettings`.

    Returns:
        The records of the shards, in the order in which they were finished.

    Raises:
        InputError: the input of a shard is bad, several workers died while they made the same
            shard, or the scheduler is lost.
    """
    # Futures that have not ended, and the numbers of unfinished tasks among them.
    running: dict[Future, _Running] = {}
    unfinished: set[int] = set()
    # Numbers of tasks whose worker has died, and how many workers have died over each task.
    lost: list[int] = []
    deaths: Counter[int] = Counter()
    durations: list[float] = []
    done: Queue[Future] = Queue()

    def submit(row: int, worker: str) -> None:
        # Dask itself would take any worker with a free thread, which may be making a shard, if
        # there are 20 or more; and it forgets tasks that may run elsewhere when no worker is left.
        task = queue.tasks[row].absolute()
        future = workers.client.submit(
            run_task, task, make, threads, pure=False, workers=[worker], allow_other_workers=False
        )
        running[future] = _Running(row, worker, time.monotonic())
        unfinished.add(row)
        future.add_done_callback(done.put)

    def give_up(future: Future) -> None:
        """Lets another worker do a task, unless one does it already."""
        ended = running.pop(future)
        workers.client.cancel([future], force=True)
        if ended.row not in unfinished or any(each.row == ended.row for each in running.values()):
            return
        deaths[ended.row] += 1
        if deaths[ended.row] == MAX_DEATHS:
            raise _deaths_error(queue.tasks[ended.row], MAX_DEATHS, ended.worker)
        lost.append(ended.row)

    try:
        while len(queue) or unfinished:
            workers.monitor(len(queue) + len(unfinished))
            alive = _get_workers(workers.client)
            for future in [one for one in running if running[one].worker not in alive]:
                give_up(future)
            free = alive - {each.worker for each in running.values()}
            while free and (row := lost.pop() if lost else queue.pop(progress)) is not None:
                submit(row, free.pop())
            if free:
                known = [each for each in running.values() if each.row in unfinished]
                late = find_late_task(known, durations, time.monotonic())
                if late is not None:
                    submit(late, free.pop())
            progress.update(0, note=f"{len(alive)} workers")
            with suppress(Empty):
                future = done.get(timeout=POLL_TIMEOUT)
                # Not the second result of a task that two workers did.
                if future in running and running[future].row in unfinished:
                    ended = running[future]
                    try:
                        record = _get_record(future, queue.tasks[ended.row])
                    except asyncio.TimeoutError:
                        # The task's own error, of a file system, may be of this class too.
                        if future.status == "error":
                            raise
                        give_up(future)
                        continue
                    unfinished.remove(ended.row)
                    durations.append(time.monotonic() - ended.start)
                    if queue.put(ended.row, record):
                        progress.update(len(queue.tasks[ended.row]))
                running.pop(future, None)
    finally:
        with suppress(Exception):
            workers.client.cancel(list(running), force=True)
    return queue.records


@dataclass(frozen=True)
class _Running:
    """A submitted task: its number in the queue, the worker it was sent to, and when (seconds)."""

    row: int
    worker: str
    start: float


def find_late_task(
    running: Collection[_Running], durations: Sequence[float], now: float
) -> int | None:
    """The number of the task that has run longest, if it takes more than `LATE_FACTOR` times as
    long as most of the finished ones did, and only one worker does it; otherwise None."""
    copies = Counter(each.row for each in running)
    single = [each for each in running if copies[each.row] == 1]
    if not single or not durations:
        return None
    longest = min(single, key=lambda each: each.start)
    return longest.row if now - longest.start > LATE_FACTOR * median(durations) else None


def _get_workers(client: Client) -> set[str]:
    """Addresses of the workers."""
    try:
        return set(client.nthreads())
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
    """The record that a task returned.

    Raises:
        TimeoutError: its worker, which holds the record, has died since.
        InputError: the task has failed.
    """
    try:
        return future.result(timeout=RESULT_TIMEOUT)
    except KilledWorker as error:
        raise _deaths_error(task, error.allowed_failures + 1, error.last_worker.address) from None
    except CancelledError:
        raise _scheduler_lost_error() from None
    except ModuleNotFoundError as error:
        raise InputError(
            f"--scheduler: expected workers with this project installed, found {error}"
        ) from None


def _deaths_error(task: Task, count: int, worker: str) -> InputError:
    return InputError(
        f"{task.name}: {count} workers died one after the other while they made this shard, the"
        f" last at {worker}; they may be out of memory"
    )


THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


@contextmanager
def local_workers(
    count: int, threads: int | None, device: str, dashboard: str | None = None
) -> Iterator[Workers]:
    """Starts worker processes on this machine, and ends them when the context ends.

    They have `threads` CPU threads each, or the libraries' defaults; with a `device` "auto" or
    "cuda" the GPUs are distributed over them. For `dashboard` see `parse_dashboard`.
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
    settings = {
        # By default Dask limits numeric libraries to one thread, in this process's environment too.
        "distributed.nanny.pre-spawn-environ": {},
        # By default Dask gives up a worker whose new process is not ready after 15 seconds, in
        # which a busy machine may not import the libraries; `_monitor_processes` waits instead.
        "distributed.deploy.lost-worker-timeout": "1h",
    }
    with (
        dask.config.set(settings),
        open_cluster(workers, dashboard, host=LOCALHOST) as (cluster, client),
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
DASHBOARD_PORT = 8787


@contextmanager
def open_cluster(
    workers: dict[int, Any], dashboard: str | None = None, **options: Any
) -> Iterator[tuple[SpecCluster, Client]]:
    """Starts a Dask scheduler in this process, with `options`, and the specified workers.

    Args:
        workers: the workers, as `SpecCluster` takes them.
        dashboard: see `parse_dashboard`; None starts none.
        options: of the scheduler.

    Raises:
        InputError: the dashboard's address cannot be used.
    """
    host, port = LOCALHOST, 0
    if dashboard is not None:
        host, port = _free_address(*parse_dashboard(dashboard))
    address = {"dashboard": dashboard is not None, "dashboard_address": f"{host}:{port}"}
    scheduler = {"cls": Scheduler, "options": {"port": 0, **address, **options}}
    # Ctrl-C must reach this process only: threads and processes inherit the blocked signal.
    with defer_interrupts():
        cluster = SpecCluster(workers, scheduler, silence_logs=logging.CRITICAL)
    try:
        with Client(cluster, set_as_default=False) as client:
            if dashboard is not None:
                # On all addresses, links need one of them.
                name = socket.gethostname() if host == "0.0.0.0" else host
                assert cluster.scheduler is not None
                port = cluster.scheduler.http_server.port
                logger.info(f"dashboard: {format_dashboard_link(name, port)}")
            yield cluster, client
    finally:
        # After workers died, some versions of Dask wait for ever for their restart.
        with suppress(TimeoutError, asyncio.TimeoutError):
            cluster.close(timeout=CLOSE_TIMEOUT)


def _free_address(host: str, port: int | None) -> tuple[str, int]:
    """The address of a dashboard; without a port Dask's usual one, or another where it is in use.

    Dask itself would take another port than the given one, with a warning of three lines.

    Raises:
        InputError: the port is in use, or the host is not this machine.
    """
    try:
        with socket.create_server((host, DASHBOARD_PORT if port is None else port)) as server:
            return host, server.getsockname()[1]
    except OSError as error:
        if port is None:
            return host, 0
        raise InputError(
            f"--dashboard: expected a free port of this machine, found {host}:{port}"
            f" ({error.strerror})"
        ) from None


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
def running_workers(address: str, show_dashboard: bool = False) -> Iterator[Workers]:
    """Connects to an existing Dask cluster by the address of its scheduler, or its scheduler file.

    With `show_dashboard`, the address of the cluster's dashboard is reported.

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
        if show_dashboard:
            logger.info(f"dashboard: {client.dashboard_link}")
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
