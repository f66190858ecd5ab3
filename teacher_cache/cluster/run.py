"""Runs the shard tasks of a build in the chosen execution mode.

The modules that load Dask are imported inside functions, because most builds do not need it.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import TYPE_CHECKING

from pipeline.utils.logging import get_logger
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

logger = get_logger(__name__)


def run_tasks(
    tasks: Sequence[ShardTask], mode: ExecutionMode, progress: Progress
) -> list[ShardRecord]:
    """Makes shards and returns their records; `progress` counts images.

    Raises:
        InputError: the input of a shard is bad, several workers died while they made the same
            shard, or no worker can be expected any more.
    """
    if isinstance(mode, InProcess) or not tasks:
        records = []
        for task in tasks:
            records.append(make_shard(task, progress.update))
            logger.debug(str(records[-1]))
        return records
    # Workers may run in another directory.
    remote_tasks = [
        replace(task, folder=task.folder.absolute(), inputs_config=task.inputs_config.absolute())
        for task in tasks
    ]
    from teacher_cache.cluster.dask_workers import dispatch, silence_dask

    with silence_dask(), _open_workers(mode, remote_tasks[0]) as workers:
        return dispatch(remote_tasks, workers, progress)


def resolve_remote_device(mode: ExecutionMode, device: str) -> str:
    """The device that "auto" means on the machines that make the shards.

    The build needs it for the fingerprint, because CLIP's precision depends on the device.

    Raises:
        InputError: no scheduler can be reached.
    """
    if device != "auto":
        return device
    if isinstance(mode, SlurmJobs):
        return "cuda" if requests_gpu(mode) else "cpu"
    assert isinstance(mode, RunningCluster)
    from teacher_cache.cluster.dask_workers import get_workers_device

    return get_workers_device(mode.address)


def _open_workers(mode: ExecutionMode, task: ShardTask) -> AbstractContextManager[Workers]:
    if isinstance(mode, SlurmJobs):
        from teacher_cache.cluster.slurm import slurm_workers

        return slurm_workers(mode, task.folder)
    from teacher_cache.cluster.dask_workers import local_workers, running_workers

    if isinstance(mode, RunningCluster):
        return running_workers(mode.address)
    assert isinstance(mode, LocalWorkers)
    return local_workers(mode.count, task.inputs_config.threads, task.inputs_config.device)
