import errno
import os

import pytest
import torch

from pipeline.splits import load_split
from pipeline.utils.errors import InputError
from student.config import get_preset
from student.engine import checkpoint as saving
from student.engine.checkpoint import find_latest_intact, list_checkpoints, save_latest
from student.weights.checkpoint_file import Checkpoint, load_checkpoint

NEWEST, PREVIOUS = "checkpoint.pt", "checkpoint-previous.pt"


@pytest.fixture
def make(vocabulary):
    """`make(step)` gives a checkpoint of some hundred kilobytes."""
    recipe = get_preset("toy", vocabulary.num_objects, vocabulary.num_verbs, vocabulary.person)
    weights = {"weight": torch.randn(100_000)}
    split = load_split(vocabulary, "ua")
    return lambda step: Checkpoint(recipe, vocabulary, split, weights, {"step": step})


@pytest.fixture
def run(make, tmp_path):
    """A run folder with the checkpoints of steps 1 and 2."""
    save_latest(tmp_path, make(1))
    save_latest(tmp_path, make(2))
    return tmp_path


def steps(run):
    return {path.name: load_checkpoint(path).state["step"] for path in run.iterdir()}


def test_nothing_was_saved(tmp_path):
    assert list_checkpoints(tmp_path) == list_checkpoints(tmp_path / "gone") == []


def test_the_newest_and_the_one_before_are_kept(run, make):
    assert steps(run) == {NEWEST: 2, PREVIOUS: 1} and find_latest_intact(run) == (run / NEWEST, "")
    assert list_checkpoints(run) == [run / NEWEST, run / PREVIOUS]
    save_latest(run, make(3))
    assert steps(run) == {NEWEST: 3, PREVIOUS: 2}


def cut(file):
    file.write_bytes(file.read_bytes()[:-2000])


def flip(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 0xFF
    file.write_bytes(content)


def empty(file):
    file.write_bytes(b"")


@pytest.mark.parametrize(
    ("damage", "message"),
    [(cut, "expected a torch checkpoint"), (flip, "found damage in"), (empty, "expected a torch")],
)
def test_a_damaged_newest_one_falls_back_to_the_one_before(run, damage, message):
    damage(run / NEWEST)
    file, line = find_latest_intact(run)
    assert file == run / PREVIOUS and line.startswith(f"{run / NEWEST}: ") and message in line


def test_a_kill_between_both_moves_leaves_the_one_before(run):
    (run / NEWEST).unlink()
    assert find_latest_intact(run) == (run / PREVIOUS, "")


def test_two_damaged_ones_are_an_error(run):
    flip(run / NEWEST)
    cut(run / PREVIOUS)
    with pytest.raises(InputError, match=f"{NEWEST}: expected a whole checkpoint") as caught:
        find_latest_intact(run)
    assert "\n" not in str(caught.value)


def test_a_full_disk_leaves_both_as_they_are(run, make, monkeypatch):
    before = {path.name: path.read_bytes() for path in run.iterdir()}

    class Full:
        """A disk that takes 50,000 bytes more."""

        def __init__(self, file):
            self.file, self.left = file, 50_000

        def write(self, data):
            if len(data) > self.left:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self.left -= len(data)
            return self.file.write(data)

    save = torch.save
    monkeypatch.setattr(torch, "save", lambda value, file: save(value, Full(file)))
    with pytest.raises(InputError) as caught:
        save_latest(run, make(3))
    assert str(caught.value) == (
        f"{run / NEWEST}: cannot be written (No space left on device);"
        f" unchanged: {NEWEST} and {PREVIOUS}"
    )
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before


def test_other_errors_are_not_converted(run, make, monkeypatch):
    def fail(path, checkpoint):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(saving, "write_checkpoint", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        save_latest(run, make(3))
    assert steps(run) == {NEWEST: 2, PREVIOUS: 1}
