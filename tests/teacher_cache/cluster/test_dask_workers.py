"""Tasks that are no shards, so that workers need not load the models' libraries."""

import errno
import logging
import os
import time
from pathlib import Path

import pytest

from pipeline.utils.errors import InputError
from pipeline.utils.progress import Progress
from teacher_cache.cluster import dask_workers
from teacher_cache.cluster.dask_workers import Workers, dispatch, local_workers, silence_dask


def make_tasks(names):
    class Task:
        """Local, so that it travels with its code."""

        def __init__(self, name):
            self.path = Path(name)

        def __len__(self):
            return 2

    return [Task(name) for name in names]


@pytest.fixture(scope="module")
def workers():
    with silence_dask(), local_workers(2, 3, "cpu") as found:
        yield found


@pytest.fixture
def run(workers, monkeypatch):
    """Dispatches tasks that run a local function; returns the results in order."""

    def call(work, names, monitor=None):
        monkeypatch.setattr(dask_workers, "run_task", work)
        own = Workers(workers.client, monitor or workers.monitor)
        with Progress(2 * len(names), "sharing", "images") as progress:
            return sorted(dispatch(make_tasks(names), own, progress))

    return call


def test_every_task_is_done_once(run, capsys):
    left = []
    names = list("edcba")
    assert run(lambda task: task.path.name, names, left.append) == sorted(names)
    assert left[0] == 5 and left == sorted(left, reverse=True) and left[-1] == 1
    assert "10/10 images" in capsys.readouterr().err


def test_workers_have_their_share_of_the_cores(run):
    assert set(run(lambda task: os.environ["OMP_NUM_THREADS"], list("ab"))) == {"3"}


def test_a_worker_has_one_task_at_a_time(run, tmp_path):
    """Whatever dies with a worker is then that task alone."""

    def work(task, folder=str(tmp_path)):
        mark = os.path.join(folder, str(os.getpid()))
        os.mkdir(mark)
        time.sleep(0.02)
        os.rmdir(mark)
        return task.path.name

    assert len(run(work, [str(number) for number in range(12)])) == 12


def test_a_task_whose_worker_died_is_done_by_another(run, tmp_path):
    def work(task, folder=str(tmp_path)):
        mark = os.path.join(folder, task.path.name)
        if task.path.name == "b" and not os.path.exists(mark):
            open(mark, "w").close()
            os._exit(9)
        return task.path.name

    assert run(work, list("abcd")) == list("abcd")


def test_a_deadly_task_is_named_in_the_end(run):
    def work(task):
        if task.path.name == "c.h5":
            os._exit(9)
        return task.path.name

    with pytest.raises(InputError, match=r"^c\.h5: 4 workers died one after the other") as caught:
        run(work, ["a.h5", "b.h5", "c.h5"])
    assert "\n" not in str(caught.value)


def raising(error):
    def work(task):
        raise error

    return work


@pytest.mark.parametrize(
    "error, kind, text",
    [
        (InputError("a.jpg: no such image"), InputError, "^a.jpg: no such image$"),
        (ModuleNotFoundError("No module named 'teacher_cache'"), InputError, "this project inst"),
        (RuntimeError("out of luck"), RuntimeError, "out of luck"),
    ],
)
def test_errors_come_through(run, error, kind, text):
    with pytest.raises(kind, match=text):
        run(raising(error), ["a"])


def test_a_full_disk_keeps_its_name(run):
    full = OSError(errno.ENOSPC, "No space left on device", "cache/shards/00001.h5")
    with pytest.raises(OSError, match="00001") as caught:
        run(raising(full), ["a"])
    assert caught.value.errno == errno.ENOSPC
    assert caught.value.filename == "cache/shards/00001.h5"


def test_the_monitor_may_end_the_build(run):
    def give_up(left):
        raise InputError("no hope")

    with pytest.raises(InputError, match="no hope"):
        run(lambda task: task.path.name, ["a"], give_up)


def test_a_lost_scheduler():
    class Client:
        def nthreads(self):
            raise OSError("Timed out trying to connect")

        def cancel(self, futures, force):
            raise OSError("Timed out trying to connect")

    with pytest.raises(InputError, match="the Dask scheduler is gone"):
        dispatch(
            make_tasks(["a"]), Workers(Client(), lambda remaining: None), Progress(2, "sharing")
        )


def test_dasks_log_is_quiet_meanwhile():
    logger = logging.getLogger("distributed.client")
    before = logger.level
    logger.setLevel(logging.INFO)
    with silence_dask():
        assert not logger.isEnabledFor(logging.ERROR)
        assert not logging.getLogger("distributed.nanny").isEnabledFor(logging.ERROR)
    assert logger.level == logging.INFO
    logger.setLevel(before)
