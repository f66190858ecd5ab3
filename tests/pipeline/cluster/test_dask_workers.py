"""Most tests dispatch small functions instead of shards: workers then load no models' libraries."""

import asyncio
import errno
import os
import time

import pytest
import torch
from distributed import SpecCluster

from pipeline.cluster import dask_workers
from pipeline.cluster.dask_workers import (
    Workers,
    dispatch,
    gpu_environment,
    local_workers,
    silence_dask,
)
from pipeline.utils.errors import InputError
from pipeline.utils.progress import Progress


def make_tasks(names):
    class Task:
        """Defined in a function, so that it is pickled with its code."""

        def __init__(self, name):
            self.name = name

        def __len__(self):
            return 2

        def absolute(self):
            return self

    return [Task(name) for name in names]


@pytest.fixture(scope="module")
def workers():
    with silence_dask(), local_workers(2, 3, "cpu") as started:
        yield started


@pytest.fixture
def run(workers, monkeypatch):
    """`run(function, names)` dispatches tasks that run a function; returns the sorted results."""

    def call(function, names, monitor=None):
        monkeypatch.setattr(dask_workers, "run_task", lambda task, make, threads: make(task))
        monitored = Workers(workers.client, monitor or workers.monitor)
        with Progress(2 * len(names), "dispatching", "images") as progress:
            return sorted(dispatch(make_tasks(names), function, monitored, progress))

    return call


def test_every_task_is_done_once(run, capsys):
    remaining = []
    names = list("edcba")
    assert run(lambda task: task.name, names, remaining.append) == sorted(names)
    assert remaining[0] == 5 and remaining[-1] == 1
    assert remaining == sorted(remaining, reverse=True)
    assert "10/10 [" in capsys.readouterr().err


def test_a_worker_has_one_task_at_a_time(run, tmp_path):
    """A worker that dies loses this task only."""

    def assert_alone(task, folder=str(tmp_path)):
        marker = os.path.join(folder, str(os.getpid()))
        os.mkdir(marker)
        time.sleep(0.02)
        os.rmdir(marker)
        return os.environ["OMP_NUM_THREADS"]

    assert run(assert_alone, [str(number) for number in range(12)]) == ["3"] * 12


def test_a_task_whose_worker_died_is_done_by_another(run, tmp_path):
    def exit_once(task, folder=str(tmp_path)):
        marker = os.path.join(folder, task.name)
        if task.name == "b" and not os.path.exists(marker):
            open(marker, "w").close()
            os._exit(9)
        return task.name

    assert run(exit_once, list("abcd")) == list("abcd")


def test_a_task_that_kills_its_workers_is_named(run):
    def exit_always(task):
        if task.name == "c.h5":
            os._exit(9)
        return task.name

    with pytest.raises(InputError, match=r"^c\.h5: 4 workers died one after the other") as caught:
        run(exit_always, ["a.h5", "b.h5", "c.h5"])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "error, kind, text",
    [
        (InputError("a.jpg: no such image"), InputError, "^a.jpg: no such image$"),
        (ModuleNotFoundError("No module named 'teacher_cache'"), InputError, "this project inst"),
        (RuntimeError("out of luck"), RuntimeError, "out of luck"),
        (OSError(errno.ENOSPC, "No space left", "cache/00001.h5"), OSError, "cache/00001"),
    ],
)
def test_errors_of_workers_are_raised_by_the_build(run, error, kind, text):
    def raise_error(task):
        raise error

    with pytest.raises(kind, match=text) as caught:
        run(raise_error, ["a"])
    assert getattr(caught.value, "errno", None) == getattr(error, "errno", None)


def test_a_lost_scheduler():
    class Client:
        def nthreads(self):
            raise OSError("Timed out trying to connect")

        def cancel(self, futures, force):
            raise OSError("Timed out trying to connect")

    workers = Workers(Client(), lambda remaining: None)
    with pytest.raises(InputError, match="--scheduler: lost the connection"):
        dispatch(make_tasks(["a"]), print, workers, Progress(2, "dispatching"))


@pytest.mark.parametrize(
    "device, gpus, visible, found",
    [
        ("auto", 0, None, [None, None, None]),
        ("cpu", 2, None, [None, None, None]),
        ("cuda:1", 2, None, [None, None, None]),
        ("auto", 2, None, ["0", "1", "0"]),
        ("cuda", 2, "", ["0", "1", "0"]),
        ("cuda", 2, "5, 7", ["5", "7", "5"]),
        ("auto", 1, "GPU-8f2a", ["GPU-8f2a"] * 3),
    ],
)
def test_each_worker_gets_one_gpu(monkeypatch, device, gpus, visible, found):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    environments = [gpu_environment(number, device) for number in range(3)]
    assert [each.get("CUDA_VISIBLE_DEVICES") for each in environments] == found


def test_a_build_ends_when_no_worker_process_can_be_started(monkeypatch):
    """Dask closes a worker for good if its restart fails."""
    monkeypatch.setattr(dask_workers, "START_TIMEOUT", 0.5)
    with silence_dask(), local_workers(2, 1, "cpu") as workers:
        for nanny in workers.client.cluster.workers.values():
            workers.client.sync(nanny.close)
        with (
            Progress(2, "dispatching", "images") as progress,
            pytest.raises(InputError, match="2 worker processes") as caught,
        ):
            dispatch(make_tasks(["a.h5"]), print, workers, progress)
    assert "\n" not in str(caught.value) and "1 shard" in str(caught.value)


def test_a_cluster_that_does_not_close_is_left(monkeypatch):
    """As with Dask 2024.1 after workers died."""
    closing = []

    async def wait(cluster):
        closing.append(cluster)
        await asyncio.sleep(3600)

    with monkeypatch.context() as patch:
        patch.setattr(SpecCluster, "_close", wait)
        patch.setattr(dask_workers, "CLOSE_TIMEOUT", 0.1)
        with silence_dask(), local_workers(1, 1, "cpu") as workers:
            assert workers.client.submit(os.getpid).result() != os.getpid()
    (cluster,) = set(closing)
    assert not any(nanny.is_alive() for nanny in cluster.workers.values())
    cluster.close(timeout=30)
