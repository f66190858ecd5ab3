import json
from dataclasses import replace

import pytest

from pipeline.cluster.lock import LOCK
from pipeline.utils.errors import InputError
from pipeline.utils.files import write_json
from teacher_cache.reader.format import FORMAT_VERSION, MANIFEST, PLAN, SHARDS
from teacher_cache.writer import plan as plan_module
from teacher_cache.writer.plan import BuildPlan, claim_folder, read_plan

PARTS = {"clip.model": "A", "person_threshold": 0.2}
ENTRY = {"name": "00000.h5", "sha256": "0", "images": []}
PLANNED = BuildPlan(PARTS, {"images_per_shard": 3}, 1, {"device": "cpu"}, {})


def finish(folder):
    (folder / SHARDS / "00000.h5").touch()
    value = {"format_version": FORMAT_VERSION, "fingerprint": PLANNED.fingerprint}
    value |= {"parts": PARTS, "layout": PLANNED.layout, "failed": {}, "shards": [ENTRY]}
    write_json(folder / MANIFEST, value)


def test_a_new_folder(tmp_path):
    folder = tmp_path / "new" / "cache"
    assert not claim_folder(folder, PLANNED)
    assert (folder / SHARDS).is_dir()
    written = json.loads((folder / PLAN).read_text())
    assert written["parts"] == PARTS and written["settings"] == {"device": "cpu"}
    assert not (folder / MANIFEST).exists()


def test_a_finished_cache_is_left_alone(tmp_path):
    claim_folder(tmp_path, PLANNED)
    finish(tmp_path)
    assert claim_folder(tmp_path, PLANNED)
    (tmp_path / SHARDS / "00000.h5").unlink()
    assert not claim_folder(tmp_path, PLANNED)


@pytest.mark.parametrize("finished", [False, True])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"parts": {**PARTS, "clip.model": "B"}}, "clip.model: A, now B"),
        ({"parts": {"clip.model": "A"}}, "person_threshold: 0.2, now nothing"),
        ({"layout": {"images_per_shard": 4}}, "images_per_shard: 3, now 4"),
    ],
)
def test_plans_of_other_settings_are_refused(tmp_path, finished, changes, message):
    claim_folder(tmp_path, PLANNED)
    if finished:
        finish(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    with pytest.raises(InputError, match="holds a cache of other settings") as caught:
        claim_folder(tmp_path, replace(PLANNED, **changes))
    assert message in str(caught.value)
    assert ("delete it, since it has no shard yet, or" in str(caught.value)) is not finished
    assert before == {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}


@pytest.mark.parametrize("shared", [False, True])
def test_settings_that_do_not_change_outputs(tmp_path, shared):
    """They are updated in `build.json`, unless other jobs share it."""
    claim_folder(tmp_path, PLANNED)
    (tmp_path / SHARDS / "00000.h5").touch()
    assert not claim_folder(tmp_path, replace(PLANNED, settings={"device": "cuda"}), shared)
    stored = read_plan(tmp_path)
    assert stored["settings"] == {"device": "cpu" if shared else "cuda"}
    assert stored["images"] == 1 and (tmp_path / SHARDS / "00000.h5").is_file()


def test_a_plan_that_another_builder_writes_at_the_same_time(tmp_path, monkeypatch):
    """Both find an empty folder, and the other builder writes its plan first."""
    other = replace(PLANNED, parts={**PARTS, "clip.model": "B"})
    is_new_folder = plan_module.is_new_folder

    def claim_by_other(folder):
        monkeypatch.setattr(plan_module, "is_new_folder", is_new_folder)
        claim_folder(folder, other)
        return True

    monkeypatch.setattr(plan_module, "is_new_folder", claim_by_other)
    with pytest.raises(InputError, match=r"clip\.model: B, now A"):
        claim_folder(tmp_path, PLANNED)
    assert read_plan(tmp_path)["parts"] == other.parts


def test_a_folder_of_a_builder_that_was_stopped_at_once(tmp_path):
    (tmp_path / SHARDS).mkdir()
    (tmp_path / LOCK).touch()
    (tmp_path / f".{PLAN}.0123.tmp").touch()
    assert not claim_folder(tmp_path, PLANNED)
    assert read_plan(tmp_path)["parts"] == PARTS


@pytest.mark.parametrize("name", [f"{SHARDS}/00000.h5", "thesis.tex"])
def test_other_folders_are_refused(tmp_path, name):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.touch()
    for folder in (tmp_path, path):
        with pytest.raises(InputError, match="expected a new or empty folder"):
            claim_folder(folder, PLANNED)
    assert not (tmp_path / PLAN).exists()


@pytest.mark.parametrize("text", ["", "[]", '{"parts": 3}'])
def test_a_damaged_plan(tmp_path, text):
    (tmp_path / PLAN).write_text(text)
    with pytest.raises(InputError, match=PLAN):
        claim_folder(tmp_path, PLANNED)
