import errno
import json
import os
from dataclasses import asdict, replace

import pytest
import torch

from pipeline.splits import load_split
from pipeline.utils.errors import InputError
from pipeline.utils.files import write_json
from student.config import TrainConfig, get_preset
from student.engine.checkpointing import (
    AUTO,
    NEVER,
    claim_run_folder,
    find_latest_intact,
    find_resume_point,
    is_resumable,
    lock_run_folder,
    read_plan_entry,
    save_latest,
)
from student.weights.checkpoint_file import RUN_FORMAT, Checkpoint, load_checkpoint, save_checkpoint

PLAN = {
    "format": RUN_FORMAT,
    "dataset": "toy",
    "pretrained": None,
    "resume": None,
    "recipe": {"train": asdict(TrainConfig(schedule="step", epochs=3, seed=0))},
}
VERSION_0_1 = {name: value for name, value in PLAN.items() if name != "format"}
LATEST, PREVIOUS = "checkpoint.pt", "checkpoint-previous.pt"
HELD = {"config.json", LATEST, "metrics.jsonl", "logs"}


def plan(**train):
    return {**PLAN, "recipe": {"train": {**PLAN["recipe"]["train"], **train}}}


@pytest.fixture
def checkpoint(vocabulary):
    """`checkpoint(step)` gives a checkpoint of some hundred kilobytes."""
    recipe = get_preset("toy", vocabulary.num_objects, vocabulary.num_verbs, vocabulary.person)
    split, weights = load_split(vocabulary, "ua"), {"weight": torch.randn(50_000)}
    return lambda step: Checkpoint(recipe, vocabulary, split, weights, {"step": step, "plan": PLAN})


@pytest.fixture
def run(checkpoint, tmp_path):
    """A folder with a run of `PLAN` and its checkpoint of step 1."""
    folder = tmp_path / "run"
    folder.mkdir()
    assert find_resume_point(folder, PLAN, False, AUTO) is None
    write_json(folder / "config.json", PLAN)
    save_latest(folder, checkpoint(1))
    (folder / "metrics.jsonl").write_text("{}\n")
    (folder / "logs").mkdir()
    return folder


@pytest.fixture
def later(run, checkpoint):
    """The folder with the checkpoints of steps 1 and 2."""
    save_latest(run, checkpoint(2))
    return run


@pytest.fixture
def longer(tmp_path):
    """The empty folder of another run."""
    (tmp_path / "longer").mkdir()
    return tmp_path / "longer"


def names(folder):
    return {path.name for path in folder.iterdir()}


def steps(run):
    return {path.name: load_checkpoint(path).state["step"] for path in run.glob("*.pt")}


def test_the_last_two_checkpoints_are_kept(later, checkpoint):
    assert steps(later) == {LATEST: 2, PREVIOUS: 1}
    assert find_latest_intact(later) == (later / LATEST, "")
    save_latest(later, checkpoint(3))
    assert steps(later) == {LATEST: 3, PREVIOUS: 2}


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
def test_a_damaged_checkpoint_is_reported_and_moved(later, messages, damage, message):
    damage(later / LATEST)
    damaged = (later / LATEST).read_bytes()
    assert find_resume_point(later, PLAN, False, AUTO) == later / PREVIOUS
    (line,) = messages
    assert line.startswith(f"{later / LATEST}: ") and message in line
    assert line.endswith(f"; resuming {PREVIOUS}")
    # The next save would otherwise replace the undamaged checkpoint by the damaged one.
    assert (later / "checkpoint-damaged.pt").read_bytes() == damaged
    assert not (later / LATEST).exists()


def test_two_damaged_checkpoints_are_an_error(later):
    flip(later / LATEST)
    cut(later / PREVIOUS)
    with pytest.raises(InputError, match=f"{LATEST}: expected a whole checkpoint") as caught:
        find_resume_point(later, PLAN, False, AUTO)
    assert "\n" not in str(caught.value)


class FullDisk:
    """A file on a disk that takes no more."""

    def __init__(self, file):
        self.file = file

    def write(self, data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_leaves_both_checkpoints(later, checkpoint, monkeypatch):
    before = {path.name: path.read_bytes() for path in later.glob("*.pt")}
    save = torch.save
    monkeypatch.setattr(torch, "save", lambda value, file: save(value, FullDisk(file)))
    with pytest.raises(InputError) as caught:
        save_latest(later, checkpoint(3))
    assert str(caught.value).startswith(f"{later / LATEST}: cannot be written (No space left on")
    assert {path.name: path.read_bytes() for path in later.glob("*.pt")} == before
    assert not list(later.glob(".*"))


def test_the_same_run_is_resumed_even_with_overwrite(run):
    (run / ".checkpoint.pt.99.tmp").write_bytes(b"half a checkpoint")
    for overwrite in (False, True):
        assert find_resume_point(run, PLAN, overwrite, AUTO) == run / LATEST
        assert names(run) == HELD


@pytest.mark.parametrize(
    ("held", "wanted", "way", "message"),
    [
        (PLAN, plan(seed=1), AUTO, r"found others \(--seed: 0, now 1\); choose a"),
        (PLAN, plan(seed=1), NEVER, r"found others \(--seed"),
        (PLAN, {**PLAN, "dataset": "other"}, AUTO, r"found others \("),
        (PLAN, PLAN, NEVER, "expected a new folder with --resume never"),
        # As version 0.1 wrote it.
        (
            {**PLAN, "format": None},
            PLAN,
            AUTO,
            r"config\.json: format: expected eoid-run-2",
        ),
    ],
)
def test_another_run_is_refused_or_replaced(run, held, wanted, way, message):
    write_json(run / "config.json", held)
    with pytest.raises(InputError, match=message):
        find_resume_point(run, wanted, False, way)
    assert names(run) == HELD
    assert find_resume_point(run, wanted, True, way) is None
    assert names(run) == set()


def test_is_resumable_and_read_plan_entry(run, longer):
    assert is_resumable(run, PLAN, AUTO) and is_resumable(run, PLAN, "other/checkpoint.pt")
    assert not is_resumable(run, PLAN, NEVER) and not is_resumable(run, plan(seed=1), AUTO)
    assert read_plan_entry(run, "dataset") == "toy" and read_plan_entry(run, "weather") is None
    # As after a kill between the renaming of both checkpoints.
    (run / LATEST).rename(run / PREVIOUS)
    assert is_resumable(run, PLAN, AUTO) and find_latest_intact(run) == (run / PREVIOUS, "")
    (run / PREVIOUS).unlink()
    for folder in (run, longer):
        assert not is_resumable(folder, PLAN, AUTO) and read_plan_entry(folder, "dataset") is None


@pytest.mark.parametrize("name", ["", LATEST, f"logs/../{PREVIOUS}"])
def test_a_run_does_not_remove_the_checkpoint_to_continue(later, name):
    held = names(later)
    with pytest.raises(InputError, match="expected a checkpoint outside"):
        find_resume_point(later, plan(epochs=9), True, str(later / name))
    assert names(later) == held


def test_other_files_are_refused_or_kept(tmp_path):
    (tmp_path / "thesis.tex").write_text("hours of work")
    message = "expected a new folder or a run folder, found other files"
    with (
        pytest.raises(InputError, match=message),
        claim_run_folder(tmp_path, PLAN, {}, False, AUTO),
    ):
        pass
    assert names(tmp_path) == {"thesis.tex"}
    with claim_run_folder(tmp_path, PLAN, {"workers": 3}, True, AUTO) as start:
        assert start is None and names(tmp_path) == {"thesis.tex", "config.json", ".lock"}
    held = json.loads((tmp_path / "config.json").read_text())
    assert held == {**PLAN, "execution": {"workers": 3}}
    with claim_run_folder(tmp_path, PLAN, {}, False, AUTO) as start:
        assert start is None


@pytest.mark.parametrize("as_folder", [False, True])
@pytest.mark.parametrize(
    ("train", "refused"),
    [
        ({}, None),
        ({"epochs": 9}, None),
        ({"epochs": 9, "patience": 2}, None),
        ({"epochs": 9, "seed": 1}, "--seed: 0, now 1"),
        (
            {"epochs": 9, "schedule": "one_cycle"},
            "--epochs: 3, now 9; --schedule: step, now one_cycle",
        ),
    ],
)
def test_continuing_another_run(run, longer, train, refused, as_folder):
    """With more epochs only if the learning rate does not depend on their number."""
    file = run / LATEST
    given = str(run if as_folder else file)
    wanted = {**plan(**train), "resume": given}
    if refused is not None:
        with pytest.raises(InputError, match=rf"found others \({refused}\)$"):
            find_resume_point(longer, wanted, False, given)
        assert names(longer) == set()
        return
    assert find_resume_point(longer, wanted, False, given) == file
    assert names(longer) == set()
    write_json(longer / "config.json", wanted)
    # Once the run has a checkpoint, this one is resumed.
    (longer / LATEST).write_bytes(file.read_bytes())
    assert find_resume_point(longer, wanted, False, given) == longer / LATEST


def test_checkpoints_that_cannot_be_continued(longer, tmp_path, checkpoint):
    with pytest.raises(InputError, match=r"gone\.pt: no such file"):
        find_resume_point(longer, PLAN, False, str(tmp_path / "gone.pt"))
    save_checkpoint(tmp_path / "best.pt", replace(checkpoint(3), state={"step": 3}))
    with pytest.raises(InputError, match="state: expected that of a training run, found weights"):
        find_resume_point(longer, PLAN, False, str(tmp_path / "best.pt"))
    assert names(longer) == set()


@pytest.mark.parametrize("step", [None, 2])
def test_a_run_that_keeps_the_best_weights_is_continued_with_them(run, longer, checkpoint, step):
    """Its best checkpoint has to be beside the latest one."""
    last = checkpoint(3)
    recipe = last.recipe.override(keep="best", val_size=4)
    state = {**last.state, "best": {"score": 0.5, "step": 1}}
    save_latest(run, replace(last, recipe=recipe, state=state))
    if step is not None:
        save_checkpoint(run / "best.pt", checkpoint(step))
    found = "no such file" if step is None else step
    with pytest.raises(InputError, match=rf"best\.pt: expected .* of step 1, found {found}$"):
        find_resume_point(longer, PLAN, False, str(run))
    assert names(longer) == set()
    save_checkpoint(run / "best.pt", checkpoint(1))
    assert find_resume_point(longer, PLAN, False, str(run)) == run / LATEST
    assert (longer / "best.pt").read_bytes() == (run / "best.pt").read_bytes()


def test_a_second_process_is_refused(start, student_command, tmp_path):
    run = tmp_path / "run"
    with lock_run_folder(run):
        code, _, err = start(student_command(run))()
        assert code == 2 and f"{run}: expected a run that no other process is using, found" in err
        assert f"found process {(run / '.lock').read_text().strip()}" in err
        assert names(run) == {".lock"}
