import errno
import multiprocessing
import os
import signal
import subprocess
import sys
from contextlib import suppress

import pytest
from torch.utils.data import DataLoader, Dataset

from pipeline.datasets.dataset import open_dataset
from pipeline.splits import load_split
from pipeline.toy.generate import write_toy
from pipeline.utils.errors import InputError
from student.data.transforms import build_augmentation
from student.utils import workers
from student.utils.preemption import STOP_SIGNALS
from student.utils.workers import BatchIterator, init_worker, loader_options
from student.weights.checkpoint_file import load_checkpoint


@pytest.fixture
def make(make_images, vocabulary):
    return lambda: make_images(load_split(vocabulary, "ua"), build_augmentation("toy"))


class Answers(Dataset):
    """Samples whose worker sends itself a signal first."""

    def __len__(self):
        return len(STOP_SIGNALS)

    def __getitem__(self, index):
        os.kill(os.getpid(), list(STOP_SIGNALS)[index])
        return index


def test_workers_ignore_stop_signals():
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    loader = DataLoader(Answers(), num_workers=1, collate_fn=list, worker_init_fn=init_worker)
    assert list(loader) == [[index] for index in range(len(STOP_SIGNALS))]
    assert {number: signal.getsignal(number) for number in STOP_SIGNALS} == before


KILLED = """
import os, signal, torch
from torch.utils.data import DataLoader, TensorDataset
from student.utils.workers import init_worker
if __name__ == "__main__":
    loader = DataLoader(
        TensorDataset(torch.zeros(9)),
        num_workers=2,
        worker_init_fn=init_worker,
        multiprocessing_context={method!r},
    )
    batches = iter(loader)
    next(batches)
    print("working", flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("method", ["fork", "forkserver"])
def test_workers_end_with_a_killed_parent(method, tmp_path):
    program = tmp_path / "program.py"
    program.write_text(KILLED.format(method=method))
    process = subprocess.Popen(
        [sys.executable, program], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        # Workers, and what forks them, hold the pipe open as long as there are any.
        out, _ = process.communicate(timeout=120)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert out == "working\n" and process.returncode == -signal.SIGKILL


def test_workers_end_after_an_error(make):
    loader = DataLoader(
        make(), sampler=[(0, 1)] * 9, num_workers=2, collate_fn=list, worker_init_fn=init_worker
    )
    caught = None
    try:
        with BatchIterator(loader) as batches:
            first = next(batches)
            raise KeyError(first)
    except KeyError as error:
        caught = error
    # The error, its traceback and `batches` are still here, and yet:
    assert caught is not None and multiprocessing.active_children() == []
    assert list(batches) == []


@pytest.mark.parametrize(
    ("free", "processes", "expected"),
    [
        (100, 1, (4, 2)),
        (10, 1, (4, 2)),
        (9, 1, (4, 1)),
        (20, 2, (4, 2)),
        (12, 2, (4, 1)),
        (5, 1, (3, 1)),
        (2, 1, (0, None)),
        (0, 1, (0, None)),
    ],
)
def test_batches_fit_into_shared_memory(monkeypatch, free, processes, expected, messages):
    """Counted are prefetched batches, one in use and one being copied."""
    monkeypatch.setattr(workers, "_free_shared_memory", lambda: free * 1000)
    messages.clear()
    options = loader_options(4, 1000, processes)
    assert (options["num_workers"], options.get("prefetch_factor")) == expected
    assert len(messages) == (expected != (4, 2))
    DataLoader(Answers(), **options)
    assert loader_options(0, 1000, processes) == {"num_workers": 0}
    monkeypatch.undo()
    monkeypatch.setattr(workers, "SHARED_MEMORY", "/no/such/folder")
    assert loader_options(4, 1000)["num_workers"] == 4


# Code to run before a command: calls `happen` in workers in the second epoch.
HAPPENS = """
import multiprocessing, os, resource, signal
from student.data.dataset import TrainingBatches
multiprocessing.set_start_method("fork", force=True)
original = TrainingBatches.__getitem__
def act_first(self, step):
    (epoch, _), *_ = step[0]
    if epoch:
        happen()
    return original(self, step)
TrainingBatches.__getitem__ = act_first
def happen():
"""
DEATHS = {
    "killed": "os.kill(os.getpid(), signal.SIGKILL)",
    "exit": "os._exit(0)",
    "exception": "{}[1]",
    "end of a file": "raise EOFError",
    "no descriptors": "resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))",
}
SHORT = ("--batch-size", 8, "--epochs", 3, "--workers", 2)


@pytest.mark.parametrize("death", DEATHS)
def test_a_dying_worker_ends_the_run_with_a_one_line_error(start, student_command, tmp_path, death):
    arguments = student_command(tmp_path / "run", *SHORT)
    code, _, err = start(arguments, first=f"{HAPPENS}    {DEATHS[death]}")(60)
    last = err.splitlines()[-1]
    assert code == 2 and last.startswith("eoid-train: a DataLoader worker "), err
    assert "Traceback" not in err and "--workers" in last


def test_a_dying_worker_of_one_process_ends_all_processes(
    start_processes, student_command, tmp_path
):
    act = 'os.environ["RANK"] == "1" and os.kill(os.getpid(), signal.SIGKILL)'
    arguments = student_command(tmp_path / "run", *SHORT, "--workers", 1)
    ends = [one(60) for one in start_processes(arguments, first=f"{HAPPENS}    {act}")]
    assert [code for code, _, _ in ends] == [2, 2]
    assert all("Traceback" not in err for _, _, err in ends), ends
    assert "process 0 of 2: another process" in ends[0][2] and "a DataLoader worker" in ends[1][2]


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 75)])
def test_a_run_with_hanging_workers_can_be_stopped(start, student_command, tmp_path, name, code):
    run = tmp_path / "run"
    hang = f"os.kill(os.getppid(), signal.{name}); os.kill(os.getpid(), signal.SIGSTOP)"
    ended, _, err = start(student_command(run, *SHORT), first=f"{HAPPENS}    {hang}")(60)
    assert ended == code and "Traceback" not in err, err
    assert load_checkpoint(run / "checkpoint.pt").state["step"] <= 2


@pytest.fixture(scope="module")
def many(tmp_path_factory, make_cache):
    """A dataset with 64 training images, and its cache."""
    root = tmp_path_factory.mktemp("many")
    write_toy(root / "toy", train=64, test=1, seed=4, workers=1)
    cache = make_cache(root / "cache", open_dataset(root / "toy").load("train"))
    return "--data", root / "toy", "--cache", cache, "--batch-size", 64, "--workers", 8


FEW_FILES = """
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, ({0}, {0}))
"""


@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("fails", range(4))
def test_workers_that_cannot_be_started(make, monkeypatch, fails):
    """Starting fails for lack of file descriptors after some workers."""
    original, begun = multiprocessing.Process.start, []

    def start_or_fail(self):
        if len(begun) == fails:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        begun.append(self)
        original(self)

    monkeypatch.setattr("multiprocessing.process.BaseProcess.start", start_or_fail)
    options = {"num_workers": 4, "collate_fn": list, "worker_init_fn": init_worker}
    loader = DataLoader(make(), sampler=[(0, 1)] * 9, **options)
    with pytest.raises(InputError, match="--workers") as caught, BatchIterator(loader):
        pass
    assert "\n" not in str(caught.value) and os.strerror(errno.EMFILE) in str(caught.value)
    assert len(begun) == fails and multiprocessing.active_children() == []


@pytest.mark.parametrize(("files", "suffice"), [(40, False), (256, True)])
def test_few_open_files(start, student_command, many, tmp_path, files, suffice):
    arguments = student_command(tmp_path / "run", *many, "--epochs", 3)
    code, _, err = start(arguments, first=FEW_FILES.format(files))(120)
    assert code == (0 if suffice else 2) and "This DataLoader" not in err, err
    assert "Traceback" not in err and "Exception ignored" not in err, err
    assert suffice or "--workers" in err.splitlines()[-1]


SMALL_MEMORY = """
mount -t tmpfs -o size={size} none /dev/shm && exec "$@"
"""


@pytest.mark.slow
@pytest.mark.parametrize(("size", "fit"), [("1m", "0 workers"), ("16m", "3 workers with 1")])
def test_little_shared_memory_takes_fewer_workers(student_command, many, tmp_path, size, fit):
    arguments = student_command(tmp_path / "run", *many, "--epochs", 2)
    inside = ["unshare", "-rm", "sh", "-ec", SMALL_MEMORY.format(size=size), "sh"]
    if subprocess.run([*inside, "true"], capture_output=True).returncode:
        pytest.skip("private mounts are not allowed here")
    program = [sys.executable, "-c", "from student.cli import main; main()"]
    ended = subprocess.run(
        [*inside, *program, *map(str, arguments)], capture_output=True, text=True, timeout=120
    )
    assert ended.returncode == 0, ended.stderr
    (warning,) = [line for line in ended.stderr.splitlines() if "/dev/shm: " in line]
    assert fit in warning
