"""Workers in jobs of SLURM, through dask-jobqueue. Jobs that end too early are replaced."""

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

# Its import makes Ctrl-C end the program as if it had done its work.
with restore_interrupt_handler():
    from dask_jobqueue.slurm import SLURMCluster, SLURMJob, slurm_format_bytes_ceil

# Seconds between two looks at SLURM's queue.
QUEUE_POLL_INTERVAL = 15.0
# So many jobs in a row may end before a worker reports from them, beside those asked for.
MAX_LOST_JOBS = 3
LOG_FOLDER = "logs"
# In a job whose cores and time are the site's own: what the job itself knows of them.
JOB_CORES = "${SLURM_CPUS_PER_TASK:-${SLURM_CPUS_ON_NODE:-$(nproc)}}"
JOB_LIFETIME_CODE = "from teacher_cache.cluster.modes import print_job_lifetime as p; p()"
MIN_MEMORY = 1 << 20


def job_script(mode: SlurmJobs, folder: Path) -> str:
    """What would be submitted for every worker; works without SLURM and leaves nothing behind.

    Args:
        mode: of the build.
        folder: the cache.

    Raises:
        InputError: walltime or memory cannot be read.
    """
    address = "tcp://<scheduler>"
    return SLURMJob(address, name="<name>", **_job_options(mode, folder)).job_script()


def check_slurm(mode: SlurmJobs) -> None:
    """Finds out early what can be known of jobs without asking for one.

    Raises:
        InputError: SLURM is not here, or an option cannot be.
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
    """Asks SLURM for jobs, and cancels them at the end.

    Args:
        mode: which jobs.
        folder: the cache.

    Raises:
        InputError: SLURM refuses the jobs, or they end before they begin.
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
    """Where jobs write their logs."""
    return (mode.log_folder or folder / LOG_FOLDER).absolute()


class _ShardScaling(Adaptive):
    """As many jobs as shards are left: the last ones keep no idle machines.

    Attributes:
        remaining: number of unfinished shards.
    """

    remaining = 0

    async def target(self) -> int:
        return self.remaining


class _JobMonitor:
    """Notices jobs that SLURM refuses, or that end before their worker reports.

    Dask has workers replaced that it has seen; of others it never learns what became of them.
    """

    def __init__(
        self, cluster: SLURMCluster, mode: SlurmJobs, logs: Path, refusals: list[str]
    ) -> None:
        self._cluster, self._logs, self._refusals = cluster, logs, refusals
        self._max_lost = MAX_LOST_JOBS + mode.jobs
        self._lost = 0
        self._seen: set[str] = set()
        self._last_poll = time.monotonic()

    def poll(self) -> None:
        """Looks, if it is time to.

        Raises:
            InputError: there is no hope of workers.
        """
        if not self._refusals and time.monotonic() - self._last_poll < QUEUE_POLL_INTERVAL:
            return
        self._last_poll = time.monotonic()
        submitted = {name: job.job_id for name, job in list(self._cluster.workers.items())}
        queued = _queued_jobs()
        if queued is None:
            return
        gone = {name: job for name, job in submitted.items() if job not in queued | self._seen}
        refused, self._refusals[:] = list(self._refusals), []
        reported, lost = self._cluster.sync(_discard_lost_jobs, self._cluster, gone)
        self._seen |= {submitted[name] for name in reported if name in submitted}
        self._lost = 0 if reported and not lost else self._lost + lost
        is_refused = refused and not reported and lost == len(submitted)
        if is_refused or self._lost > self._max_lost:
            raise self._no_workers_error(refused)

    def _no_workers_error(self, refused: list[str]) -> InputError:
        if refused:
            return InputError(f"--slurm: expected a job that SLURM takes, found {refused[-1]}")
        return InputError(
            f"--slurm: {self._lost} jobs ended before a worker reported from them; their logs are"
            f" in {self._logs}"
        )


async def _discard_lost_jobs(cluster: Any, gone: dict[str, str]) -> tuple[set[str], int]:
    """Forgets jobs that ended without a worker, so that the cluster's next look replaces them.

    Args:
        cluster: of the jobs.
        gone: ids by name of jobs that are no longer queued.

    Returns:
        The names of jobs with a worker, and how many jobs were forgotten.
    """
    reported = {worker.name for worker in cluster.scheduler.workers.values()}
    lost = 0
    for name, job_id in gone.items():
        job = cluster.workers.get(name)
        if job is not None and job.job_id == job_id and name not in reported:
            del cluster.workers[name]
            await job.close()
            lost += 1
    return reported, lost


def _queued_jobs() -> set[str] | None:
    """Ids of the user's pending and running jobs; None where SLURM does not answer."""
    command = ["squeue", "--noheader", "--format=%i", f"--user={os.getuid()}"]
    done = subprocess.run(command, capture_output=True, text=True)
    return set(done.stdout.split()) if done.returncode == 0 else None


def _job_class(refusals: list[str]) -> Any:
    class Job(SLURMJob):
        """Keeps what sbatch said when it refused; the cluster would only log it."""

        async def start(self) -> None:
            try:
                await super().start()
            except (OSError, RuntimeError, ValueError) as error:
                # A job without a number is forgotten like one that ended too early.
                lines = [line for line in str(error).splitlines() if "error:" in line]
                refusals.append(" ".join((lines or [str(error)])[0].split()))
                self.status = Status.running

        async def close(self) -> None:
            await super().close()
            # The cluster wants to see that its jobs ended; dask-jobqueue forgets to say so.
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
    # One Dask thread, so one shard at a time; the job's cores are torch's.
    return {
        "job_name": "eoid-cache",
        "cores": 1,
        "processes": 1,
        # Dask's own lines for these are left out: a job may do without, or its directives say more.
        "memory": "1GB",
        "job_directives_skip": ["--cpus-per-task=", "--mem=", "-t "],
        "queue": mode.queue,
        "account": mode.account,
        "interface": mode.interface,
        "job_extra_directives": [*directives, *mode.directives],
        "job_script_prologue": prologue,
        # SLURM guards the job's memory; Dask would pause a worker for its models.
        "worker_extra_args": [lifetime, "--memory-limit", "0"],
    }


def _slurm_memory(text: str) -> str:
    """A size in SLURM's form; 0, to SLURM, is all memory of a machine.

    Raises:
        InputError: no size, or one that must have been meant in another unit.
    """
    try:
        found = parse_bytes(text)
    except (ValueError, OverflowError):
        found = -1
    if found == 0 and not set("123456789").intersection(text) and text.strip():
        return "0"
    if found < MIN_MEMORY:
        raise InputError(
            f"--memory: expected a size such as 16GB, found {text.strip() or 'nothing'} (0 is all"
            " of a machine, none leaves memory to the site)"
        )
    return slurm_format_bytes_ceil(found)
