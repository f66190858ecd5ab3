"""What tests of training share: targets of images, interruptions, comparisons of run folders."""

import json
from contextlib import contextmanager

import pytest
import torch

from student.data.targets import Targets
from student.engine.train_step import TrainStep
from student.weights.checkpoint_file import CHECKPOINT, load_checkpoint

# Differ between runs that train equally.
TIMING = {"images_per_second", "data_wait_share", "memory_gb"}


def read_lines(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


def logged(run):
    """The steps of a run."""
    return read_lines(run / "metrics.jsonl")


def assert_equal_weights(run, other):
    mine, theirs = (load_checkpoint(folder / CHECKPOINT).weights for folder in (run, other))
    for name, value in theirs.items():
        assert torch.equal(mine[name], value), name


def make_targets(seen, num_verbs=3, seed=0, **fields):
    """An image with a pair for every entry of `seen`: the first verb is a label of seen pairs, the
    last one has a teacher probability."""
    is_seen = torch.as_tensor(seen, dtype=torch.bool)
    count = len(is_seen)
    hard = torch.zeros(count, num_verbs, dtype=torch.bool)
    hard[is_seen, 0] = True
    soft = torch.zeros(count, num_verbs)
    soft[:, -1] = 0.25
    boxes = torch.rand(2, count, 4, generator=torch.Generator().manual_seed(seed)) / 4 + 0.3
    made = {
        "human_boxes": boxes[0],
        "object_boxes": boxes[1],
        "object_labels": torch.arange(count) % 3,
        "verb_labels": hard,
        "teacher_probs": soft,
        "seen": is_seen,
        "interactive": torch.ones(count, dtype=torch.bool),
    }
    return Targets(**{**made, **fields})


@contextmanager
def interrupted(number):
    """Interrupts the training in the body before this step."""
    original = TrainStep.__call__

    def step(self, *given):
        if self.scheduler.last_epoch + 1 == number:
            raise KeyboardInterrupt
        return original(self, *given)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(TrainStep, "__call__", step)
        yield
