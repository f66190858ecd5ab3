import json
import shutil
from dataclasses import replace

import pytest

from pipeline.utils.errors import InputError
from pipeline.utils.files import write_json
from teacher_cache.reader.cache import open_cache
from teacher_cache.reader.format import MANIFEST, PLAN, SHARDS, TEACHER
from teacher_cache.writer.manifest import planned_shards, write_manifest
from teacher_cache.writer.shard import read_shard_record

NAMES = ("00000.h5", "00001.h5", "00002.h5")


@pytest.fixture
def unfinished(copy):
    """A cache with all its shards and no manifest."""
    (copy / MANIFEST).unlink()
    return copy


def edit_plan(folder, **changes):
    plan = json.loads((folder / PLAN).read_text())
    write_json(folder / PLAN, {**plan, **changes})


def test_the_manifest_equals_that_of_the_build(unfinished, finished):
    # A shard that is not planned is ignored.
    shutil.copy(unfinished / SHARDS / NAMES[0], unfinished / SHARDS / "00003.h5")
    status = write_manifest(unfinished)
    assert status.missing == () and status.failed == {}
    assert status.counts == open_cache(finished).manifest["counts"]
    assert (unfinished / MANIFEST).read_bytes() == (finished / MANIFEST).read_bytes()
    assert write_manifest(unfinished) == status


def test_missing_shards(unfinished):
    for name in NAMES[1:]:
        (unfinished / SHARDS / name).unlink()
    assert write_manifest(unfinished).missing == NAMES[1:]
    # Shards of another cache count as missing.
    edit_plan(unfinished, fingerprint="another")
    assert write_manifest(unfinished).missing == NAMES
    assert not (unfinished / MANIFEST).exists()


def test_shards_of_given_records_are_not_read(unfinished):
    fingerprint = json.loads((unfinished / PLAN).read_text())["fingerprint"]
    record = read_shard_record(unfinished / SHARDS / NAMES[1], fingerprint)
    (unfinished / SHARDS / NAMES[1]).unlink()
    assert write_manifest(unfinished, [record]).missing == ()


@pytest.mark.parametrize(("width", "found"), [(0, "none"), (3, "width 3")])
def test_embeddings_of_other_widths_are_refused(unfinished, width, found):
    fingerprint = json.loads((unfinished / PLAN).read_text())["fingerprint"]
    records = [read_shard_record(unfinished / SHARDS / name, fingerprint) for name in NAMES]
    # A shard without regions has no width.
    records[0] = replace(records[0], embedding_width=None)
    write_manifest(unfinished, records)
    records[2] = replace(records[2], embedding_width=width)
    (unfinished / MANIFEST).unlink()
    with pytest.raises(InputError, match=f"{NAMES[2]}: regions.* in {NAMES[1]}, found {found}$"):
        write_manifest(unfinished, records)
    assert not (unfinished / MANIFEST).exists()


@pytest.mark.parametrize(("num_images", "num_shards"), [(0, 0), (1, 1), (3, 1), (4, 2), (7, 3)])
def test_planned_shards(unfinished, num_images, num_shards):
    edit_plan(unfinished, images=num_images)
    assert planned_shards(unfinished) == list(NAMES[:num_shards])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": None}, "images: expected"),
        ({"layout": {}}, r"layout.images_per_shard: expected"),
        ({"layout": {"images_per_shard": 0}}, r"layout.images_per_shard: expected"),
        ({"parts": 3}, r"build\.json: parts: expected"),
    ],
)
def test_a_damaged_plan(unfinished, change, message):
    edit_plan(unfinished, **change)
    with pytest.raises(InputError, match=message):
        write_manifest(unfinished)


def test_without_prompt_embeddings(unfinished):
    (unfinished / TEACHER).unlink()
    with pytest.raises(InputError, match=TEACHER):
        write_manifest(unfinished)
    assert not (unfinished / MANIFEST).exists()
