"""A cache that was written once: later versions must read every value of it."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from pipeline.vocabulary import load_vocabulary
from teacher_cache.detectors.torchvision import TOY_IN_CACHES
from teacher_cache.maintenance.rescore import RescoreConfig, rescore_cache
from teacher_cache.maintenance.verify import check_files
from teacher_cache.reader.cache import open_cache
from teacher_cache.reader.format import PAIR_DATASETS, SHARDS, TEACHER

DATA = Path(__file__).parents[1] / "data"
CACHE = DATA / "cache_v1"
IMAGES = [f"world_train_0000000{number}.jpg" for number in range(1, 5)]


@pytest.fixture(scope="module")
def wanted():
    """Arrays and texts by file and dataset."""

    def typed(value):
        if not isinstance(value, dict) or "type" not in value:
            return value
        return np.array(value["values"], dtype=value["type"]).reshape(value["shape"])

    files = json.loads((DATA / "cache_v1.json").read_text())
    return {
        name: {dataset: typed(value) for dataset, value in own.items()}
        for name, own in files.items()
    }


def test_what_it_is():
    cache = open_cache(CACHE)
    assert cache.fingerprint == "92e454b0b908109fcc67ba51bd8bcc3c5cd8e706c9ca6064b86267ea8f7c09c5"
    assert cache.image_ids == IMAGES and len(cache) == 4
    assert list(cache.failed) == ["world_train_00000005.jpg"]
    assert "truncated" in cache.failed["world_train_00000005.jpg"]
    assert cache.protocol == "detector" and cache.num_shards == 3
    assert cache.manifest["parts"]["part"] == "train"


def test_the_toy_detector_keeps_its_name_in_the_format():
    cache = open_cache(CACHE)
    assert cache.manifest["parts"]["detector.model"] == TOY_IN_CACHES == "world"
    assert cache.manifest["settings"]["detector"] == TOY_IN_CACHES


def test_its_vocabulary_stands_in_it():
    vocabulary = open_cache(CACHE).vocabulary
    assert vocabulary.verbs[:2] == ("ride", "sit_on") and vocabulary.objects[1] == "horse"
    assert vocabulary.digest() == load_vocabulary("toy").digest()


def test_every_number_of_every_shard(wanted):
    cache = open_cache(CACHE)
    for shard in range(3):
        own = dict(wanted[f"{SHARDS}/0000{shard}.h5"])
        layout, arrays = cache.shard_layout(shard), cache.shard_arrays(shard)
        assert list(layout.images) == own.pop("images/id")
        reasons = own.pop("failed/reason")
        assert layout.failed == dict(zip(own.pop("failed/id"), reasons, strict=True))
        assert own.pop("attributes") == {"format_version": 1, "fingerprint": cache.fingerprint}
        assert arrays.keys() == own.keys() >= PAIR_DATASETS.keys()
        for name, array in arrays.items():
            assert array.dtype == own[name].dtype
            np.testing.assert_array_equal(array, own[name])


def test_every_answer_of_every_image(wanted):
    cache = open_cache(CACHE)
    for shard in range(2):
        own = wanted[f"{SHARDS}/0000{shard}.h5"]
        offsets = own["images/pair_offsets"]
        for row, image in enumerate(own["images/id"]):
            part = slice(offsets[row], offsets[row + 1])
            outputs = cache[image]
            for field, name in (
                ("human_boxes", "human_box"),
                ("object_boxes", "object_box"),
                ("object_labels", "object_label"),
                ("human_scores", "human_score"),
                ("object_scores", "object_score"),
                ("sources", "source"),
            ):
                np.testing.assert_array_equal(
                    getattr(outputs.pairs, field), own[f"pairs/{name}"][part]
                )
            np.testing.assert_array_equal(
                outputs.probabilities, own["pairs/action_probabilities"][part].astype(np.float32)
            )
            regions = own["pairs/region"][part]
            np.testing.assert_array_equal(
                outputs.region_boxes[outputs.region_indices], own["regions/box"][regions]
            )
            np.testing.assert_array_equal(
                outputs.embeddings[outputs.region_indices], own["regions/embedding"][regions]
            )
    assert [len(cache[image].pairs) for image in IMAGES] == [15, 8, 8, 0]


def test_the_teachers_texts(wanted):
    own, text = wanted[TEACHER], open_cache(CACHE).prompt_embeddings
    assert [list(group) for group in text.prompts] == own["prompts"]
    np.testing.assert_array_equal(text.embeddings, own["text_embeddings"])
    assert text.logit_scale == own["attributes"]["logit_scale"]


def test_every_byte_is_as_it_was_written():
    assert check_files(CACHE).problems == ()


def test_it_can_be_asked_anew(tmp_path):
    cache = open_cache(CACHE)
    out = tmp_path / "new"
    rescore_cache(RescoreConfig(CACHE, out, temperature=1 / cache.prompt_embeddings.logit_scale))
    again = open_cache(out)
    for image in IMAGES:
        np.testing.assert_allclose(
            again[image].probabilities, cache[image].probabilities, atol=1e-2
        )


def test_a_copy_elsewhere_is_the_same(tmp_path):
    copy = open_cache(shutil.copytree(CACHE, tmp_path / "copy"))
    assert copy.image_ids == IMAGES and len(copy[IMAGES[0]].pairs) == 15
