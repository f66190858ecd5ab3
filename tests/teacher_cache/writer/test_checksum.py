import hashlib
import json

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
    content = path.read_bytes()
    stored = json.loads(content)
    assert list(stored)[-1] == CHECKSUM_KEY and without_checksum(stored) == value
    assert has_valid_checksum(content)
    # The checksum is that of the file with zeros in its place.
    before, after = content.rsplit(stored[CHECKSUM_KEY].encode(), 1)
    assert hashlib.sha256(before + b"0" * 64 + after).hexdigest() == stored[CHECKSUM_KEY]
    write_checksummed_json(path, {"a": 1}, keep_existing=True)
    assert path.read_bytes() == content


def test_every_changed_byte_is_detected(tmp_path):
    path = tmp_path / "value.json"
    write_checksummed_json(path, VALUE)
    content = path.read_bytes()
    for position in range(len(content)):
        # 0x20 changes the case of a letter, which may leave the JSON value the same.
        for change in (0x20, 0x81):
            damaged = bytearray(content)
            damaged[position] ^= change
            assert not has_valid_checksum(bytes(damaged)), position
    assert not has_valid_checksum(content[:-1]) and not has_valid_checksum(content + b" ")


@pytest.mark.parametrize("content", [b"", b"{}", b"no JSON", b'"sha256": "', b'{"sha256": ""}'])
def test_files_without_a_checksum(content):
    assert not has_valid_checksum(content)
