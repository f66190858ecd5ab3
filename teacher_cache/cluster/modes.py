"""Where shards may be made. Nothing here needs Dask."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from pipeline.cores import usable_cores
from pipeline.errors import InputError

WALLTIME = re.compile(r"(?:(?P<days>\d+)-)?(?P<rest>\d+(?::\d+){0,2})")
# The part of its walltime that a worker does not use, and its bounds in seconds.
SPARE, LEAST_SPARE = 0.05, 120.0


@dataclass(frozen=True)
class InProcess:
    """In the builder's own process, one after the other."""


@dataclass(frozen=True)
class LocalWorkers:
    """In processes of this machine.

    Attributes:
        count: how many; with GPUs, every process keeps to one.
    """

    count: int


@dataclass(frozen=True)
class RunningCluster:
    """On the workers of a Dask cluster that somebody else started.

    Attributes:
        address: host:port of its scheduler, or the scheduler's file.
    """

    address: str


@dataclass(frozen=True)
class SlurmJobs:
    """In jobs of SLURM, one worker in each.

    Attributes:
        jobs: at most so many at a time.
        cores, memory, walltime: of a job, in SLURM's words.
        queue, account, gres: of a job; None takes the site's own.
        prologue: shell lines for the job before its worker starts.
        directives: further `#SBATCH` lines, without that word.
        log_folder: where jobs write their logs; None takes `logs` in the cache.
        interface: the network that workers and builder share; None lets Dask choose.
    """

    jobs: int = 1
    cores: int = 4
    memory: str = "16GB"
    walltime: str = "04:00:00"
    queue: str | None = None
    account: str | None = None
    gres: str | None = None
    prologue: tuple[str, ...] = ()
    directives: tuple[str, ...] = ()
    log_folder: Path | None = None
    interface: str | None = None


Mode = InProcess | LocalWorkers | RunningCluster | SlurmJobs


def is_elsewhere(mode: Mode) -> bool:
    """Whether the machines that make shards need not be like the builder's own."""
    return isinstance(mode, (RunningCluster, SlurmJobs))


def asks_for_gpu(mode: SlurmJobs) -> bool:
    """Whether a job is to have a GPU, by what SLURM is told."""
    return any("gpu" in text.lower() for text in (mode.gres or "", *mode.directives))


def threads_per_worker(mode: Mode) -> int | None:
    """torch's threads in every process of a mode, on a CPU; None leaves them to the process."""
    if isinstance(mode, SlurmJobs):
        return mode.cores
    if not isinstance(mode, LocalWorkers):
        return None
    told = os.environ.get("OMP_NUM_THREADS", "")
    return int(told) if told.isdecimal() and int(told) else max(1, usable_cores() // mode.count)


def walltime_seconds(text: str) -> int:
    """Seconds of a time in one of SLURM's forms: minutes, minutes:seconds,
    hours:minutes:seconds, days-hours, days-hours:minutes and days-hours:minutes:seconds.

    Raises:
        InputError: another form, or no time at all.
    """
    found = WALLTIME.fullmatch(text.strip())
    numbers = [int(number) for number in found["rest"].split(":")] if found else []
    if found and found["days"]:
        hours, minutes, seconds = (*numbers, 0, 0)[:3]
        total = int(found["days"]) * 86400 + hours * 3600 + minutes * 60 + seconds
    elif len(numbers) == 3:
        total = numbers[0] * 3600 + numbers[1] * 60 + numbers[2]
    else:
        minutes, seconds = (*numbers, 0, 0)[:2]
        total = minutes * 60 + seconds
    if not total:
        raise InputError(
            f"--walltime: expected SLURM's form of a time, such as 04:00:00, found {text}"
        )
    return total


def lifetime(walltime: int) -> tuple[float, float]:
    """When workers leave by themselves, so that no job meets its walltime in the middle of things.

    Args:
        walltime: of a job, in seconds.

    Returns:
        Seconds after which they leave, and by how many these may vary so that they do not all
        leave at once. Even the latest leaves a twentieth of the walltime, or two minutes, before
        its end; of a very short walltime, a quarter.
    """
    spare = min(max(SPARE * walltime, LEAST_SPARE), walltime / 4)
    stagger = spare / 2
    return walltime - spare - stagger, stagger
