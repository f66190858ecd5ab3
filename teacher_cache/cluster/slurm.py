"""Dask workers in SLURM jobs, through dask-jobqueue; jobs that end early are replaced."""

from __future__ import annotations

import logging
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dask.config
from dask.utils import parse_bytes
from distributed import Adaptive, Client, Status

from pipeline.utils.errors import InputError
from pipeline.utils.signals import defer_interrupts, restore_interrupt_handler
from teacher_cache.cluster.dask_workers import Workers
from teacher_cache.cluster.modes import SlurmJobs, parse_walltime, worker_lifetime_options

# Importing dask_jobqueue installs a SIGINT handler that exits with status 0.
with restore_interrupt_handler():
    from dask_jobqueue.slurm import SLURMCluster, SLURMJob, slurm_format_bytes_ceil

# Seconds between two queries of SLURM's queue.
QUEUE_POLL_INTERVAL = 15.0
# Number of jobs in a row that may end before their worker connects, in addition to one failure of
# each of the requested jobs.
MAX_LOST_JOBS = 3
LOG_FOLDER = "logs"
# For jobs with the site's default cores and time limit, which only the job itself can look up.
JOB_CORES = "${SLURM_CPUS_PER_TASK:-${SLURM_CPUS_ON_NODE:-$(nproc)}}"
JOB_LIFETIME_CODE = "from teacher_cache.cluster.modes import print_job_lifetime as p; p()"
MIN_MEMORY = 1 << 20


def job_script(mode: SlurmJobs, folder: Path) -> str:
    """The batch script that is submitted for every worker; needs no SLURM and writes no files.

    Args:
        mode: settings of the jobs.
        folder: the cache folder.

    Raises:
        InputError: walltime or memory has another form than SLURM's.
    """
    address = "tcp://<scheduler>"
    return SLURMJob(address, name="<name>", **_job_options(mode, folder)).job_script()


def check_slurm(mode: SlurmJobs) -> None:
    """Checks what can be checked without submitting a job.

    Raises:
        InputError: SLURM's commands are not installed, or a job setting is invalid.
    """
    _job_options(mode, Path())
    for command in ("sbatch", "squeue", "scancel"):
        if shutil.which(command) is None:
            raise InputError(
                f"--slurm: expected SLURM's {command} on this machine, found none (--dry-run"
                " prints the job script)"
            )


@contextmanager
def slurm_workers(mode: SlurmJobs, folder: Path) -> Iterator[Workers]:
    """Submits jobs to SLURM, and cancels those that remain when the context ends.

    Args:
        mode: settings of the jobs.
        folder: the cache folder.

    Raises:
        InputError: by `Workers.monitor`, if SLURM rejects the jobs, or they keep ending before
            their workers connect.
    """
    log_folder(mode, folder).mkdir(parents=True, exist_ok=True)
    options = dask.config.get("jobqueue.slurm.scheduler-options", {})
    refusals: list[str] = []
    with defer_interrupts():
        cluster = SLURMCluster(
            job_cls=_job_class(refusals),
            silence_logs=logging.CRITICAL,
            scheduler_options={"dashboard": False, "dashboard_address": "127.0.0.1:0", **options},
            **_job_options(mode, folder),
        )
    with cluster, Client(cluster, set_as_default=False) as client:
        scaling = cluster.adapt(Adaptive=_ShardScaling, minimum_jobs=0, maximum_jobs=mode.jobs)
        jobs = _JobMonitor(cluster, mode, log_folder(mode, folder), refusals)

        def monitor(remaining: int) -> None:
            scaling.remaining = remaining
            jobs.poll()

        yield Workers(client, monitor)


def log_folder(mode: SlurmJobs, folder: Path) -> Path:
    """Absolute path of the folder of the jobs' logs."""
    return (mode.log_folder or folder / LOG_FOLDER).absolute()


class _ShardScaling(Adaptive):
    """Requests no more jobs than there are unfinished shards, so that none is left idle.

    Attributes:
        remaining: number of unfinished shards.
    """

    remaining = 0

    async def target(self) -> int:
        return self.remaining


class _JobMonitor:
    """Finds jobs that SLURM rejected or that ended before their worker connected.

    Dask replaces workers that were connected once; it never notices that a job ended before that.
    """

    def __init__(
        self, cluster: SLURMCluster, mode: SlurmJobs, logs: Path, refusals: list[str]
    ) -> None:
        self._cluster, self._logs, self._refusals = cluster, logs, refusals
        self._max_lost = MAX_LOST_JOBS + mode.jobs
        self._num_lost = 0
        self._connected: set[str] = set()
        self._last_poll = time.monotonic()

    def poll(self) -> None:
        """Queries SLURM's queue, at most once per `QUEUE_POLL_INTERVAL` seconds.

        Raises:
            InputError: SLURM rejected all jobs, or too many jobs in a row were lost.
        """
        if not self._refusals and time.monotonic() - self._last_poll < QUEUE_POLL_INTERVAL:
            return
        self._last_poll = time.monotonic()
        submitted = {name: job.job_id for name, job in list(self._cluster.workers.items())}
        queued = _queued_jobs()
        if queued is None:
            return
        ended = {
            name: job for name, job in submitted.items() if job not in queued | self._connected
        }
        refusals, self._refusals[:] = list(self._refusals), []
        connected, num_lost = self._cluster.sync(_discard_lost_jobs, self._cluster, ended)
        self._connected |= {submitted[name] for name in connected if name in submitted}
        self._num_lost = 0 if connected and not num_lost else self._num_lost + num_lost
        all_refused = refusals and not connected and num_lost == len(submitted)
        if all_refused or self._num_lost > self._max_lost:
            raise self._no_workers_error(refusals)

    def _no_workers_error(self, refusals: list[str]) -> InputError:
        if refusals:
            return InputError(f"--slurm: expected a job that SLURM accepts, found {refusals[-1]}")
        return InputError(
            f"--slurm: {self._num_lost} jobs ended before their workers connected; their logs are"
            f" in {self._logs}"
        )


async def _discard_lost_jobs(cluster: Any, ended: dict[str, str]) -> tuple[set[str], int]:
    """Removes jobs that ended without a worker from the cluster, which then replaces them.

    Args:
        cluster: the `SLURMCluster` that submitted the jobs.
        ended: ids of the jobs that are no longer queued, by name.

    Returns:
        The names of jobs with a connected worker, and the number of removed jobs.
    """
    connected = {worker.name for worker in cluster.scheduler.workers.values()}
    num_lost = 0
    for name, job_id in ended.items():
        job = cluster.workers.get(name)
        if job is not None and job.job_id == job_id and name not in connected:
            del cluster.workers[name]
            await job.close()
            num_lost += 1
    return connected, num_lost


def _queued_jobs() -> set[str] | None:
    """Ids of the user's pending and running jobs; None if `squeue` fails."""
    command = ["squeue", "--noheader", "--format=%i", f"--user={os.getuid()}"]
    result = subprocess.run(command, capture_output=True, text=True)
    return set(result.stdout.split()) if result.returncode == 0 else None


def _job_class(refusals: list[str]) -> Any:
    class Job(SLURMJob):
        """Collects sbatch's error messages, which the cluster would only log."""

        async def start(self) -> None:
            try:
                await super().start()
            except (OSError, RuntimeError, ValueError) as error:
                # A running job without an id is then discarded like one that ended early.
                lines = [line for line in str(error).splitlines() if "error:" in line]
                refusals.append(" ".join((lines or [str(error)])[0].split()))
                self.status = Status.running

        async def close(self) -> None:
            await super().close()
            # dask-jobqueue does not set the status, for which the cluster waits.
            self.status = Status.closed

    return Job


def _job_options(mode: SlurmJobs, folder: Path) -> dict[str, Any]:
    directives = [f"-o {log_folder(mode, folder)}/%j.log"]
    if mode.cores is not None:
        directives.append(f"--cpus-per-task={mode.cores}")
    if mode.memory is not None:
        directives.append(f"--mem={_slurm_memory(mode.memory)}")
    if mode.walltime is not None:
        lifetime = worker_lifetime_options(parse_walltime(mode.walltime))
        directives.append(f"-t {mode.walltime}")
    if mode.gres is not None:
        directives.append(f"--gres={mode.gres}")
    cores = mode.cores or JOB_CORES
    threads = " ".join(f"{name}_NUM_THREADS={cores}" for name in ("OMP", "MKL", "OPENBLAS"))
    prologue = [f"export {threads}", *mode.prologue]
    if mode.walltime is None:
        lifetime = "$EOID_LIFETIME"
        prologue.append(f"EOID_LIFETIME=$({shlex.quote(sys.executable)} -c '{JOB_LIFETIME_CODE}')")
    # One Dask thread per worker, so that it makes one shard at a time; torch uses the job's cores.
    return {
        "job_name": "eoid-cache",
        "cores": 1,
        "processes": 1,
        # Dask's own lines are skipped, because these settings may be left to the site or be given
        # in another form by a directive.
        "memory": "1GB",
        "job_directives_skip": ["--cpus-per-task=", "--mem=", "-t "],
        "queue": mode.queue,
        "account": mode.account,
        "interface": mode.interface,
        "job_extra_directives": [*directives, *mode.directives],
        "job_script_prologue": prologue,
        # SLURM enforces the job's memory limit; Dask would pause a worker that holds models.
        "worker_extra_args": [lifetime, "--memory-limit", "0"],
    }


def _slurm_memory(text: str) -> str:
    """A memory size in SLURM's form; 0 means all memory of a machine.

    Raises:
        InputError: not a size, or less than 1 MiB, which is taken for a forgotten unit.
    """
    try:
        num_bytes = parse_bytes(text)
    except (ValueError, OverflowError):
        num_bytes = -1
    if num_bytes == 0 and not set("123456789").intersection(text) and text.strip():
        return "0"
    if num_bytes < MIN_MEMORY:
        raise InputError(
            f"--memory: expected a size such as 16GB, found {text.strip() or 'nothing'} (0 requests"
            " all memory of a machine, none leaves it to the site)"
        )
    return slurm_format_bytes_ceil(num_bytes)
