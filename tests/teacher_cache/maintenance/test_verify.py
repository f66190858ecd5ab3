import json
import shutil

import numpy as np
import pytest
from commands import run_command

from pipeline.utils.errors import InputError
from pipeline.utils.files import sha256_of_file, write_json
from teacher_cache.build import build_cache
from teacher_cache.cli import main
from teacher_cache.maintenance import verify as verify_module
from teacher_cache.maintenance.rescore import RescoreConfig, rescore_cache
from teacher_cache.maintenance.verify import BACKUP_FOLDER, VerifyConfig, check_files, verify_cache
from teacher_cache.reader.cache import open_cache
from teacher_cache.reader.format import MANIFEST, PLAN, SHARDS, TEACHER
from teacher_cache.writer.checksum import CHECKSUM_KEY
from teacher_cache.writer.lock import lock_folder
from teacher_cache.writer.shard import write_shard

FILES = [MANIFEST, PLAN, TEACHER, *(f"{SHARDS}/0000{number}.h5" for number in range(3))]


@pytest.fixture
def cache(finished, tmp_path):
    """A copy of a finished cache that a test may damage."""
    return shutil.copytree(finished, tmp_path / "cache")


def contents(folder):
    return {
        path.relative_to(folder).as_posix(): sha256_of_file(path)
        for path in folder.rglob("*")
        if path.is_file()
    }


def find_problems(folder):
    """Descriptions of a cache's problems, by file."""
    return {problem.name: problem.description for problem in check_files(folder).problems}


def test_an_undamaged_cache(cache, capsys):
    verify_cache(VerifyConfig(cache))
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 and "7 images in 3 shards" in lines[0]
    assert find_problems(cache) == {}


@pytest.mark.parametrize("name", FILES)
def test_any_flipped_byte_is_found(cache, name):
    path = cache / name
    content = path.read_bytes()
    rng = np.random.default_rng(len(name))
    offsets = {0, len(content) - 1, *rng.integers(0, len(content), 40).tolist()}
    for offset in sorted(offsets):
        damaged = bytearray(content)
        damaged[offset] ^= int(rng.integers(1, 256))
        path.write_bytes(damaged)
        assert name in find_problems(cache), offset
    path.write_bytes(content)
    assert find_problems(cache) == {}


def reformat_json(content):
    return json.dumps(json.loads(content)).encode()


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(
    "change, description",
    [
        (lambda content: content[:-1], "is truncated"),
        (lambda content: content[: len(content) // 2], "is truncated"),
        (lambda content: b"", "is empty"),
        (lambda content: content + b"\n", "is too long"),
        (lambda content: b"something else", ""),
        (None, "is missing"),
    ],
)
def test_truncated_replaced_and_missing_files(cache, name, change, description):
    path = cache / name
    if change is None:
        path.unlink()
    else:
        path.write_bytes(change(path.read_bytes()))
    if name == MANIFEST and change is None:
        return
    problems = find_problems(cache)
    assert name in problems
    if name.startswith(SHARDS):
        assert description in problems[name]
        assert problems.keys() == {name}
    with pytest.raises(InputError) as caught:
        verify_cache(VerifyConfig(cache))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", [MANIFEST, PLAN])
def test_reformatted_json_counts_as_damaged(cache, name):
    (cache / name).write_bytes(reformat_json((cache / name).read_bytes()))
    assert name in find_problems(cache)


def test_swapped_shards(cache):
    first, second = (cache / SHARDS / name for name in ("00000.h5", "00001.h5"))
    content = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(content)
    assert find_problems(cache) == {
        "shards/00000.h5": "contains the data of shards/00001.h5",
        "shards/00001.h5": "contains the data of shards/00000.h5",
    }


def test_unexpected_files(cache):
    shutil.copy(cache / SHARDS / "00000.h5", cache / SHARDS / "00003.h5")
    (cache / SHARDS / "notes.txt").write_text("mine")
    (cache / SHARDS / ".00001.h5.12ab.tmp").write_bytes(b"half")
    (cache / f".{MANIFEST}.12ab.tmp").write_bytes(b"half")
    (cache / "README").write_text("files outside shards/ are allowed")
    assert set(find_problems(cache)) == {
        "shards/00003.h5",
        "shards/notes.txt",
        "shards/.00001.h5.12ab.tmp",
        f".{MANIFEST}.12ab.tmp",
    }


def edit_manifest(cache, **changes):
    value = json.loads((cache / MANIFEST).read_text())
    write_json(cache / MANIFEST, {**value, **changes})


@pytest.mark.parametrize(
    "changes, name, description",
    [
        ({"format_version": 2}, MANIFEST, "format_version: expected 1, found 2"),
        ({"fingerprint": "0" * 64}, MANIFEST, "fingerprint: expected the digest of parts"),
        ({"failed": {"x": "y"}}, MANIFEST, "its own checksum does not match"),
        ({"shards": [7]}, MANIFEST, "shards[0]: expected fields"),
    ],
)
def test_an_edited_manifest(cache, changes, name, description):
    edit_manifest(cache, **changes)
    assert description in find_problems(cache)[name]


def make_early(cache):
    """Changes a cache to the form of an early version, with checksums of shards only."""
    for name in (MANIFEST, PLAN):
        value = json.loads((cache / name).read_text())
        for added in ("vocabulary", "files", "images", CHECKSUM_KEY):
            value.pop(added, None)
        if name == MANIFEST:
            value.pop("settings")
            for entry in value["shards"]:
                del entry["bytes"]
        write_json(cache / name, value)


def test_an_undamaged_early_cache(cache):
    make_early(cache)
    assert find_problems(cache) == {}
    verify_cache(VerifyConfig(cache))


@pytest.mark.parametrize("name", [TEACHER, "shards/00001.h5"])
def test_damage_of_an_early_cache(cache, name):
    make_early(cache)
    content = (cache / name).read_bytes()
    (cache / name).write_bytes(content[:-200])
    assert find_problems(cache).keys() == {name}


def test_an_early_manifest_with_swapped_entries(cache):
    make_early(cache)
    value = json.loads((cache / MANIFEST).read_text())
    first, second = value["shards"][:2]
    first["images"], second["images"] = second["images"], first["images"]
    write_json(cache / MANIFEST, value)
    assert "not those of the shard" in find_problems(cache)[MANIFEST]


def test_a_shard_of_another_cache_with_a_matching_checksum(cache):
    make_early(cache)
    path = cache / SHARDS / "00001.h5"
    write_shard(path, "f" * 64, [], [], {}, 11)
    value = json.loads((cache / MANIFEST).read_text())
    value["shards"][1]["sha256"] = sha256_of_file(path)
    write_json(cache / MANIFEST, value)
    assert "belongs to another cache" in find_problems(cache)["shards/00001.h5"]


def flip_bit(path, offset=-50):
    content = bytearray(path.read_bytes())
    content[offset] ^= 4
    path.write_bytes(content)


@pytest.mark.parametrize(
    "names",
    [
        ["shards/00001.h5"],
        ["shards/00000.h5", "shards/00002.h5"],
        [TEACHER],
        [PLAN],
        [MANIFEST],
        [MANIFEST, "shards/00001.h5"],
        [PLAN, TEACHER, "shards/00001.h5"],
        FILES[2:],
    ],
)
@pytest.mark.parametrize("damage", [flip_bit, lambda path: path.unlink()])
def test_repair_restores_every_byte(cache, finished, names, damage, messages):
    for name in names:
        # Without a manifest the cache would be unfinished, which other tests cover.
        (flip_bit if name == MANIFEST else damage)(cache / name)
    times = {
        name: (cache / name).stat().st_mtime_ns
        for name in FILES
        if name not in names and name.startswith(SHARDS)
    }
    messages.clear()
    verify_cache(VerifyConfig(cache, repair=True))
    # The plan contains the cache's path and differs.
    expected = contents(finished)
    repaired = contents(cache)
    for name in FILES[2:]:
        assert repaired[name] == expected[name]
    assert times == {name: (cache / name).stat().st_mtime_ns for name in times}
    assert find_problems(cache) == {} and not (cache / BACKUP_FOLDER).exists()
    for name in names:
        assert any(line.startswith(f"{name}: ") for line in messages), messages
    assert not any("other bytes" in line for line in messages)


@pytest.mark.parametrize("name", [MANIFEST, PLAN])
def test_plan_and_manifest_are_restored_without_models(cache, finished, monkeypatch, name):
    monkeypatch.setattr(
        verify_module, "rebuild_missing_files", lambda *_: pytest.fail("the build was repeated")
    )
    flip_bit(cache / name)
    verify_cache(VerifyConfig(cache, repair=True))
    assert contents(cache) == contents(finished)


def test_unexpected_files_are_removed_without_models(cache, finished, monkeypatch):
    monkeypatch.setattr(
        verify_module, "rebuild_missing_files", lambda *_: pytest.fail("the build was repeated")
    )
    (cache / SHARDS / ".00001.h5.12ab.tmp").write_bytes(b"half")
    shutil.copy(cache / SHARDS / "00000.h5", cache / SHARDS / "00003.h5")
    verify_cache(VerifyConfig(cache, repair=True))
    assert contents(cache) == contents(finished)


def test_swapped_shards_are_repaired(cache, finished):
    first, second = (cache / SHARDS / name for name in ("00000.h5", "00001.h5"))
    content = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(content)
    verify_cache(VerifyConfig(cache, repair=True))
    assert contents(cache / SHARDS) == contents(finished / SHARDS)


def test_damaged_plan_and_manifest(cache):
    flip_bit(cache / PLAN)
    flip_bit(cache / MANIFEST)
    with pytest.raises(InputError, match="are both damaged"):
        verify_cache(VerifyConfig(cache, repair=True))


@pytest.fixture
def built(dataset, build_config):
    """Configuration of a cache that is built from a dataset which the test may damage."""
    config = build_config(dataset)
    build_cache(config)
    return config


def test_a_repair_that_fails_changes_nothing(built, dataset):
    flip_bit(built.out / SHARDS / "00001.h5")
    before = contents(built.out)
    shutil.move(dataset, dataset.with_name("moved"))
    with pytest.raises(InputError, match="no such dataset folder; give its new path with --data"):
        verify_cache(VerifyConfig(built.out, repair=True))
    assert contents(built.out) == before
    verify_cache(VerifyConfig(built.out, True, dataset.with_name("moved")))
    assert find_problems(built.out) == {}


def test_a_repair_does_not_lose_outputs(built, dataset):
    flip_bit(built.out / SHARDS / "00001.h5")
    before = contents(built.out)
    missing = open_cache(built.out).manifest["shards"][1]["images"][1]
    (dataset / "images/train2015" / missing).unlink()
    with pytest.raises(InputError, match=f"{missing}: cannot be extracted again: no such image"):
        verify_cache(VerifyConfig(built.out, repair=True))
    assert contents(built.out) == before


def test_changed_annotations_prevent_a_repair(built, dataset):
    flip_bit(built.out / SHARDS / "00001.h5")
    file = dataset / "annotations/trainval_hico.json"
    file.write_text(file.read_text() + "\n")
    with pytest.raises(InputError, match="annotations: "):
        verify_cache(VerifyConfig(built.out, repair=True))


def test_an_interrupted_repair_is_undone(cache, finished):
    backup = cache / BACKUP_FOLDER
    (backup / SHARDS).mkdir(parents=True)
    flip_bit(cache / SHARDS / "00002.h5")
    for name in (MANIFEST, "shards/00002.h5"):
        shutil.move(cache / name, backup / name)
    with pytest.raises(InputError, match=r"unfinished: shards/00002\.h5 is missing"):
        verify_cache(VerifyConfig(cache))
    verify_cache(VerifyConfig(cache, repair=True))
    assert contents(cache / SHARDS) == contents(finished / SHARDS)
    assert not backup.exists()


def test_the_manifest_of_jobs_on_one_folder(cache, finished, messages):
    (cache / MANIFEST).unlink()
    messages.clear()
    verify_cache(VerifyConfig(cache))
    assert contents(cache) == contents(finished)
    assert "all shards are finished" in messages[0]


def test_an_unfinished_cache(cache, finished, capsys):
    (cache / MANIFEST).unlink()
    (cache / SHARDS / "00001.h5").unlink()
    capsys.readouterr()
    with pytest.raises(InputError, match="the cache is unfinished"):
        verify_cache(VerifyConfig(cache))
    assert capsys.readouterr().out == "shards/00001.h5: is missing\n"
    assert not (cache / MANIFEST).exists()
    verify_cache(VerifyConfig(cache, repair=True))
    assert contents(cache / SHARDS) == contents(finished / SHARDS)


def test_an_unfinished_cache_with_a_damaged_plan(cache):
    (cache / MANIFEST).unlink()
    flip_bit(cache / PLAN)
    with pytest.raises(InputError, match=r"build\.json"):
        verify_cache(VerifyConfig(cache))


def test_a_rescored_cache_is_repaired_from_its_source(finished, tmp_path):
    out = tmp_path / "rescored"
    rescore_cache(RescoreConfig(finished, out, temperature=0.5))
    before = contents(out)
    flip_bit(out / SHARDS / "00001.h5")
    (out / TEACHER).unlink()
    verify_cache(VerifyConfig(out, repair=True))
    assert contents(out) == before


def test_another_dataset_is_reported(cache, dataset):
    verify_cache(VerifyConfig(cache, dataset=dataset))
    file = dataset / "annotations/trainval_hico.json"
    file.write_text(file.read_text() + "\n")
    with pytest.raises(InputError, match="does not fit this dataset: annotations"):
        verify_cache(VerifyConfig(cache, dataset=dataset))


def test_no_repair_while_a_build_is_running(cache):
    flip_bit(cache / SHARDS / "00001.h5")
    with lock_folder(cache), pytest.raises(InputError, match=r"another builder .* is at work here"):
        verify_cache(VerifyConfig(cache, repair=True))
    assert "shards/00001.h5" in find_problems(cache)


def test_no_cache(tmp_path):
    with pytest.raises(InputError, match="expected a cache folder"):
        verify_cache(VerifyConfig(tmp_path))
    for folder in (tmp_path, tmp_path / "absent"):
        with pytest.raises(InputError, match="expected a cache folder"):
            verify_cache(VerifyConfig(folder, repair=True))
    assert not list(tmp_path.iterdir())


def test_the_command(cache):
    flip_bit(cache / SHARDS / "00001.h5")
    done = run_command(main, "eoid-cache", "verify", cache)
    assert done.returncode == 2
    assert "shards/00001.h5: is damaged" in done.stdout
    problem = done.stderr.splitlines()
    assert len(problem) == 1 and "shards/00001.h5: is damaged" in problem[0]
