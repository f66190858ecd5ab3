import json

import pytest

from pipeline.utils.errors import InputError
from teacher_cache.reader.fingerprint import compute_fingerprint
from teacher_cache.reader.format import MANIFEST, PLAN
from teacher_cache.reader.manifest import read_manifest


def make_manifest(**changes):
    parts = {"clip.model": "A"}
    value = {
        "format_version": 1,
        "fingerprint": compute_fingerprint(parts),
        "parts": parts,
        "shards": [{"name": "00000.h5", "sha256": "0", "images": []}],
        "failed": {},
    }
    return {**value, **changes}


def test_read_manifest(tmp_path):
    (tmp_path / MANIFEST).write_text(json.dumps(make_manifest()))
    assert read_manifest(tmp_path) == make_manifest()


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"format_version": 2}, "format_version: expected 1, found 2"),
        ({"format_version": None}, "format_version: expected 1"),
        ({"fingerprint": "0"}, "fingerprint: expected the digest of parts"),
        ({"parts": []}, "parts: expected an object"),
        ({"shards": None}, "shards: expected a list"),
        ({"files": [7]}, "files: expected an object"),
        ({"shards": [{"name": "x"}]}, "shards[0].sha256: expected a text"),
    ],
)
def test_wrong_manifests(tmp_path, changes, message):
    (tmp_path / MANIFEST).write_text(json.dumps(make_manifest(**changes)))
    with pytest.raises(InputError) as caught:
        read_manifest(tmp_path)
    assert message in str(caught.value)
    assert MANIFEST in str(caught.value)


def test_folders_without_a_manifest(tmp_path):
    with pytest.raises(InputError, match="expected a cache folder"):
        read_manifest(tmp_path / "absent")
    with pytest.raises(InputError, match="expected a cache folder"):
        read_manifest(tmp_path)
    (tmp_path / PLAN).write_text("{}")
    with pytest.raises(InputError, match="the cache is unfinished"):
        read_manifest(tmp_path)
