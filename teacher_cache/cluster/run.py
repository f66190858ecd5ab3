"""The one door: tasks and a mode in, records out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.utils.errors import InputError
from pipeline.utils.progress import Progress
from teacher_cache.cluster.modes import (
    ExecutionMode,
    InProcess,
    LocalWorkers,
    RunningCluster,
    SlurmJobs,
    requests_gpu,
)
from teacher_cache.extraction.task import ShardTask, make_shard
from teacher_cache.writer.shard import ShardRecord

if TYPE_CHECKING:
    from teacher_cache.cluster.dask_workers import Workers


def run_tasks(
    tasks: Sequence[ShardTask], mode: ExecutionMode, progress: Progress
) -> list[ShardRecord]:
    """Makes shards.

    Args:
        tasks: the shards.
        mode: where they are made.
        progress: moved on by every finished image or shard.

    Raises:
        InputError: a shard could not be made from what the user gave, every worker died over it,
            or there are no workers and there will be none.
    """
    if isinstance(mode, InProcess) or not tasks:
        return [make_shard(task, progress.update) for task in tasks]
    elsewhere = [
        replace(task, folder=task.folder.absolute(), inputs_config=task.inputs_config.absolute())
        for task in tasks
    ]
    from teacher_cache.cluster.dask_workers import dispatch, silence_dask

    with silence_dask(), _open_workers(mode, elsewhere[0]) as workers:
        return dispatch(elsewhere, workers, progress)


def check_mode(mode: ExecutionMode) -> None:
    """Finds out before anything else whether a mode is possible here.

    Raises:
        InputError: it is not; says what is missing or wrong.
    """
    _check_libraries(mode)
    if isinstance(mode, SlurmJobs):
        from teacher_cache.cluster.slurm import check_slurm

        check_slurm(mode)


def resolve_remote_device(mode: ExecutionMode, device: str, log: Callable[[str], None]) -> str:
    """What `auto` means on other machines, which the builder must know: it decides answers.

    Args:
        mode: where shards are made.
        device: auto, cpu or cuda[:i].
        log: receives what is waited for.

    Raises:
        InputError: no scheduler answers.
    """
    if device != "auto":
        return device
    if isinstance(mode, SlurmJobs):
        return "cuda" if requests_gpu(mode) else "cpu"
    assert isinstance(mode, RunningCluster)
    from teacher_cache.cluster.dask_workers import get_workers_device, silence_dask

    with silence_dask():
        return get_workers_device(mode.address, log)


def job_script(mode: ExecutionMode | None, folder: Path) -> str:
    """What would be submitted to SLURM for every worker of a build into a folder.

    Raises:
        InputError: an option that cannot be.
    """
    assert isinstance(mode, SlurmJobs)
    _check_libraries(mode)
    from teacher_cache.cluster import slurm

    return slurm.job_script(mode, folder)


def _check_libraries(mode: ExecutionMode) -> None:
    libraries = [] if isinstance(mode, InProcess) else ["distributed"]
    if isinstance(mode, SlurmJobs):
        libraries.append("dask_jobqueue")
    for library in libraries:
        if find_spec(library) is None:
            raise InputError(f"{library} is not installed; do so with: pip install 'eoid[cluster]'")


def _open_workers(mode: ExecutionMode, task: ShardTask) -> AbstractContextManager[Workers]:
    if isinstance(mode, LocalWorkers):
        from teacher_cache.cluster.dask_workers import local_workers

        return local_workers(mode.count, task.inputs_config.threads, task.inputs_config.device)
    if isinstance(mode, RunningCluster):
        from teacher_cache.cluster.dask_workers import running_workers

        return running_workers(mode.address)
    assert not isinstance(mode, InProcess)
    from teacher_cache.cluster.slurm import slurm_workers

    return slurm_workers(mode, task.folder)
