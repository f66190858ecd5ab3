import hashlib
import json

import numpy as np
import pytest

from teacher_cache.writer.checksum import SEAL, is_intact, unsealed, write_sealed

VALUE = {"name": "ä", "rate": 1e-05, "shards": [{"sha256": "0" * 64}, {"sha256": "ab" * 32}]}


@pytest.mark.parametrize("value", [{}, VALUE])
def test_round_trip(tmp_path, value):
    path = tmp_path / "sealed.json"
    write_sealed(path, value)
    held = json.loads(path.read_text())
    assert list(held)[-1] == SEAL and unsealed(held) == value
    assert is_intact(path.read_bytes())


def test_the_seal_can_be_checked_by_hand(tmp_path):
    path = tmp_path / "sealed.json"
    write_sealed(path, VALUE)
    seal = json.loads(path.read_text())[SEAL]
    blank = path.read_bytes()[::-1].replace(seal[::-1].encode(), b"0" * 64, 1)[::-1]
    assert hashlib.sha256(blank).hexdigest() == seal


def test_every_flipped_byte_breaks_it(tmp_path):
    path = tmp_path / "sealed.json"
    write_sealed(path, VALUE)
    content = path.read_bytes()
    rng = np.random.default_rng(0)
    for place in range(len(content)):
        # Of either case of a letter the JSON may mean the same.
        for change in (0x20, int(rng.integers(1, 256))):
            damaged = bytearray(content)
            damaged[place] ^= change
            assert not is_intact(bytes(damaged)), place
    assert not is_intact(content[:-1]) and not is_intact(content + b" ")


@pytest.mark.parametrize("content", [b"", b"{}", b"no JSON", b'"sha256": "', b'{"sha256": ""}'])
def test_what_has_no_seal_is_not_intact(content):
    assert not is_intact(content)


def test_the_first_of_several_writers_wins(tmp_path):
    path = tmp_path / "sealed.json"
    write_sealed(path, {"a": 1}, once=True)
    write_sealed(path, {"a": 2}, once=True)
    assert json.loads(path.read_text())["a"] == 1
