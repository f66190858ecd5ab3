import json
import shutil
from contextlib import contextmanager

import numpy as np
import pytest
from commands import run_command

from pipeline.cluster.lock import lock_folder
from pipeline.utils.errors import InputError
from pipeline.utils.files import sha256_of_file, write_json
from teacher_cache.build import build_cache
from teacher_cache.cli import main
from teacher_cache.maintenance import verify as verify_module
from teacher_cache.maintenance.rescore import RescoreConfig, rescore_cache
from teacher_cache.maintenance.verify import find_problems, verify_cache
from teacher_cache.reader.cache import open_cache
from teacher_cache.reader.format import MANIFEST, PLAN, SHARDS, TEACHER
from teacher_cache.writer.checksum import CHECKSUM_KEY
from teacher_cache.writer.shard import write_shard

SHARD_FILES = [f"{SHARDS}/0000{number}.h5" for number in range(3)]
FILES = [MANIFEST, PLAN, TEACHER, *SHARD_FILES]


@pytest.fixture
def no_build(monkeypatch):
    """Makes a test fail if the models are run."""
    monkeypatch.setattr(verify_module, "_repeat_command", lambda *_: pytest.fail("built again"))


def contents(folder):
    return {
        path.relative_to(folder).as_posix(): sha256_of_file(path)
        for path in folder.rglob("*")
        if path.is_file()
    }


def flip_bit(path, offset=-50):
    content = bytearray(path.read_bytes())
    content[offset] ^= 4
    path.write_bytes(content)


@pytest.mark.parametrize("name", FILES)
def test_any_flipped_byte_is_found(copy, name):
    path = copy / name
    content = path.read_bytes()
    rng = np.random.default_rng(len(name))
    for offset in {0, len(content) - 1, *rng.integers(0, len(content), 30).tolist()}:
        damaged = bytearray(content)
        damaged[offset] ^= int(rng.integers(1, 256))
        path.write_bytes(damaged)
        assert name in find_problems(copy), offset
    path.write_bytes(content)
    assert find_problems(copy) == {}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(
    ("change", "description"),
    [
        (lambda content: content[: len(content) // 2], "is truncated"),
        (lambda content: b"", "is empty"),
        (lambda content: content + b"\n", "is too long"),
        (lambda content: b"something else", ""),
        (None, "is missing"),
    ],
)
def test_truncated_replaced_and_missing_files(copy, name, change, description):
    path = copy / name
    if change is not None:
        path.write_bytes(change(path.read_bytes()))
    elif name == MANIFEST:
        return
    else:
        path.unlink()
    problems = find_problems(copy)
    assert problems.keys() == {name}
    if name in SHARD_FILES:
        assert description in problems[name]
    with pytest.raises(InputError) as caught:
        verify_cache(copy)
    assert name in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "description"),
    [
        (
            {"format_version": 2},
            "format_version: expected 1, found 2; the checksums in it are lost",
        ),
        ({"failed": {"x": "y"}}, "its own checksum does not match"),
    ],
)
def test_an_edited_manifest(copy, changes, description):
    value = json.loads((copy / MANIFEST).read_text())
    write_json(copy / MANIFEST, {**value, **changes})
    assert description in find_problems(copy)[MANIFEST]


@pytest.fixture
def early(copy):
    """A cache in the form of an early version, with checksums of shards only."""
    for name in (MANIFEST, PLAN):
        value = json.loads((copy / name).read_text())
        for added in ("vocabulary", "files", "images", CHECKSUM_KEY):
            value.pop(added, None)
        if name == MANIFEST:
            value.pop("settings")
            for entry in value["shards"]:
                del entry["bytes"]
        write_json(copy / name, value)
    return copy


def test_an_early_cache(early):
    verify_cache(early)
    plan = json.loads((early / PLAN).read_text())
    write_json(early / PLAN, {**plan, "fingerprint": "another"})
    assert find_problems(early) == {PLAN: "belongs to another cache"}
    (early / PLAN).unlink()
    verify_cache(early)
    for name in (TEACHER, SHARD_FILES[1]):
        (early / name).write_bytes((early / name).read_bytes()[:-200])
    assert find_problems(early).keys() == {TEACHER, SHARD_FILES[1]}


def test_shards_of_an_early_cache_must_have_its_fingerprint_and_images(early):
    manifest = json.loads((early / MANIFEST).read_text())
    first, second, _ = manifest["shards"]
    write_shard(early / SHARD_FILES[1], "f" * 64, [], [], {}, 11)
    second["sha256"] = sha256_of_file(early / SHARD_FILES[1])
    first["images"] = second["images"]
    write_json(early / MANIFEST, manifest)
    problems = find_problems(early)
    assert "expected the images listed" in problems[SHARD_FILES[0]]
    assert "belongs to another cache" in problems[SHARD_FILES[1]]


@pytest.mark.parametrize(
    "names",
    [
        [SHARD_FILES[1]],
        [SHARD_FILES[0], SHARD_FILES[2]],
        [TEACHER],
        [MANIFEST, SHARD_FILES[1]],
        [PLAN, TEACHER, SHARD_FILES[1]],
        FILES[2:],
    ],
)
@pytest.mark.parametrize("damage", [flip_bit, lambda path: path.unlink()])
def test_repair_restores_every_byte(copy, finished, names, damage, messages):
    for name in names:
        # Without a manifest the cache would be unfinished, which other tests cover.
        (flip_bit if name == MANIFEST else damage)(copy / name)
    intact = [copy / name for name in SHARD_FILES if name not in names]
    times = [path.stat().st_mtime_ns for path in intact]
    messages.clear()
    verify_cache(copy, repair=True)
    assert contents(copy) == contents(finished)
    assert times == [path.stat().st_mtime_ns for path in intact]
    for name in names:
        assert any(line.startswith(f"{name}: ") for line in messages), messages


def cut_off(path):
    path.write_bytes(b"{")


def with_wrong(place):
    """Damages a text of the manifest: the plan, the shard and the image are still there."""

    def damage(path):
        text = sha256_of_file(path.with_name(PLAN)) if place == PLAN else place
        flip_bit(path, path.read_bytes().index(text.encode()))

    return damage


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        (PLAN, flip_bit),
        (PLAN, cut_off),
        (MANIFEST, flip_bit),
        (MANIFEST, cut_off),
        *((MANIFEST, with_wrong(place)) for place in (PLAN, "00001.h5", "toy_train_00000001")),
    ],
)
def test_plan_and_manifest_are_restored_without_models(copy, finished, no_build, name, damage):
    damage(copy / name)
    verify_cache(copy, repair=True)
    assert contents(copy) == contents(finished)


def test_without_checksums_unreadable_shards_are_made_again(copy, finished):
    cut_off(copy / MANIFEST)
    (copy / SHARD_FILES[1]).write_bytes((copy / SHARD_FILES[1]).read_bytes()[:-50])
    verify_cache(copy, repair=True)
    assert contents(copy) == contents(finished)


def test_unexpected_files_are_reported_and_removed(copy, finished, no_build):
    shutil.copy(copy / SHARD_FILES[0], copy / SHARDS / "00003.h5")
    (copy / SHARDS / "notes.txt").write_text("mine")
    (copy / SHARDS / ".00001.h5.12ab.tmp").write_bytes(b"half")
    (copy / ".repair.12ab.tmp" / SHARDS).mkdir(parents=True)
    (copy / "README").write_text("files outside shards/ are allowed")
    unexpected = {"shards/00003.h5", "shards/notes.txt", "shards/.00001.h5.12ab.tmp"}
    assert find_problems(copy).keys() == {*unexpected, ".repair.12ab.tmp"}
    verify_cache(copy, repair=True)
    (copy / "README").unlink()
    assert contents(copy) == contents(finished) and not (copy / ".repair.12ab.tmp").exists()


def test_swapped_shards(copy, finished):
    first, second = (copy / name for name in SHARD_FILES[:2])
    content = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(content)
    assert find_problems(copy) == {
        SHARD_FILES[0]: f"contains the data of {SHARD_FILES[1]}",
        SHARD_FILES[1]: f"contains the data of {SHARD_FILES[0]}",
    }
    verify_cache(copy, repair=True)
    assert contents(copy) == contents(finished)


@pytest.fixture
def refuse(copy):
    """`refuse(text, error)`: within it a repair fails with this error, and leaves all as it was."""

    @contextmanager
    def check(text=None, error=InputError):
        before = contents(copy)
        with pytest.raises(error, match=text):
            yield
        assert contents(copy) == before

    return check


@pytest.mark.parametrize("damage", [flip_bit, cut_off])
def test_damaged_plan_and_manifest(copy, refuse, damage):
    damage(copy / PLAN)
    damage(copy / MANIFEST)
    with refuse("are both damaged"):
        verify_cache(copy, repair=True)


def test_a_moved_dataset(dataset, build_config):
    config = build_config(dataset)
    build_cache(config)
    flip_bit(config.out / SHARD_FILES[1])
    before = contents(config.out)
    shutil.move(dataset, dataset.with_name("moved"))
    with pytest.raises(InputError, match="no such dataset folder; give its new path with --data"):
        verify_cache(config.out, repair=True)
    assert contents(config.out) == before
    verify_cache(config.out, repair=True, dataset=dataset.with_name("moved"))
    assert find_problems(config.out) == {}


def test_a_repair_that_would_lose_outputs(copy, dataset, refuse):
    for name in SHARD_FILES[:2]:
        flip_bit(copy / name)
    missing = open_cache(copy).manifest["shards"][1]["images"][1]
    (dataset / "images/train2015" / missing).unlink()
    with refuse(f"{missing}: cannot be extracted again: no such image"):
        verify_cache(copy, repair=True, dataset=dataset)


def test_another_dataset_is_refused(copy, dataset, change_annotations, refuse):
    verify_cache(copy, dataset=dataset)
    change_annotations()
    with refuse("does not fit this dataset: annotations"):
        verify_cache(copy, dataset=dataset)
    flip_bit(copy / SHARD_FILES[1])
    with refuse(f"^{copy}: .*annotations: "):
        verify_cache(copy, repair=True, dataset=dataset)


def test_an_interrupted_repair_changes_nothing(copy, monkeypatch, refuse):
    def interrupt(plan, out, *_):
        shutil.copy(out / SHARD_FILES[0], out / SHARD_FILES[2])
        raise KeyboardInterrupt

    flip_bit(copy / SHARD_FILES[2])
    monkeypatch.setattr(verify_module, "_repeat_command", interrupt)
    with refuse(error=KeyboardInterrupt):
        verify_cache(copy, repair=True)


def test_the_manifest_of_jobs_on_one_folder(copy, finished, messages):
    (copy / MANIFEST).unlink()
    messages.clear()
    verify_cache(copy)
    assert contents(copy) == contents(finished)
    assert "all shards are finished" in messages[0]


def test_an_unfinished_cache(copy, finished, capsys):
    (copy / MANIFEST).unlink()
    (copy / SHARD_FILES[1]).unlink()
    capsys.readouterr()
    with pytest.raises(InputError, match="the cache is unfinished"):
        verify_cache(copy)
    assert capsys.readouterr().out == "shards/00001.h5: is missing\n"
    assert not (copy / MANIFEST).exists()
    verify_cache(copy, repair=True)
    assert contents(copy / SHARDS) == contents(finished / SHARDS)


def test_an_unfinished_cache_with_a_damaged_plan(copy):
    (copy / MANIFEST).unlink()
    flip_bit(copy / PLAN)
    with pytest.raises(InputError, match=r"build\.json"):
        verify_cache(copy)


def test_a_rescored_cache_is_repaired_from_its_source(finished, tmp_path):
    out = tmp_path / "rescored"
    rescore_cache(RescoreConfig(finished, out, temperature=0.5))
    before = contents(out)
    flip_bit(out / SHARD_FILES[1])
    (out / TEACHER).unlink()
    verify_cache(out, repair=True)
    assert contents(out) == before


def test_no_repair_while_a_build_is_running(copy):
    flip_bit(copy / SHARD_FILES[1])
    with lock_folder(copy), pytest.raises(InputError, match=r"another command .* is at work here"):
        verify_cache(copy, repair=True)
    assert SHARD_FILES[1] in find_problems(copy)


@pytest.mark.parametrize("repair", [False, True])
def test_no_cache(tmp_path, repair):
    for folder in (tmp_path, tmp_path / "absent"):
        with pytest.raises(InputError, match="expected a cache folder"):
            verify_cache(folder, repair=repair)
    assert not list(tmp_path.iterdir())


def test_the_command(copy):
    flip_bit(copy / SHARD_FILES[1])
    done = run_command(main, "eoid-cache", "verify", copy)
    assert done.returncode == 2 and "shards/00001.h5: is damaged" in done.stdout
    (problem,) = done.stderr.splitlines()
    assert "shards/00001.h5: is damaged" in problem
