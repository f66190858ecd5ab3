import multiprocessing
import os
import signal
import subprocess
import sys
from contextlib import suppress

import pytest
from torch.utils.data import DataLoader, Dataset

from pipeline.errors import InputError
from pipeline.splits import load_split
from student.augmentation import world_augmentation
from student.signals import STOPPING
from student.workers import Batches, plain_errors, start_work


@pytest.fixture
def make(make_images, vocabulary):
    return lambda: make_images(load_split(vocabulary, "ua"), world_augmentation())


class Answers(Dataset):
    """A worker that signals itself before it answers."""

    def __len__(self):
        return len(STOPPING)

    def __getitem__(self, index):
        os.kill(os.getpid(), list(STOPPING)[index])
        return index


def test_signals_leave_workers_at_work():
    before = {number: signal.getsignal(number) for number in STOPPING}
    loader = DataLoader(Answers(), num_workers=1, collate_fn=list, worker_init_fn=start_work)
    assert list(loader) == [[index] for index in range(len(STOPPING))]
    assert {number: signal.getsignal(number) for number in STOPPING} == before


KILLED = """
import os, signal, torch
from torch.utils.data import DataLoader, TensorDataset
from student.workers import start_work
if __name__ == "__main__":
    loader = DataLoader(
        TensorDataset(torch.zeros(9)),
        num_workers=2,
        worker_init_fn=start_work,
        multiprocessing_context={method!r},
    )
    batches = iter(loader)
    next(batches)
    print("working", flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("method", ["fork", "forkserver"])
def test_a_killed_run_leaves_no_worker_behind(method, tmp_path):
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


def test_an_error_leaves_no_worker_behind(make):
    loader = DataLoader(
        make(), sampler=[(0, 1)] * 9, num_workers=2, collate_fn=list, worker_init_fn=start_work
    )
    caught = None
    try:
        with Batches(loader) as batches:
            first = next(batches)
            raise KeyError(first)
    except KeyError as error:
        caught = error
    # The error, its traceback and `batches` are still here, and yet:
    assert caught is not None and multiprocessing.active_children() == []
    assert list(batches) == []


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_image_is_one_line_from_workers_too(make, dataset_root, tmp_path, workers):
    images = make()
    record = images.records[2]
    broken = tmp_path / record.id
    broken.write_bytes(record.path.read_bytes()[:500])
    images.records[2] = type(record)(record.id, broken)
    loader = DataLoader(
        images,
        sampler=[(0, 2)],
        num_workers=workers,
        collate_fn=list,
        worker_init_fn=start_work,
    )
    with pytest.raises(InputError) as caught, plain_errors(), Batches(loader) as batches:
        list(batches)
    assert multiprocessing.active_children() == []
    assert str(caught.value).startswith(f"{broken}: expected a whole image")
    assert "\n" not in str(caught.value)
