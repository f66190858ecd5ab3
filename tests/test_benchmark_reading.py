"""The reading benchmark: caches of a real shape, and numbers that are there."""

import json
import sys

import pytest

from benchmarks import cache_read
from benchmarks.cache_read import FILTERS, Shape, make_cache
from teacher_cache.reader.cache import open_cache


@pytest.fixture
def cache(tmp_path):
    """One shard of the shape that HICO-DET gives."""
    return make_cache(tmp_path / "cache", Shape(1, 64, 15, 117, 512))


def test_random_caches_can_be_read(tmp_path):
    cache = open_cache(make_cache(tmp_path, Shape(2, 3, 4, 11, 6)))
    assert len(cache) == 6 and cache.num_shards == 2
    outputs = cache[cache.image_ids[5]]
    assert len(outputs.pairs) == 4 and outputs.probabilities.shape == (4, 11)
    assert outputs.probabilities.sum(1) == pytest.approx(1, abs=5e-3)


def test_format_1_takes_less_than_1_2_bytes_for_each_raw_byte(cache):
    found = cache_read.storage(cache, reads=5)
    assert len(found) == len(FILTERS) + 1
    assert 1 < found["format 1: contiguous and mapped"]["bytes_per_raw_byte"] < 1.2
    assert found["chunks, gzip 4"]["bytes_per_raw_byte"] < 1


def test_memory_stays_while_shards_are_read(tmp_path):
    cache = make_cache(tmp_path, Shape(24, 2, 3, 11, 6))
    steps = cache_read.memory(cache)
    assert steps[-1]["shards"] == 24
    # Layouts of shards are all that may stay.
    grown = steps[-1]["own_kilobytes"] - steps[0]["own_kilobytes"]
    assert grown < 2000


def test_what_is_printed(monkeypatch, capsys):
    words = "cache_read --shards 2 --images 4 --pairs 3 --verbs 11 --width 6 --many-shards 3"
    monkeypatch.setattr(sys, "argv", [*words.split(), "--reads", "8", "--workers", "1"])
    cache_read.main()
    result = json.loads(capsys.readouterr().out)
    assert result.keys() == {"shape", "warm_microseconds", "opening", "memory", "storage"}
    assert result["opening"]["images"] == 750
    assert result["warm_microseconds"].keys() == {
        "one process",
        "one process, 3 shards",
        "1 workers",
    }
    for numbers in result["warm_microseconds"].values():
        assert 0 < numbers["p50"] <= numbers["p99"]
