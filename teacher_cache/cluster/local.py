"""Workers of this machine: one process each, replaced when it dies, gone with the builder."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import dask.config
import torch
from distributed import Client, Nanny, Scheduler, SpecCluster

from teacher_cache.cluster.sharing import Crew
from teacher_cache.interrupts import interrupts_waiting

HERE = "127.0.0.1"
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


@contextmanager
def local_crew(count: int, threads: int | None, device: str) -> Iterator[Crew]:
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
                "host": HERE,
                # The models are not Dask's to spill or to pause.
                "memory_limit": 0,
                "silence_logs": logging.CRITICAL,
                "env": {
                    **({name: str(threads) for name in THREADS} if threads else {}),
                    **pinned(number, device),
                },
            },
        }
        for number in range(count)
    }
    options = {"host": HERE, "port": 0, "dashboard": False, "dashboard_address": f"{HERE}:0"}
    scheduler = {"cls": Scheduler, "options": options}
    # Dask would give numeric libraries a single thread, in this process's environment too.
    with dask.config.set({"distributed.nanny.pre-spawn-environ": {}}):
        # Ctrl-C is the builder's to answer: threads and processes that start here never hear it.
        with interrupts_waiting():
            cluster = SpecCluster(workers, scheduler, silence_logs=logging.CRITICAL)
        with cluster, Client(cluster, set_as_default=False) as client:
            try:
                yield Crew(client, lambda left: None)
            except BaseException:
                _end_at_once(cluster)
                raise


def _end_at_once(cluster: SpecCluster) -> None:
    """Kills workers; the cluster would wait for the shards that they are making."""
    for nanny in cluster.workers.values():
        nanny.close_gracefully()
        if nanny.pid is not None:
            with suppress(ProcessLookupError):
                os.kill(nanny.pid, signal.SIGKILL)


def pinned(number: int, device: str) -> dict[str, str]:
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
