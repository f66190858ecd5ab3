"""Runs that are killed, or whose disk is full, can be resumed with the same result."""

import signal

import pytest
import torch
from training import TIMING, assert_equal_weights, logged

from student.weights.checkpoint_file import load_checkpoint

pytestmark = pytest.mark.slow

OPTIONS = ("--batch-size", 4, "--epochs", 2, "--dropout", 0.1, "--ema", 0.9, "--accumulation", 2)
EVERY_STEP = ("--checkpoint-minutes", 0)

# Code to run before the command: `at(number, module, name, act)` wraps a function so that its call
# with this number ends the process with SIGKILL before, after or during the call.
KILL = """
import os, signal
def die():
    os.kill(os.getpid(), signal.SIGKILL)
def at(number, module, name, act):
    original, calls = getattr(module, name), []
    def wrapped(*args, **options):
        calls.append(name)
        return act(original, args, options) if len(calls) == number else original(*args, **options)
    setattr(module, name, wrapped)
def before(original, args, options):
    die()
def after(original, args, options):
    original(*args, **options)
    die()
def half(original, args, options):
    value, file = args
    file.write(b"PK" * 5000)
    file.flush()
    die()
import student.engine.checkpointing, student.engine.train_step, torch
"""
MOMENTS = {
    "in the second step": 'at(2, student.engine.train_step.TrainStep, "losses", before)',
    "half-way through writing a checkpoint": 'at(2, torch, "save", half)',
    "between moving the old and the new one": 'at(2, os, "replace", after)',
    "after saving": 'at(3, student.engine.checkpointing, "save_latest", after)',
}


def lines(run):
    return [{name: one[name] for name in one.keys() - TIMING} for one in logged(run)]


def test_a_repeatedly_killed_run_gives_the_same_bits(start, student_command, tmp_path):
    run, whole = tmp_path / "killed", tmp_path / "whole"
    code, _, err = start(student_command(whole, *OPTIONS, "--workers", 1))()
    assert code == 0, err
    arguments = student_command(run, *OPTIONS, *EVERY_STEP, "--workers", 2)
    steps = []
    for moment, code in MOMENTS.items():
        left = start(arguments, first=f"{KILL}\n{code}")()
        assert left[0] == -signal.SIGKILL, (moment, left)
        kept = run.glob("checkpoint*.pt")
        steps.append(max([load_checkpoint(path).state["step"] for path in kept], default=0))
    # Every attempt resumes the last complete checkpoint.
    assert steps == sorted(steps) and steps[0] >= 1 and steps[-1] < 8, steps
    code, _, err = start(arguments)()
    assert code == 0 and f"resuming at step {steps[-1]} of 8" in err, err
    assert lines(run) == lines(whole)
    assert_equal_weights(run, whole)
    mine, theirs = (load_checkpoint(folder / "checkpoint.pt") for folder in (run, whole))
    for name, value in theirs.state["model"].items():
        assert torch.equal(mine.state["model"][name], value), name
    states = [one.state["generators"][0]["torch"] for one in (mine, theirs)]
    assert states[0] == states[1]
    assert (run / "predictions.json").read_bytes() == (whole / "predictions.json").read_bytes()
    assert not list(run.glob(".*.tmp"))


FULL = """
import resource
from student.engine import checkpointing
save = checkpointing.save_latest
def save_latest(run_dir, checkpoint):
    if checkpoint.state["step"] == 3:
        resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, resource.RLIM_INFINITY))
    save(run_dir, checkpoint)
checkpointing.save_latest = save_latest
"""


def test_a_full_disk_keeps_the_older_checkpoints(start, student_command, tmp_path):
    run = tmp_path / "run"
    arguments = student_command(run, *OPTIONS, *EVERY_STEP, "--workers", 0)
    code, _, err = start(arguments, first=FULL)()
    assert code == 2, err
    line = err.splitlines()[-1]
    assert line.startswith(f"eoid-train: {run}/checkpoint.pt: cannot be written (File too large)")
    files = ("checkpoint.pt", "checkpoint-previous.pt")
    assert [load_checkpoint(run / name).state["step"] for name in files] == [2, 1]
    assert not list(run.glob(".*.tmp"))
