import json

import pytest

from pipeline.utils.errors import InputError
from pipeline.utils.files import write_json
from teacher_cache.reader.format import FORMAT_VERSION, LOCK, MANIFEST, PLAN, SHARDS
from teacher_cache.writer import plan as plan_module
from teacher_cache.writer.plan import BuildPlan, claim_folder, read_plan

PARTS = {"clip.model": "A", "person_threshold": 0.2}
LAYOUT = {"images_per_shard": 3}


@pytest.fixture
def plan():
    return BuildPlan(PARTS, LAYOUT, 1, {"device": "cpu"}, {})


def finish(folder, plan, shards=("00000.h5",)):
    entries = [{"name": name, "sha256": "0", "images": []} for name in shards]
    for name in shards:
        (folder / SHARDS / name).touch()
    value = {"format_version": FORMAT_VERSION, "fingerprint": plan.fingerprint}
    value |= {"parts": plan.parts, "layout": plan.layout, "failed": {}, "shards": entries}
    write_json(folder / MANIFEST, value)


@pytest.mark.parametrize("exists", [False, True])
def test_a_new_folder(tmp_path, plan, exists):
    folder = tmp_path / "new" / "cache"
    if exists:
        folder.mkdir(parents=True)
    assert not claim_folder(folder, plan)
    assert (folder / SHARDS).is_dir()
    written = json.loads((folder / PLAN).read_text())
    assert written["parts"] == PARTS and written["settings"] == {"device": "cpu"}
    assert not (folder / MANIFEST).exists()


def test_the_same_plan_resumes(tmp_path, plan):
    claim_folder(tmp_path, plan)
    (tmp_path / SHARDS / "00000.h5").touch()
    assert not claim_folder(tmp_path, BuildPlan(PARTS, LAYOUT, 1, {"device": "cuda"}, {}))
    assert (tmp_path / SHARDS / "00000.h5").is_file()


def test_a_finished_cache_is_left_alone(tmp_path, plan):
    claim_folder(tmp_path, plan)
    finish(tmp_path, plan)
    assert claim_folder(tmp_path, plan)
    (tmp_path / SHARDS / "00000.h5").unlink()
    assert not claim_folder(tmp_path, plan)


@pytest.mark.parametrize("finished", [False, True])
@pytest.mark.parametrize(
    "other, message",
    [
        (BuildPlan({**PARTS, "clip.model": "B"}, LAYOUT, 1, {}, {}), "clip.model: A, now B"),
        (BuildPlan({"clip.model": "A"}, LAYOUT, 1, {}, {}), "person_threshold: 0.2, now nothing"),
        (BuildPlan(PARTS, {"images_per_shard": 4}, 1, {}, {}), "images_per_shard: 3, now 4"),
    ],
)
def test_plans_of_other_settings_are_refused(tmp_path, plan, finished, other, message):
    claim_folder(tmp_path, plan)
    if finished:
        finish(tmp_path, plan)
    before = {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    with pytest.raises(InputError, match="holds a cache of other settings") as caught:
        claim_folder(tmp_path, other)
    assert message in str(caught.value)
    assert before == {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}


@pytest.mark.parametrize("shared", [False, True])
def test_settings_that_do_not_change_outputs(tmp_path, plan, shared):
    """They are updated in `build.json`, unless other jobs share it."""
    claim_folder(tmp_path, plan)
    claim_folder(tmp_path, BuildPlan(PARTS, LAYOUT, 1, {"device": "cuda"}, {}), shared)
    stored = read_plan(tmp_path)
    assert stored["settings"] == {"device": "cpu" if shared else "cuda"}
    assert stored["images"] == 1


def test_a_plan_that_another_builder_writes_at_the_same_time(tmp_path, plan, monkeypatch):
    """Both find an empty folder, and the other builder writes its plan first."""
    other = BuildPlan({**PARTS, "clip.model": "B"}, LAYOUT, 1, {}, {})
    is_new_folder = plan_module._is_new_folder

    def claim_by_other(folder):
        monkeypatch.setattr(plan_module, "_is_new_folder", is_new_folder)
        claim_folder(folder, other)
        return True

    monkeypatch.setattr(plan_module, "_is_new_folder", claim_by_other)
    (tmp_path / "cache").mkdir()
    with pytest.raises(InputError, match=r"clip\.model: B, now A"):
        claim_folder(tmp_path / "cache", plan)
    assert read_plan(tmp_path / "cache")["parts"] == other.parts


def test_a_folder_of_a_builder_that_was_stopped_at_once(tmp_path, plan):
    (tmp_path / SHARDS).mkdir()
    (tmp_path / LOCK).touch()
    (tmp_path / f".{PLAN}.0123.tmp").touch()
    assert not claim_folder(tmp_path, plan)
    assert read_plan(tmp_path)["parts"] == PARTS


def test_shards_without_a_plan_are_refused(tmp_path, plan):
    (tmp_path / SHARDS).mkdir()
    (tmp_path / SHARDS / "00000.h5").touch()
    with pytest.raises(InputError, match="expected a new or empty folder"):
        claim_folder(tmp_path, plan)


def test_other_folders_are_refused(tmp_path, plan):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(InputError, match="expected a new or empty folder"):
        claim_folder(tmp_path, plan)
    with pytest.raises(InputError, match="expected a new or empty folder"):
        claim_folder(tmp_path / "thesis.tex", plan)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize("text", ["", "[]", '{"parts": 3}'])
def test_a_damaged_plan(tmp_path, plan, text):
    (tmp_path / PLAN).write_text(text)
    with pytest.raises(InputError, match=PLAN):
        claim_folder(tmp_path, plan)
