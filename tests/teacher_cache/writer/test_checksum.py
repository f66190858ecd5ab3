import hashlib
import json

import numpy as np
import pytest

from teacher_cache.writer.checksum import (
    CHECKSUM_KEY,
    has_valid_checksum,
    without_checksum,
    write_checksummed_json,
)

VALUE = {"name": "ä", "rate": 1e-05, "shards": [{"sha256": "0" * 64}, {"sha256": "ab" * 32}]}


@pytest.mark.parametrize("value", [{}, VALUE])
def test_round_trip(tmp_path, value):
    path = tmp_path / "value.json"
    write_checksummed_json(path, value)
    stored = json.loads(path.read_text())
    assert list(stored)[-1] == CHECKSUM_KEY and without_checksum(stored) == value
    assert has_valid_checksum(path.read_bytes())


def test_the_checksum_is_that_of_the_file_with_zeros_in_its_place(tmp_path):
    path = tmp_path / "value.json"
    write_checksummed_json(path, VALUE)
    checksum = json.loads(path.read_text())[CHECKSUM_KEY]
    zeroed = path.read_bytes()[::-1].replace(checksum[::-1].encode(), b"0" * 64, 1)[::-1]
    assert hashlib.sha256(zeroed).hexdigest() == checksum


def test_every_changed_byte_is_detected(tmp_path):
    path = tmp_path / "value.json"
    write_checksummed_json(path, VALUE)
    content = path.read_bytes()
    rng = np.random.default_rng(0)
    for position in range(len(content)):
        # 0x20 changes the case of a letter, which may leave the JSON value the same.
        for change in (0x20, int(rng.integers(1, 256))):
            damaged = bytearray(content)
            damaged[position] ^= change
            assert not has_valid_checksum(bytes(damaged)), position
    assert not has_valid_checksum(content[:-1]) and not has_valid_checksum(content + b" ")


@pytest.mark.parametrize("content", [b"", b"{}", b"no JSON", b'"sha256": "', b'{"sha256": ""}'])
def test_files_without_a_checksum(content):
    assert not has_valid_checksum(content)


def test_an_existing_file_is_kept(tmp_path):
    path = tmp_path / "value.json"
    write_checksummed_json(path, {"a": 1}, keep_existing=True)
    write_checksummed_json(path, {"a": 2}, keep_existing=True)
    assert json.loads(path.read_text())["a"] == 1
