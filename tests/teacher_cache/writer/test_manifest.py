import json
import shutil

import pytest

from pipeline.utils.errors import InputError
from pipeline.utils.files import write_json
from teacher_cache.reader.cache import open_cache
from teacher_cache.reader.format import MANIFEST, PLAN, SHARDS, TEACHER, shard_name
from teacher_cache.writer.manifest import planned_shards, write_manifest
from teacher_cache.writer.shard import read_shard_record

NAMES = ("00000.h5", "00001.h5", "00002.h5")


@pytest.fixture
def unfinished(finished, tmp_path):
    """A cache with all its shards and no manifest."""
    folder = shutil.copytree(finished, tmp_path / "cache")
    (folder / MANIFEST).unlink()
    return folder


def test_the_manifest_equals_that_of_the_build(unfinished, finished):
    status = write_manifest(unfinished)
    assert status.missing == () and status.failed == {}
    assert status.counts == open_cache(finished).manifest["counts"]
    assert (unfinished / MANIFEST).read_bytes() == (finished / MANIFEST).read_bytes()
    assert write_manifest(unfinished) == status


@pytest.mark.parametrize("names", [NAMES[:1], NAMES[1:]])
def test_missing_shards(unfinished, names):
    for name in names:
        (unfinished / SHARDS / name).unlink()
    assert write_manifest(unfinished).missing == names
    assert not (unfinished / MANIFEST).exists()


def test_shards_of_another_cache_count_as_missing(unfinished):
    plan = json.loads((unfinished / PLAN).read_text())
    write_json(unfinished / PLAN, {**plan, "fingerprint": "another"})
    assert write_manifest(unfinished).missing == NAMES


def test_shards_that_are_not_planned_are_ignored(unfinished, finished):
    shutil.copy(unfinished / SHARDS / NAMES[0], unfinished / SHARDS / "00003.h5")
    write_manifest(unfinished)
    assert (unfinished / MANIFEST).read_bytes() == (finished / MANIFEST).read_bytes()


def test_shards_of_given_records_are_not_read(unfinished):
    fingerprint = json.loads((unfinished / PLAN).read_text())["fingerprint"]
    record = read_shard_record(unfinished / SHARDS / NAMES[1], fingerprint)
    (unfinished / SHARDS / NAMES[1]).unlink()
    assert write_manifest(unfinished, [record]).missing == ()


@pytest.mark.parametrize("index, name", [(0, "00000.h5"), (123, "00123.h5"), (99999, "99999.h5")])
def test_shard_name(index, name):
    assert shard_name(index) == name


@pytest.mark.parametrize(
    "num_images, size, names",
    [(0, 3, []), (1, 3, ["00000.h5"]), (3, 3, ["00000.h5"]), (4, 3, ["00000.h5", "00001.h5"])],
)
def test_planned_shards(tmp_path, num_images, size, names):
    plan = {"fingerprint": "f", "parts": {}, "layout": {"images_per_shard": size}}
    write_json(tmp_path / PLAN, {**plan, "images": num_images})
    assert planned_shards(tmp_path) == names


@pytest.mark.parametrize(
    "change, message",
    [
        ({"images": None}, "images: expected"),
        ({"layout": {}}, r"layout.images_per_shard: expected"),
        ({"layout": {"images_per_shard": 0}}, r"layout.images_per_shard: expected"),
        ({"parts": 3}, r"build\.json: expected"),
    ],
)
def test_a_damaged_plan(unfinished, change, message):
    plan = json.loads((unfinished / PLAN).read_text())
    write_json(unfinished / PLAN, {**plan, **change})
    with pytest.raises(InputError, match=message):
        write_manifest(unfinished)


def test_without_prompt_embeddings(unfinished):
    (unfinished / TEACHER).unlink()
    with pytest.raises(InputError, match=TEACHER):
        write_manifest(unfinished)
    assert not (unfinished / MANIFEST).exists()
