"""Where shards may be made. Nothing here needs Dask."""

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
# The part of its walltime that a worker does not use, and its bounds in seconds.
WALLTIME_MARGIN, MIN_WALLTIME_MARGIN = 0.05, 120.0
# The options of sbatch that say what a field of `SlurmJobs` says.
SBATCH_OPTIONS = {
    "cores": ("-c", "--cpus-per-task", "--cpus-per-gpu"),
    "memory": ("--mem", "--mem-per-cpu", "--mem-per-gpu"),
    "walltime": ("-t", "--time"),
}
DIRECTIVE_PREFIX = re.compile(r"^\s*#SBATCH\b")
OPTION_PATTERN = re.compile(r"--[a-z-]+|-[a-zA-Z]")


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
        cores, memory, walltime: of a job, in SLURM's words; None leaves it to the site. What a
            directive says too is None.
        queue, account, gres: of a job; None takes the site's own.
        prologue: shell lines for the job before its worker starts.
        directives: further `#SBATCH` lines, with that word or without.
        log_folder: where jobs write their logs; None takes `logs` in the cache.
        interface: the network that workers and builder share; None lets Dask choose.

    Raises:
        InputError: a directive is no option of sbatch.
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
        named = {option for text in self.directives for option in _option_names(text)}
        for field, options in SBATCH_OPTIONS.items():
            if not named.isdisjoint(options):
                object.__setattr__(self, field, None)


ExecutionMode = InProcess | LocalWorkers | RunningCluster | SlurmJobs


def is_remote(mode: ExecutionMode) -> bool:
    """Whether the machines that make shards need not be like the builder's own."""
    return isinstance(mode, (RunningCluster, SlurmJobs))


def _option_names(directive: str) -> list[str]:
    """The options of sbatch in a directive, without their values."""
    try:
        words = shlex.split(directive, comments=True)
    except ValueError:
        words = directive.split()
    return [found.group() for word in words if (found := OPTION_PATTERN.match(word))]


def requests_gpu(mode: SlurmJobs) -> bool:
    """Whether a job is to have a GPU, by what SLURM is told."""
    return any("gpu" in text.lower() for text in (mode.gres or "", *mode.directives))


def threads_per_worker(mode: ExecutionMode) -> int | None:
    """torch's threads in every process of a mode, on a CPU; None leaves them to the process."""
    if isinstance(mode, SlurmJobs):
        return mode.cores
    if not isinstance(mode, LocalWorkers):
        return None
    told = os.environ.get("OMP_NUM_THREADS", "")
    return int(told) if told.isdecimal() and int(told) else max(1, num_usable_cores() // mode.count)


def parse_walltime(text: str) -> int:
    """Seconds of a time in one of SLURM's forms: minutes, minutes:seconds,
    hours:minutes:seconds, days-hours, days-hours:minutes and days-hours:minutes:seconds.

    Raises:
        InputError: another form, or no time at all.
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
            f"--walltime: expected SLURM's form of a time, such as 04:00:00, found {text}"
        )
    return total


def worker_lifetime(walltime: int) -> tuple[float, float]:
    """When workers leave by themselves, so that no job meets its walltime in the middle of things.

    Args:
        walltime: of a job, in seconds.

    Returns:
        Seconds after which they leave, and by how many these may vary so that they do not all
        leave at once. Even the latest leaves a twentieth of the walltime, or two minutes, before
        its end; of a very short walltime, a quarter.
    """
    spare = min(max(WALLTIME_MARGIN * walltime, MIN_WALLTIME_MARGIN), walltime / 4)
    stagger = spare / 2
    return walltime - spare - stagger, stagger


def print_job_lifetime() -> None:
    """Prints, within a job of SLURM, the options by which its worker leaves before the job's end.

    Prints nothing where the job has no end; where that is not known, a line on stderr says so.
    """
    end = os.environ.get("SLURM_JOB_END_TIME", "")
    left = int(end) - int(time.time()) if end.isdecimal() else _remaining_seconds()
    if left is None:
        line = "the job's time limit is not known: a job that is killed repeats its shard"
        print(f"eoid-cache: {line}", file=sys.stderr)
    elif left:
        print(worker_lifetime_options(left))


def worker_lifetime_options(walltime: int) -> str:
    """Options of a Dask worker, for a job's walltime in seconds."""
    seconds, stagger = worker_lifetime(walltime)
    return f"--lifetime {seconds:.0f}s --lifetime-stagger {stagger:.0f}s"


def _remaining_seconds() -> int | None:
    """Seconds until this job of SLURM ends; 0 where it never does, None where nobody says."""
    command = ["squeue", "--noheader", "--format=%L", f"--job={os.environ.get('SLURM_JOB_ID')}"]
    try:
        told = subprocess.run(command, capture_output=True, text=True).stdout.strip()
        return 0 if told == "UNLIMITED" else parse_walltime(told)
    except (OSError, InputError):
        return None


Item = TypeVar("Item")
ARRAY_PREFIX = "SLURM_ARRAY_TASK_"


@dataclass(frozen=True)
class ArrayShare:
    """Every N-th shard from the I-th on, so that all jobs meet easy and hard images alike.

    Attributes:
        index: I, from 0 on.
        count: N.
    """

    index: int
    count: int

    def select(self, items: Sequence[Item]) -> Sequence[Item]:
        """This job's items."""
        return items[self.index :: self.count]

    @classmethod
    def parse(cls, text: str) -> ArrayShare:
        """Reads `I/N`.

        Raises:
            InputError: something else.
        """
        index, _, count = text.partition("/")
        if index.isdecimal() and count.isdecimal() and int(index) < int(count):
            return cls(int(index), int(count))
        raise InputError(f"--array: expected I/N with I from 0 to N-1, found {text}")

    @classmethod
    def from_slurm(cls, environment: Mapping[str, str] = os.environ) -> ArrayShare:
        """The share of this job of a SLURM array, whatever its numbers are.

        Raises:
            InputError: this is no such job, or its array has no equal steps.
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
                f" {count} from {first} on; give I/N"
            )
        return cls(index, count)
