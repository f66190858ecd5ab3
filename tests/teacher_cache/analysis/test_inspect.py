import json

import numpy as np
import pytest

from pipeline.utils.errors import InputError
from teacher_cache.analysis.inspect import (
    compute_overview,
    format_overview,
    inspect_cache,
)
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
    num_pairs = [len(each.pairs) for each in outputs]
    num_regions = sum(len(each.region_boxes) for each in outputs)
    assert overview["counts"] == {
        "images": 7,
        "failed_images": 0,
        "images_without_pairs": num_pairs.count(0),
        "shards": 3,
        "annotated_pairs": (sources == ANNOTATED).sum(),
        "proposed_pairs": (sources != ANNOTATED).sum(),
        "regions": num_regions,
    }
    per_image = overview["pairs_per_image"]
    assert per_image["images_by_pairs"] == np.bincount(num_pairs).tolist()
    assert (per_image["mean"], per_image["max"]) == (np.mean(num_pairs), max(num_pairs))
    assert per_image["median"] == np.median(num_pairs)
    assert overview["repeated_unions"] == pytest.approx(1 - num_regions / len(labels))
    expected = np.zeros((vocabulary.num_objects, vocabulary.num_verbs), dtype=int)
    np.add.at(expected, (labels, best.argmax(1)), 1)
    for label, name in enumerate(vocabulary.objects):
        counts = overview["top_actions"].get(name, {})
        assert list(counts.values()) == sorted(expected[label][expected[label] > 0])[::-1]
        for verb, count in counts.items():
            assert expected[label, vocabulary.verbs.index(verb.replace(" ", "_"))] == count
    for kind, mask in (("annotated", sources == ANNOTATED), ("proposed", sources != ANNOTATED)):
        top, found = best[mask].max(1), overview["confidence"][kind]
        assert found["pairs"] == len(top)
        assert found["histogram"] == np.histogram(top, 20, (0, 1))[0].tolist()
        quantiles = [found[name] for name in ("p10", "p50", "p90")]
        np.testing.assert_allclose(quantiles, np.quantile(top, (0.1, 0.5, 0.9)), atol=1e-3)
    files = list((finished / SHARDS).iterdir())
    assert overview["file_bytes"] == sum(path.stat().st_size for path in files)
    assert 0 < overview["raw_bytes"] < overview["file_bytes"]


def test_a_cache_without_shards(finished):
    cache = open_cache(finished)
    cache.manifest["shards"].clear()
    overview = compute_overview(cache)
    assert overview["repeated_unions"] is None and overview["top_actions"] == {}
    assert overview["pairs_per_image"]["mean"] is None
    assert overview["confidence"]["annotated"]["p50"] is None
    assert "best action by object" not in format_overview(overview)


def test_pairs_without_a_possible_action(finished):
    cache = open_cache(finished)
    read, name = cache.shard_arrays, "pairs/action_probabilities"
    cache.shard_arrays = lambda shard: {**read(shard), name: np.zeros_like(read(shard)[name])}
    overview = compute_overview(cache)
    assert overview["top_actions"] == {} and overview["counts"]["regions"] > 0
    assert [found["pairs"] for found in overview["confidence"].values()] == [0, 0]


def test_lines_json_and_figure(finished, tmp_path, capsys):
    pytest.importorskip("matplotlib", reason="the extra report is not installed")
    file, figure = tmp_path / "i.json", tmp_path / "i.png"
    capsys.readouterr()
    inspect_cache(finished, file, figure)
    lines = capsys.readouterr().out.splitlines()
    rows = {line[:26].strip(): line[26:] for line in lines}
    overview = compute_overview(open_cache(finished))
    assert rows["images"] == "7" and rows["detector.model"] == "toy"
    assert rows["repeated unions"] == f"{100 * overview['repeated_unions']:.1f} %"
    assert rows["confidence, annotated"].startswith(
        f"{overview['confidence']['annotated']['p50']:.2f}"
    )
    (name, verbs), *_ = overview["top_actions"].items()
    (row,) = [line.split() for line in lines if line.split()[:1] == [name]]
    assert row[1] == str(sum(verbs.values()))
    value = json.loads(file.read_text())
    assert value["counts"]["images"] == 7
    assert value["parts"]["detector.model"] == TOY_IN_CACHES
    assert figure.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("field", ["json", "figure"])
def test_files_are_kept_without_overwrite(finished, tmp_path, field):
    file = tmp_path / "mine.png"
    file.write_text("mine")
    with pytest.raises(InputError, match="--overwrite"):
        inspect_cache(finished, **{field: file})
    assert file.read_text() == "mine"
    inspect_cache(finished, **{field: file}, overwrite=True)
    assert file.read_bytes() != b"mine"
