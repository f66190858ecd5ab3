"""A stored sample of format 1, of which all later versions must read every value."""

import json
from pathlib import Path

import numpy as np
import pytest

from pipeline.vocabulary import load_vocabulary
from teacher_cache.detectors.torchvision import TOY_IN_CACHES
from teacher_cache.maintenance.rescore import RescoreConfig, rescore_cache
from teacher_cache.maintenance.verify import find_problems
from teacher_cache.reader.cache import open_cache
from teacher_cache.reader.format import PAIR_DATASETS, SHARDS, TEACHER

DATA = Path(__file__).parents[1] / "data"
CACHE = DATA / "cache_v1"
PAIR_COLUMNS = [name.removeprefix("pairs/") for name in PAIR_DATASETS][:6]
IMAGES = [f"world_train_0000000{number}.jpg" for number in range(1, 5)]


@pytest.fixture(scope="module")
def expected():
    """Arrays and strings by file and dataset."""

    def to_array(value):
        if not isinstance(value, dict) or "type" not in value:
            return value
        return np.array(value["values"], dtype=value["type"]).reshape(value["shape"])

    files = json.loads((DATA / "cache_v1.json").read_text())
    return {
        name: {dataset: to_array(value) for dataset, value in datasets.items()}
        for name, datasets in files.items()
    }


@pytest.fixture(scope="module")
def cache():
    return open_cache(CACHE)


def test_identity_and_images(cache):
    assert cache.fingerprint == "92e454b0b908109fcc67ba51bd8bcc3c5cd8e706c9ca6064b86267ea8f7c09c5"
    assert cache.image_ids == IMAGES and len(cache) == 4
    assert list(cache.failed) == ["world_train_00000005.jpg"]
    assert "truncated" in cache.failed["world_train_00000005.jpg"]
    assert cache.protocol == "detector" and cache.num_shards == 3
    assert cache.manifest["parts"]["part"] == "train"
    # The toy detector keeps its name in the format.
    assert cache.manifest["parts"]["detector.model"] == TOY_IN_CACHES == "world"
    assert cache.manifest["settings"]["detector"] == TOY_IN_CACHES
    assert cache.vocabulary.verbs[:2] == ("ride", "sit_on")
    assert cache.vocabulary.objects[1] == "horse"
    assert cache.vocabulary.digest() == load_vocabulary("toy").digest()


def test_all_arrays_of_all_shards(cache, expected):
    for shard in range(3):
        datasets = dict(expected[f"{SHARDS}/0000{shard}.h5"])
        layout, arrays = cache.shard_layout(shard), cache.shard_arrays(shard)
        assert list(layout.images) == datasets.pop("images/id")
        reasons = datasets.pop("failed/reason")
        assert layout.failed == dict(zip(datasets.pop("failed/id"), reasons, strict=True))
        assert datasets.pop("attributes") == {"format_version": 1, "fingerprint": cache.fingerprint}
        assert arrays.keys() == datasets.keys() >= PAIR_DATASETS.keys()
        for name, array in arrays.items():
            assert array.dtype == datasets[name].dtype
            np.testing.assert_array_equal(array, datasets[name])


def test_all_outputs_of_all_images(cache, expected):
    for shard in range(2):
        datasets = expected[f"{SHARDS}/0000{shard}.h5"]
        offsets = datasets["images/pair_offsets"]
        for row, image in enumerate(datasets["images/id"]):
            part = slice(offsets[row], offsets[row + 1])
            outputs = cache[image]
            for name in PAIR_COLUMNS:
                plural = name + ("es" if name.endswith("box") else "s")
                np.testing.assert_array_equal(
                    getattr(outputs.pairs, plural), datasets[f"pairs/{name}"][part]
                )
            np.testing.assert_array_equal(
                outputs.probabilities,
                datasets["pairs/action_probabilities"][part].astype(np.float32),
            )
            regions = datasets["pairs/region"][part]
            np.testing.assert_array_equal(
                outputs.region_boxes[outputs.region_indices], datasets["regions/box"][regions]
            )
            np.testing.assert_array_equal(
                outputs.embeddings[outputs.region_indices], datasets["regions/embedding"][regions]
            )
    assert [len(cache[image].pairs) for image in IMAGES] == [15, 8, 8, 0]


def test_prompt_embeddings(cache, expected):
    datasets, text = expected[TEACHER], cache.prompt_embeddings
    assert [list(group) for group in text.prompts] == datasets["prompts"]
    np.testing.assert_array_equal(text.embeddings, datasets["text_embeddings"])
    assert text.logit_scale == datasets["attributes"]["logit_scale"]


def test_checksums():
    assert find_problems(CACHE) == {}


def test_rescoring(cache, tmp_path):
    out = tmp_path / "new"
    rescore_cache(RescoreConfig(CACHE, out, temperature=1 / cache.prompt_embeddings.logit_scale))
    rescored = open_cache(out)
    for image in IMAGES:
        np.testing.assert_allclose(
            rescored[image].probabilities, cache[image].probabilities, atol=1e-2
        )
