"""Most tests dispatch small functions instead of shards: workers then load no models' libraries."""

import asyncio
import errno
import os
import re
import socket
import threading
import time
from urllib.request import urlopen

import pytest
import torch
from distributed import Client, LocalCluster, SpecCluster, get_worker

from pipeline.cluster import dask_workers
from pipeline.cluster.dask_workers import (
    Workers,
    dispatch,
    find_late_task,
    gpu_environment,
    local_workers,
    running_workers,
    silence_dask,
)
from pipeline.cluster.tasks import TaskQueue
from pipeline.utils.errors import InputError
from pipeline.utils.progress import Progress


def make_queue(names):
    """A queue of tasks with these names, of which none is finished."""

    class Task:
        """Defined in a function, so that it is pickled with its code."""

        def __init__(self, name):
            self.name = name

        def __len__(self):
            return 2

        def absolute(self):
            return self

    return TaskQueue([Task(name) for name in names], lambda task: False)


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
            return sorted(dispatch(make_queue(names), function, monitored, progress))

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


@pytest.fixture
def run_in_threads(monkeypatch):
    """`run_in_threads(count, function, names)` dispatches to workers with four threads each, which
    belong to this process."""

    def call(count, function, names):
        monkeypatch.setattr(dask_workers, "run_task", lambda task, make, threads: make(task))
        options = {"processes": False, "dashboard_address": None, "threads_per_worker": 4}
        # Otherwise each of them would pause when this whole process reaches its share of memory.
        options["memory_limit"] = 0
        with (
            silence_dask(),
            LocalCluster(n_workers=count, **options) as cluster,
            Client(cluster, set_as_default=False) as client,
            Progress(2 * len(names), "dispatching", "images") as progress,
        ):
            try:
                return dispatch(make_queue(names), function, Workers(client), progress)
            finally:
                RELEASE.set()

    CALLS.clear()
    RELEASE.clear()
    return call


# Of functions that workers in threads of this process import.
CALLS: list[tuple[str, str]] = []
LOCK, RELEASE = threading.Lock(), threading.Event()


def hang_twice(task):
    with LOCK:
        CALLS.append((get_worker().address, task.name))
        is_slow = len({address for address, _ in CALLS[:2]}) == len(CALLS)
    if is_slow:
        RELEASE.wait()
    return task.name


def test_workers_that_never_end_a_shard_hold_nobody_up(run_in_threads):
    """The third one makes all shards, also those of the other two, which get none again."""
    names = list("abcdefgh")
    assert sorted(run_in_threads(3, hang_twice, names)) == names
    (first, one), (second, other), *further = CALLS
    assert {first, second}.isdisjoint(address for address, _ in further)
    assert sorted(name for _, name in further) == names and one != other


ALL_STARTED = threading.Event()


def wait_for_short_tasks(task):
    with LOCK:
        CALLS.append((get_worker().address, task.name))
        num_short = sum(name.startswith("short") for _, name in CALLS)
        if len(CALLS) - num_short == 19:
            ALL_STARTED.set()
        if num_short == 6:
            RELEASE.set()
    # On a busy machine, a worker may end several short tasks before another one starts its first.
    awaited = ALL_STARTED if task.name.startswith("short") else RELEASE
    assert awaited.wait(300)
    return task.name


def test_a_worker_with_free_threads_gets_no_second_task(run_in_threads):
    """If there are 20 workers or more, Dask itself takes any of those with a free thread."""
    names = [f"long {row}" for row in range(19)] + [f"short {row}" for row in range(6)]
    ALL_STARTED.clear()
    assert sorted(run_in_threads(20, wait_for_short_tasks, names)) == sorted(names)
    assert len({address for address, _ in CALLS[:20]}) == 20
    assert len({address for address, name in CALLS if name.startswith("short")}) == 1


def test_the_longest_task_is_late():
    running = [dask_workers._Running(row, f"worker {row}", 10.0 + row) for row in range(3)]

    assert find_late_task(running, [], 100.0) is None
    assert find_late_task([], [2.0], 100.0) is None
    assert find_late_task(running, [1.0, 2.0, 9.0], 13.0) is None
    assert find_late_task(running, [1.0, 2.0, 9.0], 13.1) == 0
    running.append(dask_workers._Running(0, "worker 3", 13.1))
    assert find_late_task(running, [1.0, 2.0, 9.0], 13.1) is None
    assert find_late_task(running, [1.0, 2.0, 9.0], 14.1) == 1


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


@pytest.fixture
def bokeh():
    pytest.importorskip("bokeh", reason="the extra dashboard is not installed")


def dashboard_address(messages):
    (line,) = [line for line in messages if line.startswith("dashboard: ")]
    return re.fullmatch(r"dashboard: (http://([^:/]+):(\d+)/status)", line).groups()


@pytest.mark.parametrize("taken", [True, False])
def test_a_dashboard_listens_on_this_machine_only(bokeh, messages, monkeypatch, taken):
    """Where Dask's usual port is in use, on another one."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        usual = server.getsockname()[1]
        monkeypatch.setattr(dask_workers, "DASHBOARD_PORT", usual)
        if not taken:
            server.close()
        with silence_dask(), local_workers(1, 1, "cpu", "auto") as workers:
            url, host, port = dashboard_address(messages)
            assert host == "127.0.0.1" and (int(port) != usual) == taken
            with urlopen(url) as page:
                assert b"<title>Dask" in page.read()
            assert workers.client.cluster.scheduler.http_server.address == "127.0.0.1"


def test_a_dashboard_on_another_address(bokeh, messages):
    with silence_dask(), local_workers(1, 1, "cpu", "0.0.0.0:0") as workers:
        _, host, port = dashboard_address(messages)
        server = workers.client.cluster.scheduler.http_server
        assert (server.address, server.port) == ("0.0.0.0", int(port))
        assert host == socket.gethostname()


def test_a_dashboard_on_a_port_in_use(bokeh):
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        with (
            pytest.raises(InputError, match=f"--dashboard: expected a free port.*{address}"),
            local_workers(1, 1, "cpu", address),
        ):
            pass


def test_the_dashboard_of_a_running_cluster(bokeh, messages):
    options = {"n_workers": 0, "dashboard_address": "127.0.0.1:0"}
    with silence_dask(), LocalCluster(**options) as cluster:
        with running_workers(cluster.scheduler_address, show_dashboard=True):
            url, _, _ = dashboard_address(messages)
        assert url.partition("//")[2].partition(":")[2] == cluster.dashboard_link.rpartition(":")[2]


def test_a_lost_scheduler():
    class Client:
        def nthreads(self):
            raise OSError("Timed out trying to connect")

        def cancel(self, futures, force):
            raise OSError("Timed out trying to connect")

    workers = Workers(Client(), lambda remaining: None)
    with pytest.raises(InputError, match="--scheduler: lost the connection"):
        dispatch(make_queue(["a"]), print, workers, Progress(2, "dispatching"))


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
            dispatch(make_queue(["a.h5"]), print, workers, progress)
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
