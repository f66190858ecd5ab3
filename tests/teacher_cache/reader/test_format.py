import json

import pytest

from pipeline.utils.errors import InputError
from pipeline.utils.files import describe_changes
from teacher_cache.reader.fingerprint import compute_fingerprint
from teacher_cache.reader.format import MANIFEST, PLAN, shard_name
from teacher_cache.reader.manifest import read_manifest


def manifest(**changes):
    parts = {"clip.model": "A"}
    value = {
        "format_version": 1,
        "fingerprint": compute_fingerprint(parts),
        "parts": parts,
        "shards": [{"name": "00000.h5", "sha256": "0", "images": []}],
        "failed": {},
    }
    return {**value, **changes}


@pytest.mark.parametrize("index, name", [(0, "00000.h5"), (123, "00123.h5"), (99999, "99999.h5")])
def test_shard_name(index, name):
    assert shard_name(index) == name


@pytest.mark.parametrize(
    "old, new, text",
    [
        ({}, {}, ""),
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}, ""),
        ({"a": 1}, {"a": 2}, "a: 1, now 2"),
        ({"a": 1}, {"b": "x"}, "a: 1, now nothing; b: nothing, now x"),
        ({"w": "ab" * 32}, {"w": "cd" * 32}, "w: abababababab, now cdcdcdcdcdcd"),
    ],
)
def test_differing_parts(old, new, text):
    assert describe_changes(old, new) == text


def test_read_manifest(tmp_path):
    (tmp_path / MANIFEST).write_text(json.dumps(manifest()))
    assert read_manifest(tmp_path) == manifest()


@pytest.mark.parametrize(
    "changes, text",
    [
        ({"format_version": 2}, "format_version: expected 1, found 2"),
        ({"format_version": None}, "format_version: expected 1"),
        ({"fingerprint": "0"}, "fingerprint: expected the digest of parts"),
        ({"parts": []}, "parts: expected a dict"),
        ({"shards": None}, "shards: expected a list"),
        ({"shards": [{"name": "x"}]}, "shards[0]: expected fields name, sha256 and images"),
    ],
)
def test_a_wrong_manifest_is_refused(tmp_path, changes, text):
    (tmp_path / MANIFEST).write_text(json.dumps(manifest(**changes)))
    with pytest.raises(InputError) as caught:
        read_manifest(tmp_path)
    assert text in str(caught.value)
    assert MANIFEST in str(caught.value)


def test_no_cache_and_an_unfinished_one(tmp_path):
    with pytest.raises(InputError, match="expected a cache folder"):
        read_manifest(tmp_path / "absent")
    with pytest.raises(InputError, match="expected a cache folder"):
        read_manifest(tmp_path)
    (tmp_path / PLAN).write_text("{}")
    with pytest.raises(InputError, match="the cache is unfinished"):
        read_manifest(tmp_path)
