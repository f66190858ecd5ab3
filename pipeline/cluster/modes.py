"""Where the shards of an output are made: settings of each mode, and running tasks in it.

Dask is loaded only where a mode needs it.
"""

from __future__ import annotations

import importlib.util
import math
import os
import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.cluster.tasks import TaskQueue, TaskType
from pipeline.utils.errors import InputError
from pipeline.utils.progress import Progress
from pipeline.utils.text import count_noun

if TYPE_CHECKING:
    from pipeline.cluster.dask_workers import Workers

# Minutes, minutes:seconds, hours:minutes:seconds, or days followed by hours and so on.
WALLTIME_PATTERN = re.compile(r"(\d+-)?\d+(:\d+){0,2}")
MEMORY_PATTERN = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT])(i?)B?", re.IGNORECASE)
# Options of sbatch that set the same thing as a field of `SlurmJobs`.
SBATCH_OPTIONS = {
    "cores": ("-c", "--cpus-per-task", "--cpus-per-gpu"),
    "memory": ("--mem", "--mem-per-cpu", "--mem-per-gpu"),
    "walltime": ("-t", "--time"),
}
DIRECTIVE_PREFIX = re.compile(r"^\s*#SBATCH\b")
# The names of the options of sbatch in a directive, without their values.
OPTION_NAMES = re.compile(r"(?:^|(?<=\s))(?:--[a-z-]+|-[a-zA-Z])")


LOCALHOST = "127.0.0.1"
# In place of an address of the dashboard: this host only, Dask's usual port or a free one.
AUTO = "auto"
DASHBOARD_PATTERN = re.compile(r"(?:([^:\s]+):)?(\d{1,5})")


@dataclass(frozen=True)
class InProcess:
    """Shards are made in the command's own process, one after the other."""

    def __str__(self) -> str:
        return "one process"


@dataclass(frozen=True)
class LocalWorkers:
    """Shards are made in `count` worker processes on this machine, with one GPU each if any.

    For `dashboard` see `parse_dashboard`; None for none.
    """

    count: int
    dashboard: str | None = None

    def __str__(self) -> str:
        return count_noun(self.count, "worker processes")


@dataclass(frozen=True)
class RunningCluster:
    """Shards are made on the workers of a Dask cluster: host:port, or its scheduler file.

    With a `dashboard`, the address of the cluster's own one is reported.
    """

    address: str
    dashboard: str | None = None

    def __str__(self) -> str:
        return f"workers of {self.address}"


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
        log_folder: folder of the jobs' logs; None for `logs` in the output folder.
        interface: network interface that workers and command share; None lets Dask choose.
        dashboard: see `parse_dashboard`; None for none.

    Raises:
        InputError: a directive is not an option of sbatch, or walltime or memory have another form
            than SLURM's.
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
    dashboard: str | None = None

    def __post_init__(self) -> None:
        directives = tuple(DIRECTIVE_PREFIX.sub("", text).strip() for text in self.directives)
        object.__setattr__(self, "directives", directives)
        for text in directives:
            if not OPTION_NAMES.match(text) or "\n" in text:
                expected = "an option of sbatch such as --constraint=a100"
                raise InputError(f"--directive: expected {expected}, found {text!r}")
        # SLURM rejects some combinations, such as --mem together with --mem-per-cpu.
        named = {option for text in self.directives for option in OPTION_NAMES.findall(text)}
        for field, options in SBATCH_OPTIONS.items():
            if not named.isdisjoint(options):
                object.__setattr__(self, field, None)
        if self.memory is not None:
            slurm_memory(self.memory)
        if self.walltime is not None and not WALLTIME_PATTERN.fullmatch(self.walltime):
            expected = "SLURM's form of a time limit, such as 04:00:00"
            raise InputError(f"--walltime: expected {expected}, found {self.walltime}")

    def __str__(self) -> str:
        return count_noun(self.jobs, "SLURM jobs at a time")


@dataclass(frozen=True)
class WorkerSettings:
    """What workers need to know beside their mode.

    Attributes:
        folder: the output folder, in which SLURM jobs write their logs.
        job_name: name of SLURM jobs.
        threads: torch's CPU threads per task; None for the worker's share of its machine's cores.
        device: "auto", "cpu" or "cuda[:i]"; with "auto" and "cuda", local workers get one GPU each.
    """

    folder: Path
    job_name: str
    threads: int | None = None
    device: str = "auto"


ExecutionMode = InProcess | LocalWorkers | RunningCluster | SlurmJobs


def resolve_mode(mode: ExecutionMode | None, device: str) -> ExecutionMode:
    """The configured mode, or by default one process per GPU where there are several."""
    if mode is not None:
        return mode
    # Commands build a mode before they know that they need PyTorch.
    import torch

    gpus = torch.cuda.device_count() if device == "auto" else 0
    return LocalWorkers(gpus) if gpus > 1 else InProcess()


def parse_dashboard(text: str) -> tuple[str, int | None]:
    """Host and port of `auto` or `[HOST:]PORT`; this host only unless another one is given, and
    None for Dask's usual port or a free one.

    Raises:
        InputError: the text has another form, or the package that draws the dashboard is missing.
    """
    found = DASHBOARD_PATTERN.fullmatch(text)
    if text != AUTO and not (found and int(found[2]) < 2**16):
        expected = f"{AUTO} or [HOST:]PORT, such as 8787"
        raise InputError(f"--dashboard: expected {expected}, found {text or 'nothing'}")
    if importlib.util.find_spec("bokeh") is None:
        raise InputError(
            "--dashboard: needs bokeh, which is not installed: pip install '.[dashboard]'"
        )
    if found is None:
        return LOCALHOST, None
    return found[1] or LOCALHOST, int(found[2])


def is_remote(mode: ExecutionMode) -> bool:
    """Whether shards are made on other machines, whose devices may differ from this one's."""
    return isinstance(mode, (RunningCluster, SlurmJobs))


def slurm_memory(text: str) -> str:
    """A memory size in SLURM's form; 0 means all memory of a machine.

    Raises:
        InputError: not a size, or less than 1 MiB, which is taken for a forgotten unit.
    """
    if text.strip() == "0":
        return "0"
    size, found = 0.0, MEMORY_PATTERN.fullmatch(text.strip())
    if found:
        base = 1024 if found[3] else 1000
        size = float(found[1]) * base ** (1 + "KMGT".index(found[2].upper())) / 2**20
    if size < 1:
        raise InputError(
            f"--memory: expected a size such as 16GB, found {text.strip() or 'nothing'} (0 requests"
            " all memory of a machine, none leaves it to the site)"
        )
    return f"{math.ceil(size / 1024)}G" if size >= 1024 else f"{math.ceil(size)}M"


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
    from pipeline.utils.devices import num_usable_cores

    return max(1, num_usable_cores() // mode.count)


def run_tasks(
    queue: TaskQueue[TaskType],
    make: Callable[[TaskType, Callable[[int], None]], Any],
    mode: ExecutionMode,
    settings: WorkerSettings,
    progress: Progress,
) -> list[Any]:
    """Does the tasks and returns their records.

    Args:
        queue: the tasks.
        make: does a task and returns its record, or a `Postponed` task; calls its second argument
            with numbers of finished images. Workers import it by its name.
        mode: where the tasks are done.
        settings: settings of workers.
        progress: counts images.

    Raises:
        InputError: the input of a task is bad, several workers died over the same task, or no
            worker can be expected any more.
    """
    if isinstance(mode, InProcess) or not len(queue):
        while (row := queue.pop(progress)) is not None:
            queue.put(row, make(queue.tasks[row], progress.update))
        return queue.records
    from pipeline.cluster.dask_workers import dispatch, silence_dask

    with silence_dask(), _open_workers(mode, settings) as workers:
        return dispatch(queue, make, workers, progress, settings.threads)


def resolve_remote_device(mode: ExecutionMode, device: str) -> str:
    """The device that "auto" means on the machines that make the shards.

    A build needs it for the fingerprint, because CLIP's precision depends on the device.

    Raises:
        InputError: no scheduler can be reached.
    """
    if device != "auto":
        return device
    if isinstance(mode, SlurmJobs):
        return "cuda" if requests_gpu(mode) else "cpu"
    assert isinstance(mode, RunningCluster)
    from pipeline.cluster.dask_workers import get_workers_device

    return get_workers_device(mode.address)


def _open_workers(mode: ExecutionMode, settings: WorkerSettings) -> AbstractContextManager[Workers]:
    if isinstance(mode, SlurmJobs):
        from pipeline.cluster.slurm import slurm_workers

        return slurm_workers(mode, settings.folder, settings.job_name)
    from pipeline.cluster.dask_workers import local_workers, running_workers

    if isinstance(mode, RunningCluster):
        return running_workers(mode.address, mode.dashboard is not None)
    assert isinstance(mode, LocalWorkers)
    return local_workers(mode.count, settings.threads, settings.device, mode.dashboard)
