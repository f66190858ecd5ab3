"""Settings of where shards are made, job time limits and array shares; does not need Dask."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pipeline.utils.devices import num_usable_cores
from pipeline.utils.errors import InputError

WALLTIME_PATTERN = re.compile(r"(?:(?P<days>\d+)-)?(?P<rest>\d+(?::\d+){0,2})")
# Fraction of its walltime that a worker leaves unused, and the minimum in seconds.
WALLTIME_MARGIN, MIN_WALLTIME_MARGIN = 0.05, 120.0
# Options of sbatch that set the same thing as a field of `SlurmJobs`.
SBATCH_OPTIONS = {
    "cores": ("-c", "--cpus-per-task", "--cpus-per-gpu"),
    "memory": ("--mem", "--mem-per-cpu", "--mem-per-gpu"),
    "walltime": ("-t", "--time"),
}
DIRECTIVE_PREFIX = re.compile(r"^\s*#SBATCH\b")
OPTION_PATTERN = re.compile(r"--[a-z-]+|-[a-zA-Z]")


@dataclass(frozen=True)
class InProcess:
    """Shards are made in the build's own process, one after the other."""


@dataclass(frozen=True)
class LocalWorkers:
    """Shards are made in worker processes on this machine.

    Attributes:
        count: number of processes; where there are GPUs, each process uses one.
    """

    count: int


@dataclass(frozen=True)
class RunningCluster:
    """Shards are made on the workers of an existing Dask cluster.

    Attributes:
        address: host:port of its scheduler, or its scheduler file.
    """

    address: str


@dataclass(frozen=True)
class SlurmJobs:
    """Shards are made in SLURM jobs, with one worker per job.

    Attributes:
        jobs: maximum number of jobs at a time.
        cores, memory, walltime: resources per job, in SLURM's notation; None for the site's
            default. A value that a directive sets as well becomes None.
        queue, account, gres: partition, account and generic resources per job; None for the
            site's defaults.
        prologue: shell lines to run in the job before its worker starts.
        directives: further `#SBATCH` lines, with or without the prefix `#SBATCH`.
        log_folder: folder of the jobs' logs; None for `logs` in the cache folder.
        interface: network interface that workers and build share; None lets Dask choose.

    Raises:
        InputError: a directive is not an option of sbatch.
    """

    jobs: int = 1
    cores: int | None = 4
    memory: str | None = "16GB"
    walltime: str | None = "04:00:00"
    queue: str | None = None
    account: str | None = None
    gres: str | None = None
    prologue: tuple[str, ...] = ()
    directives: tuple[str, ...] = ()
    log_folder: Path | None = None
    interface: str | None = None

    def __post_init__(self) -> None:
        directives = tuple(DIRECTIVE_PREFIX.sub("", text).strip() for text in self.directives)
        object.__setattr__(self, "directives", directives)
        for text in directives:
            if not OPTION_PATTERN.match(text) or "\n" in text:
                expected = "an option of sbatch such as --constraint=a100"
                raise InputError(f"--directive: expected {expected}, found {text!r}")
        # SLURM rejects some combinations, such as --mem together with --mem-per-cpu.
        named = {option for text in self.directives for option in _option_names(text)}
        for field, options in SBATCH_OPTIONS.items():
            if not named.isdisjoint(options):
                object.__setattr__(self, field, None)


ExecutionMode = InProcess | LocalWorkers | RunningCluster | SlurmJobs


def is_remote(mode: ExecutionMode) -> bool:
    """Whether shards are made on other machines, whose devices may differ from this one's."""
    return isinstance(mode, (RunningCluster, SlurmJobs))


def _option_names(directive: str) -> list[str]:
    """Names of the sbatch options in a directive, without their values."""
    try:
        words = shlex.split(directive, comments=True)
    except ValueError:
        words = directive.split()
    return [found.group() for word in words if (found := OPTION_PATTERN.match(word))]


def requests_gpu(mode: SlurmJobs) -> bool:
    """Whether the settings request a GPU for each job."""
    return any("gpu" in text.lower() for text in (mode.gres or "", *mode.directives))


def threads_per_worker(mode: ExecutionMode) -> int | None:
    """Number of torch CPU threads per process; None where each process decides."""
    if isinstance(mode, SlurmJobs):
        return mode.cores
    if not isinstance(mode, LocalWorkers):
        return None
    value = os.environ.get("OMP_NUM_THREADS", "")
    if value.isdecimal() and int(value):
        return int(value)
    return max(1, num_usable_cores() // mode.count)


def parse_walltime(text: str) -> int:
    """Seconds of a time limit in one of SLURM's forms.

    Args:
        text: minutes, minutes:seconds, hours:minutes:seconds, days-hours, days-hours:minutes or
            days-hours:minutes:seconds.

    Raises:
        InputError: the text has another form, or the time is zero.
    """
    found = WALLTIME_PATTERN.fullmatch(text.strip())
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
            f"--walltime: expected SLURM's form of a time limit, such as 04:00:00, found {text}"
        )
    return total


def worker_lifetime(walltime: int) -> tuple[float, float]:
    """When a worker stops by itself, so that its job does not reach its time limit in a shard.

    Args:
        walltime: time limit of a job in seconds.

    Returns:
        Seconds after which a worker stops, and the maximum random deviation from it, which keeps
        workers from stopping all at once. Even the last one stops 5 % of the walltime, and at
        least two minutes, before its end; for a very short walltime, a quarter of it.
    """
    spare = min(max(WALLTIME_MARGIN * walltime, MIN_WALLTIME_MARGIN), walltime / 4)
    stagger = spare / 2
    return walltime - spare - stagger, stagger


def print_job_lifetime() -> None:
    """Prints, within a SLURM job, the worker options that stop its worker before the job ends.

    Prints nothing if the job has no time limit, and a warning on stderr if the limit is unknown.
    """
    end = os.environ.get("SLURM_JOB_END_TIME", "")
    remaining = int(end) - int(time.time()) if end.isdecimal() else _remaining_seconds()
    if remaining is None:
        line = "the job's time limit is not known: a job that is killed repeats its shard"
        print(f"eoid-cache: {line}", file=sys.stderr)
    elif remaining:
        print(worker_lifetime_options(remaining))


def worker_lifetime_options(walltime: int) -> str:
    """Command-line options of a Dask worker for a job's walltime in seconds."""
    seconds, stagger = worker_lifetime(walltime)
    return f"--lifetime {seconds:.0f}s --lifetime-stagger {stagger:.0f}s"


def _remaining_seconds() -> int | None:
    """Seconds until this SLURM job ends; 0 without a time limit, None if it is unknown."""
    command = ["squeue", "--noheader", "--format=%L", f"--job={os.environ.get('SLURM_JOB_ID')}"]
    try:
        output = subprocess.run(command, capture_output=True, text=True).stdout.strip()
        return 0 if output == "UNLIMITED" else parse_walltime(output)
    except (OSError, InputError):
        return None


Item = TypeVar("Item")
ARRAY_PREFIX = "SLURM_ARRAY_TASK_"


@dataclass(frozen=True)
class ArrayShare:
    """A job's share of the shards: every N-th one, starting with number I.

    Interleaved shares take about equally long, even if images at the end of a dataset have more
    pairs than those at its beginning.

    Attributes:
        index: I, in [0, N).
        count: N, the number of jobs.
    """

    index: int
    count: int

    def select(self, items: Sequence[Item]) -> Sequence[Item]:
        """The items of this job's share."""
        return items[self.index :: self.count]

    @classmethod
    def parse(cls, text: str) -> ArrayShare:
        """Parses `I/N`.

        Raises:
            InputError: the text has another form, or I is not below N.
        """
        index, _, count = text.partition("/")
        if index.isdecimal() and count.isdecimal() and int(index) < int(count):
            return cls(int(index), int(count))
        raise InputError(f"--array: expected I/N with I from 0 to N-1, found {text}")

    @classmethod
    def from_slurm(cls, environment: Mapping[str, str] = os.environ) -> ArrayShare:
        """The share of this job of a SLURM array, whose numbers may start anywhere.

        Raises:
            InputError: this is not a job of an array, or the array's numbers have unequal steps.
        """
        texts = {name: environment.get(ARRAY_PREFIX + name, "") for name in ("ID", "MIN", "COUNT")}
        step = environment.get(f"{ARRAY_PREFIX}STEP") or "1"
        if not all(text.isdecimal() for text in (*texts.values(), step)) or not int(step):
            raise InputError(
                f"--array: expected I/N or a job of a SLURM array ({ARRAY_PREFIX}ID, _MIN, _COUNT),"
                " found neither"
            )
        number, first, count = (int(texts[name]) for name in ("ID", "MIN", "COUNT"))
        index, rest = divmod(number - first, int(step))
        if rest or not 0 <= index < count:
            raise InputError(
                f"--array: expected an array of equal steps, such as 0-7, found job {number} of"
                f" {count} from {first} on; give I/N instead"
            )
        return cls(index, count)
