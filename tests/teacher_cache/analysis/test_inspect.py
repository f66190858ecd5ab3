import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

from pipeline.utils.errors import InputError
from teacher_cache.analysis.inspect import InspectConfig, compute_overview, inspect_cache
from teacher_cache.detectors.torchvision import TOY_IN_CACHES
from teacher_cache.reader.cache import open_cache
from teacher_cache.reader.format import ANNOTATED, SHARDS


def test_counts_are_those_of_the_images(finished, vocabulary):
    cache = open_cache(finished)
    overview = compute_overview(cache)
    outputs = [cache[image] for image in cache.image_ids]
    sources = np.concatenate([each.pairs.sources for each in outputs])
    labels = np.concatenate([each.pairs.object_labels for each in outputs])
    best = np.concatenate([each.probabilities for each in outputs])
    counts = overview.counts
    assert counts["images"] == 7 and counts["shards"] == 3 and counts["failed images"] == 0
    assert counts["annotated pairs"] == (sources == ANNOTATED).sum()
    assert counts["proposed pairs"] == (sources != ANNOTATED).sum()
    assert counts["regions"] == sum(len(each.region_boxes) for each in outputs)
    num_pairs = [len(each.pairs) for each in outputs]
    assert overview.pairs_per_image.tolist() == np.bincount(num_pairs).tolist()
    expected = np.zeros((vocabulary.num_objects, vocabulary.num_verbs), dtype=int)
    np.add.at(expected, (labels, best.argmax(1)), 1)
    np.testing.assert_array_equal(overview.top_actions, expected)
    for kind, mask in (("annotated", sources == ANNOTATED), ("proposed", sources != ANNOTATED)):
        bins = np.minimum((best[mask].max(1) * 1000).astype(int), 999)
        assert overview.confidence[kind].tolist() == np.bincount(bins, minlength=1000).tolist()
    files = list((finished / SHARDS).iterdir())
    assert overview.file_bytes == sum(path.stat().st_size for path in files)
    assert 0 < overview.raw_bytes < overview.file_bytes


def test_lines_json_and_figure(finished, tmp_path, capsys):
    pytest.importorskip("matplotlib", reason="the extra report is not installed")
    config = InspectConfig(finished, tmp_path / "i.json", tmp_path / "i.png")
    capsys.readouterr()
    inspect_cache(config)
    lines = capsys.readouterr().out.splitlines()
    assert "images                  7" in lines[1]
    assert any("detector.model" in line and TOY_IN_CACHES in line for line in lines)
    assert json.loads(config.json.read_text())["counts"]["images"] == 7
    assert config.figure.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("field", ["json", "figure"])
def test_files_are_kept_without_overwrite(finished, tmp_path, field):
    file = tmp_path / "mine.png"
    file.write_text("mine")
    config = replace(InspectConfig(finished), **{field: file})
    with pytest.raises(InputError, match="--overwrite"):
        inspect_cache(config)
    assert file.read_text() == "mine"
    if field == "json":
        inspect_cache(replace(config, overwrite=True))
        assert json.loads(file.read_text())["counts"]


def test_a_damaged_shard_is_reported(finished, tmp_path):
    folder = shutil.copytree(finished, tmp_path / "cache")
    path = folder / SHARDS / "00001.h5"
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(InputError, match=r"00001\.h5: expected"):
        inspect_cache(InspectConfig(folder))
