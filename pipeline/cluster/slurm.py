"""Dask workers in SLURM jobs; jobs that end before their worker connects are replaced."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from distributed import Client, Scheduler

from pipeline.cluster.dask_workers import Workers, open_cluster
from pipeline.cluster.modes import SlurmJobs, slurm_memory
from pipeline.utils.errors import InputError

# Seconds between two queries of SLURM's queue.
QUEUE_POLL_INTERVAL = 15.0
# Number of jobs in a row that may end before their worker connects, in addition to one failure of
# each of the requested jobs.
MAX_LOST_JOBS = 3
LOG_FOLDER = "logs"
THREADS_CODE = """\
cores=${SLURM_CPUS_PER_TASK:-${SLURM_CPUS_ON_NODE:-$(nproc)}}
export OMP_NUM_THREADS=$cores MKL_NUM_THREADS=$cores OPENBLAS_NUM_THREADS=$cores"""
# A worker stops by itself, so that its job does not reach its time limit in a shard: 5 % of the
# remaining time and at least two minutes before it, of a very short time a quarter. The stagger, a
# random deviation, keeps workers from stopping all at once. A busy SLURM controller may not answer
# the first query; the end of a job without a limit is NONE.
LIFETIME_CODE = """\
end=$SLURM_JOB_END_TIME date=
for pause in 0 5 25; do
    [ -n "$end$date" ] && break
    sleep "$pause"
    date=$(squeue -h -j "$SLURM_JOB_ID" -o %e)
done
now=$(date +%s)
end=${end:-$(date --date="${date/NONE/}" +%s)}
left=$((${end:-now} - now))
lifetime=()
if [ "$left" -gt 0 ]; then
    spare=$((left / 20 > 120 ? left / 20 : 120))
    spare=$((spare < left / 4 ? spare : left / 4))
    lifetime=(--lifetime "$((left - spare * 3 / 2))s" --lifetime-stagger "$((spare / 2))s")
elif [ "$date" != NONE ]; then
    echo "the job's time limit is not known: a job that is killed repeats its shard" >&2
fi"""


def job_script(
    mode: SlurmJobs, folder: Path, name: str, scheduler: str = "tcp://<scheduler>"
) -> str:
    """The batch script that is submitted for every worker of an output folder."""
    options = {
        "job-name": name,
        "ntasks": 1,
        "output": f"{log_folder(mode, folder)}/%j.log",
        "cpus-per-task": mode.cores,
        "mem": mode.memory and slurm_memory(mode.memory),
        "time": mode.walltime,
        "partition": mode.queue,
        "account": mode.account,
        "gres": mode.gres,
    }
    given = [shlex.quote(f"--{name}={value}") for name, value in options.items() if value]
    worker = [sys.executable, "-m", "distributed.cli.dask_worker", scheduler, "--no-dashboard"]
    # SLURM enforces the job's memory limit; Dask would pause a worker that holds models.
    worker += ["--memory-limit", "0", "--death-timeout", "60"]
    if mode.interface is not None:
        worker += ["--interface", mode.interface]
    lines = [
        "#!/bin/bash",
        *(f"#SBATCH {text}" for text in (*given, *mode.directives)),
        THREADS_CODE,
        *mode.prologue,
        LIFETIME_CODE,
        f'exec {shlex.join(worker)} --name "$SLURM_JOB_ID" --nthreads "$cores" "${{lifetime[@]}}"',
    ]
    return "\n".join(lines) + "\n"


def check_slurm() -> None:
    """Checks that SLURM's commands are installed.

    Raises:
        InputError: one is not.
    """
    for command in ("sbatch", "squeue", "scancel"):
        if shutil.which(command) is None:
            raise InputError(
                f"--slurm: expected SLURM's {command} on this machine, found none (--dry-run"
                " prints the job script)"
            )


@contextmanager
def slurm_workers(mode: SlurmJobs, folder: Path, name: str) -> Iterator[Workers]:
    """Submits jobs to SLURM, and cancels those that remain when the context ends."""
    logs = log_folder(mode, folder)
    logs.mkdir(parents=True, exist_ok=True)
    with open_cluster({}, mode.dashboard, interface=mode.interface) as (cluster, client):
        script = job_script(mode, folder, name, cluster.scheduler_address)
        jobs = _Jobs(mode.jobs, script, client, logs)
        try:
            yield Workers(client, jobs.poll)
        finally:
            jobs.cancel()


def log_folder(mode: SlurmJobs, folder: Path) -> Path:
    """Absolute path of the folder of the jobs' logs."""
    return (mode.log_folder or folder / LOG_FOLDER).absolute()


class _Jobs:
    """Submits jobs, and replaces those that have ended, with or without a connected worker."""

    def __init__(self, count: int, script: str, client: Client, logs: Path) -> None:
        self._count, self._script, self._client, self._logs = count, script, client, logs
        # Ids of the pending and running jobs, and of all whose worker has connected.
        self._queued: set[str] = set()
        self._connected: set[str] = set()
        # Jobs in a row that ended before their worker connected.
        self._num_lost = 0
        self._next_poll = 0.0

    def poll(self, remaining: int) -> None:
        """Queries SLURM's queue, at most once per `QUEUE_POLL_INTERVAL`, and submits missing jobs.

        Args:
            remaining: number of unfinished shards; there are never more jobs.

        Raises:
            InputError: SLURM rejects all jobs, or too many jobs in a row were lost.
        """
        if time.monotonic() < self._next_poll:
            return
        self._next_poll = time.monotonic() + QUEUE_POLL_INTERVAL
        queued = _queued_jobs() if self._queued else set()
        if queued is None:
            return
        connected = self._client.run_on_scheduler(_worker_names)
        self._connected |= connected
        lost = self._queued - queued - self._connected
        self._queued &= queued
        self._num_lost = self._num_lost + len(lost) if lost or not connected else 0
        if self._num_lost > MAX_LOST_JOBS + self._count:
            raise InputError(
                f"--slurm: {self._num_lost} jobs ended before their workers connected; their logs"
                f" are in {self._logs}"
            )
        while len(self._queued) < min(self._count, remaining):
            submitted = subprocess.run(
                ["sbatch", "--parsable"], input=self._script, capture_output=True, text=True
            )
            if submitted.returncode == 0:
                self._queued.add(submitted.stdout.strip().partition(";")[0])
            elif self._queued:
                # A site may limit the number of jobs per user; the others are tried again later.
                return
            else:
                lines = [line for line in submitted.stderr.splitlines() if "error:" in line]
                reason = " ".join((lines or [submitted.stderr])[0].split())
                raise InputError(f"--slurm: expected a job that SLURM accepts, found {reason}")

    def cancel(self) -> None:
        """Cancels all jobs."""
        if self._queued:
            subprocess.run(["scancel", *self._queued], capture_output=True)


def _worker_names(dask_scheduler: Scheduler) -> set[str]:
    """Names of the connected workers, which are the ids of their jobs."""
    return {str(worker.name) for worker in dask_scheduler.workers.values()}


def _queued_jobs() -> set[str] | None:
    """Ids of the user's pending and running jobs; None if `squeue` fails."""
    command = ["squeue", "--noheader", "--format=%i", f"--user={os.getuid()}"]
    result = subprocess.run(command, capture_output=True, text=True)
    return set(result.stdout.split()) if result.returncode == 0 else None
