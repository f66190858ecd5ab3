"""Local or running Dask workers; dispatches one shard to each."""

from __future__ import annotations

import json
import logging
import os
import signal
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from queue import Empty, Queue

import dask.config
import torch
from distributed import Client, Future, Nanny, Scheduler, SpecCluster, get_worker
from distributed.comm.addressing import get_address_host_port
from distributed.scheduler import KilledWorker

from pipeline.utils.devices import resolve_device
from pipeline.utils.errors import InputError
from pipeline.utils.progress import Progress
from pipeline.utils.signals import defer_interrupts
from teacher_cache.extraction.task import ShardTask, make_shard
from teacher_cache.writer.shard import ShardRecord

# Seconds after which somebody looks whether workers came or went.
POLL_TIMEOUT = 1.0
# Those to which Dask gives a level of their own.
DASK_LOGGERS = ("distributed", "distributed.client", "distributed.gc")


@dataclass(frozen=True)
class Workers:
    """Workers, some of which may still be on their way.

    Attributes:
        client: speaks to their scheduler.
        monitor: called with the number of unfinished shards; raises `InputError` where no
            worker will come any more.
    """

    client: Client
    monitor: Callable[[int], None]


@contextmanager
def silence_dask() -> Iterator[None]:
    """Keeps Dask's log to itself: what people should know is said here, in one line."""
    loggers = [logging.getLogger(name) for name in DASK_LOGGERS]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def dispatch(tasks: Sequence[ShardTask], workers: Workers, progress: Progress) -> list[ShardRecord]:
    """Makes shards with the workers.

    No more shards are given out than there are workers, so that a worker that dies takes one
    shard with it; Dask gives that one to another worker.

    Args:
        tasks: the shards, of files that the workers see under the same names.
        workers: who makes them.
        progress: moved on by every finished shard.

    Raises:
        InputError: a shard could not be made from what the user gave, or every worker died over
            it, or the workers are lost.
    """
    waiting = deque(tasks)
    running: dict[Future, ShardTask] = {}
    done: Queue[Future] = Queue()
    records = []
    try:
        while waiting or running:
            workers.monitor(len(waiting) + len(running))
            num_workers = _num_workers(workers.client)
            while waiting and len(running) < num_workers:
                task = waiting.popleft()
                future = workers.client.submit(run_task, task, pure=False)
                running[future] = task
                future.add_done_callback(done.put)
            progress.update(0, note=f"{num_workers} workers")
            with suppress(Empty):
                future = done.get(timeout=POLL_TIMEOUT)
                task = running.pop(future)
                records.append(_get_record(future, task))
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
    return InputError("--scheduler: the Dask scheduler is gone; the same command goes on from here")


def run_task(task: ShardTask) -> ShardRecord:
    """Makes a shard in a worker's process; a worker's Dask threads are its share of the cores."""
    if task.inputs_config.threads is None:
        sources = replace(task.inputs_config, threads=get_worker().state.nthreads)
        task = replace(task, inputs_config=sources)
    return make_shard(task)


def _get_record(future: Future, task: ShardTask) -> ShardRecord:
    try:
        return future.result()
    except KilledWorker as error:
        raise InputError(
            f"{task.path}: {error.allowed_failures + 1} workers died one after the other while"
            f" they made this shard, the last at {error.last_worker.address}; do they lack memory?"
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
    """Starts processes and ends them.

    Args:
        count: how many.
        threads: of each on a CPU; None leaves them to the libraries.
        device: auto, cpu or cuda[:i].
    """
    workers = {
        number: {
            "cls": Nanny,
            "options": {
                "nthreads": 1,
                "host": LOCALHOST,
                # The models are not Dask's to spill or to pause.
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
    options = {
        "host": LOCALHOST,
        "port": 0,
        "dashboard": False,
        "dashboard_address": f"{LOCALHOST}:0",
    }
    scheduler = {"cls": Scheduler, "options": options}
    # Dask would give numeric libraries a single thread, in this process's environment too.
    with dask.config.set({"distributed.nanny.pre-spawn-environ": {}}):
        # Ctrl-C is the builder's to answer: threads and processes that start here never hear it.
        with defer_interrupts():
            cluster = SpecCluster(workers, scheduler, silence_logs=logging.CRITICAL)
        with cluster, Client(cluster, set_as_default=False) as client:
            try:
                yield Workers(client, lambda remaining: None)
            except BaseException:
                _kill_workers(cluster)
                raise


def _kill_workers(cluster: SpecCluster) -> None:
    """Kills workers; the cluster would wait for the shards that they are making."""
    for nanny in cluster.workers.values():
        nanny.close_gracefully()
        if nanny.pid is not None:
            with suppress(ProcessLookupError):
                os.kill(nanny.pid, signal.SIGKILL)


def gpu_environment(number: int, device: str) -> dict[str, str]:
    """The environment that keeps a worker to one GPU.

    Args:
        number: of the worker.
        device: auto, cpu or cuda[:i]; a GPU that is named is everybody's.
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
    """Connects, and leaves the cluster as it was.

    Args:
        address: host:port of the scheduler, or its scheduler file.

    Raises:
        InputError: no scheduler answers there.
    """
    try:
        client = Client(_resolve_address(address), timeout=CONNECT_TIMEOUT, set_as_default=False)
    except (OSError, ValueError, TypeError) as error:
        raise InputError(
            f"--scheduler: expected the address or file of a running Dask scheduler, found"
            f" {address} ({' '.join(str(error).split())[:160]})"
        ) from None
    with client:
        yield Workers(client, lambda remaining: None)


def get_workers_device(address: str, log: Callable[[str], None]) -> str:
    """Where models run on the cluster's workers: "cpu" or "cuda".

    Args:
        address: host:port of the scheduler, or its scheduler file.
        log: receives a message while no worker has connected.

    Raises:
        InputError: no scheduler answers there.
    """
    with running_workers(address) as workers:
        if not workers.client.nthreads():
            log(f"{address}: waiting for the cluster's first worker")
            workers.client.wait_for_workers(1)
        return workers.client.submit(_detect_device, pure=False).result()


def _detect_device() -> str:
    return resolve_device("auto").type


def _resolve_address(text: str) -> str:
    """The address itself, or what the scheduler's file says.

    Raises:
        ValueError: neither.
    """
    if Path(text).is_file():
        found = json.loads(Path(text).read_text())
        if not isinstance(found, dict) or not isinstance(found.get("address"), str):
            raise ValueError("the file names no address")
        text = found["address"]
    # A client that was never connected takes a minute to go.
    get_address_host_port(text)
    return text
