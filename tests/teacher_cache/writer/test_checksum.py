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
    path = tmp_path / "sealed.json"
    write_checksummed_json(path, value)
    held = json.loads(path.read_text())
    assert list(held)[-1] == CHECKSUM_KEY and without_checksum(held) == value
    assert has_valid_checksum(path.read_bytes())


def test_the_seal_can_be_checked_by_hand(tmp_path):
    path = tmp_path / "sealed.json"
    write_checksummed_json(path, VALUE)
    seal = json.loads(path.read_text())[CHECKSUM_KEY]
    blank = path.read_bytes()[::-1].replace(seal[::-1].encode(), b"0" * 64, 1)[::-1]
    assert hashlib.sha256(blank).hexdigest() == seal


def test_every_flipped_byte_breaks_it(tmp_path):
    path = tmp_path / "sealed.json"
    write_checksummed_json(path, VALUE)
    content = path.read_bytes()
    rng = np.random.default_rng(0)
    for place in range(len(content)):
        # Of either case of a letter the JSON may mean the same.
        for change in (0x20, int(rng.integers(1, 256))):
            damaged = bytearray(content)
            damaged[place] ^= change
            assert not has_valid_checksum(bytes(damaged)), place
    assert not has_valid_checksum(content[:-1]) and not has_valid_checksum(content + b" ")


@pytest.mark.parametrize("content", [b"", b"{}", b"no JSON", b'"sha256": "', b'{"sha256": ""}'])
def test_what_has_no_seal_is_not_intact(content):
    assert not has_valid_checksum(content)


def test_the_first_of_several_writers_wins(tmp_path):
    path = tmp_path / "sealed.json"
    write_checksummed_json(path, {"a": 1}, keep_existing=True)
    write_checksummed_json(path, {"a": 2}, keep_existing=True)
    assert json.loads(path.read_text())["a"] == 1
