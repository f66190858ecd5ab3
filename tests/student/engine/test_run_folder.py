import json
from dataclasses import replace

import pytest

from pipeline.splits import load_split
from pipeline.utils.errors import InputError
from pipeline.utils.files import write_json
from student.config import get_preset
from student.engine.checkpoint import (
    AUTO,
    NEVER,
    ResumePoint,
    claim_run_folder,
    find_resume_point,
    is_resumable,
    lock_run_folder,
    read_plan_entry,
    save_latest,
)
from student.weights.checkpoint_file import RUN_FORMAT, Checkpoint, save_checkpoint

PLAN = {
    "format": RUN_FORMAT,
    "dataset": "toy",
    "pretrained": None,
    "resume": None,
    "recipe": {"train": {"schedule": "step", "epochs": 3, "seed": 0}},
}


def plan(**train):
    return {**PLAN, "recipe": {"train": {**PLAN["recipe"]["train"], **train}}}


@pytest.fixture
def checkpoint(vocabulary):
    recipe = get_preset("toy", vocabulary.num_objects, vocabulary.num_verbs, vocabulary.person)
    return Checkpoint(recipe, vocabulary, load_split(vocabulary, "ua"), {}, {"plan": PLAN})


@pytest.fixture
def run(checkpoint, tmp_path):
    """A folder with a run of `PLAN` and its checkpoint."""
    folder = tmp_path / "run"
    folder.mkdir()
    assert find_resume_point(folder, PLAN, False, AUTO) == ResumePoint(None)
    write_json(folder / "config.json", PLAN)
    save_latest(folder, checkpoint)
    (folder / "metrics.jsonl").write_text("{}\n")
    (folder / "logs").mkdir()
    return folder


def names(folder):
    return {path.name for path in folder.iterdir()}


HELD = {"config.json", "checkpoint.pt", "metrics.jsonl", "logs"}


@pytest.mark.parametrize("overwrite", [False, True])
def test_the_same_run_is_resumed_even_with_overwrite(run, overwrite):
    (run / ".checkpoint.pt.99.tmp").write_bytes(b"half a checkpoint")
    assert find_resume_point(run, PLAN, overwrite, AUTO) == ResumePoint(run / "checkpoint.pt")
    assert names(run) == HELD


@pytest.mark.parametrize("way", [AUTO, NEVER])
def test_another_run_is_refused_or_replaced(run, way):
    with pytest.raises(
        InputError, match=r"found another recipe \(recipe.*seed: .*, now 1\); choose a"
    ):
        find_resume_point(run, plan(seed=1), False, way)
    assert names(run) == HELD
    assert find_resume_point(run, plan(seed=1), True, way) == ResumePoint(None)
    assert names(run) == set()


def test_never_restarts_only_with_overwrite(run):
    with pytest.raises(InputError, match="expected a new folder with --resume never"):
        find_resume_point(run, PLAN, False, NEVER)
    assert find_resume_point(run, PLAN, True, NEVER) == ResumePoint(None) and names(run) == set()


def test_a_damaged_checkpoint_is_reported(run, checkpoint):
    save_latest(run, checkpoint)
    (run / "checkpoint.pt").write_bytes(b"PK")
    start = find_resume_point(run, PLAN, False, AUTO)
    assert start.checkpoint == run / "checkpoint-previous.pt"
    assert "checkpoint.pt: expected a torch checkpoint" in start.message
    assert start.message.endswith("; resuming checkpoint-previous.pt")


def test_a_damaged_checkpoint_never_replaces_the_undamaged_one(run, checkpoint):
    """Not even when the run is killed while it writes the next checkpoint."""
    save_latest(run, checkpoint)
    (run / "checkpoint.pt").write_bytes(b"PK")
    find_resume_point(run, PLAN, False, AUTO)
    assert (run / "checkpoint-damaged.pt").read_bytes() == b"PK"
    moved = []

    def killed(*paths):
        moved.append(paths)
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("os.replace", killed)
        save_latest(run, checkpoint)
    assert len(moved) == 1 and moved[0][1] == run / "checkpoint.pt"
    assert find_resume_point(run, PLAN, False, AUTO) == ResumePoint(run / "checkpoint-previous.pt")


def test_is_resumable_and_read_plan_entry(run, tmp_path):
    assert is_resumable(run, PLAN, AUTO) and is_resumable(run, PLAN, "other/checkpoint.pt")
    assert not is_resumable(run, PLAN, NEVER) and not is_resumable(run, plan(seed=1), AUTO)
    assert read_plan_entry(run, "dataset") == "toy" and read_plan_entry(run, "weather") is None
    (run / "checkpoint.pt").rename(run / "checkpoint-previous.pt")
    assert is_resumable(run, PLAN, AUTO) and read_plan_entry(run, "dataset") == "toy"
    (run / "checkpoint-previous.pt").unlink()
    for folder in (run, tmp_path / "gone"):
        assert not is_resumable(folder, PLAN, AUTO) and read_plan_entry(folder, "dataset") is None


@pytest.mark.parametrize("name", ["", "checkpoint.pt", "logs/../checkpoint-previous.pt"])
def test_a_run_does_not_remove_the_checkpoint_to_continue(run, checkpoint, name):
    save_latest(run, checkpoint)
    held = names(run)
    with pytest.raises(InputError, match="expected a checkpoint outside"):
        find_resume_point(run, plan(epochs=9), True, str(run / name))
    assert names(run) == held


def test_other_files_are_refused_or_kept(tmp_path):
    (tmp_path / "thesis.tex").write_text("hours of work")
    with (
        pytest.raises(InputError, match="expected a new folder or a run folder, found other files"),
        claim_run_folder(tmp_path, PLAN, {}, False, AUTO),
    ):
        pass
    assert names(tmp_path) == {"thesis.tex"}
    with claim_run_folder(tmp_path, PLAN, {"workers": 3}, True, AUTO) as start:
        assert start == ResumePoint(None) and names(tmp_path) == {
            "thesis.tex",
            "config.json",
            ".lock",
        }
    held = json.loads((tmp_path / "config.json").read_text())
    assert held == {**PLAN, "execution": {"workers": 3}}
    with claim_run_folder(tmp_path, PLAN, {}, False, AUTO) as start:
        assert start == ResumePoint(None)


@pytest.mark.parametrize(
    ("train", "refused"),
    [
        ({}, None),
        ({"epochs": 9}, None),
        ({"epochs": 9, "seed": 1}, "recipe.train.seed"),
        ({"epochs": 9, "schedule": "one_cycle"}, "recipe.train.schedule and recipe.train.epochs"),
    ],
)
def test_continuing_a_checkpoint_of_another_run(run, tmp_path, train, refused):
    """With more epochs only if the learning rate does not depend on their number."""
    file, folder = run / "checkpoint.pt", tmp_path / "longer"
    folder.mkdir()
    wanted = {**plan(**train), "resume": str(file)}
    if refused is None:
        assert find_resume_point(folder, wanted, False, str(file)) == ResumePoint(file)
        assert names(folder) == set()
        write_json(folder / "config.json", wanted)
        # Once the run has a checkpoint, this one is resumed.
        (folder / "checkpoint.pt").write_bytes(file.read_bytes())
        assert find_resume_point(folder, wanted, False, str(file)) == ResumePoint(
            folder / "checkpoint.pt"
        )
    else:
        with pytest.raises(InputError) as caught:
            find_resume_point(folder, wanted, False, str(file))
        assert str(caught.value) == (
            f"{file}: expected a checkpoint of this run, found one with another {refused}"
        )
        assert names(folder) == set()


def test_a_missing_checkpoint_to_continue(tmp_path):
    with pytest.raises(InputError, match=r"gone\.pt: no such file"):
        find_resume_point(tmp_path, PLAN, False, str(tmp_path / "gone.pt"))
    assert names(tmp_path) == set()


def test_continuing_a_run_folder(run, tmp_path):
    folder = tmp_path / "longer"
    folder.mkdir()
    wanted = {**plan(epochs=9), "resume": str(run)}
    assert find_resume_point(folder, wanted, False, str(run)) == ResumePoint(run / "checkpoint.pt")


def test_weights_without_state_cannot_be_continued(tmp_path, checkpoint):
    file, folder = tmp_path / "best.pt", tmp_path / "run"
    folder.mkdir()
    save_checkpoint(file, replace(checkpoint, state={"step": 3}))
    with pytest.raises(InputError, match="state: expected that of a training run, found weights"):
        find_resume_point(folder, PLAN, False, str(file))


def test_a_second_process_is_refused(start, student_command, tmp_path):
    run = tmp_path / "run"
    with lock_run_folder(run):
        code, _, err = start(student_command(run))()
        assert code == 2 and f"{run}: expected a run that no other process is using, found" in err
        assert f"found process {(run / '.lock').read_text().strip()}" in err
        assert names(run) == {".lock"}


def test_a_run_folder_of_version_0_1_is_refused(run):
    old = {name: value for name, value in PLAN.items() if name != "format"}
    write_json(run / "config.json", {**old, "init": None})
    message = r"config\.json: format: expected eoid-run-2, found none; choose a new folder"
    with pytest.raises(InputError, match=message) as caught:
        find_resume_point(run, PLAN, False, AUTO)
    assert "\n" not in str(caught.value) and names(run) == HELD
    assert find_resume_point(run, PLAN, True, AUTO).checkpoint is None
    assert names(run) == set()
