"""Memory of a build: images held at once, and pictures of 100 megapixels."""

import gc
import sys
import weakref

import numpy as np
import pytest
from PIL import Image

from benchmarks import build_memory
from pipeline.images import read_image
from pipeline.toy.generate import write_toy
from pipeline.utils.files import read_json
from teacher_cache.build import build_cache
from teacher_cache.extraction import decoding
from teacher_cache.teachers.text_image import MAX_BATCHES_CROPPING


@pytest.mark.parametrize("images", [10, 40])
@pytest.mark.parametrize("candidates", ["detector", "annotated"])
def test_images_held_at_once_do_not_grow_with_their_number(
    shared_dataset, build_config, tmp_path, monkeypatch, images, candidates
):
    root = tmp_path / "toy"
    write_toy(root, train=images, test=1, seed=3, workers=1)
    alive, held = weakref.WeakValueDictionary(), []

    def read(path):
        image = read_image(path)
        alive[len(held)] = image
        held.append(len(alive))
        return image

    monkeypatch.setattr(decoding, "read_image", read)
    models = {"clip_model": str(shared_dataset / "teacher"), "candidates": candidates}
    if candidates == "detector":
        models |= {
            "detector": "toy",
            "detector_weights": str(shared_dataset / "detector.safetensors"),
        }
    config = build_config(root, images_per_shard=100, **models)
    build_cache(config)
    assert len(held) == images
    # Batches that wait to be cropped, the one that is cropped, and those in work and in decoding.
    batches = MAX_BATCHES_CROPPING + 3
    assert max(held) <= batches * config.extraction.images_per_batch
    gc.collect()
    assert not alive


def test_many_images_of_the_benchmark(tmp_path):
    write_toy(tmp_path, train=2, test=1, seed=0, workers=1)
    images, annotations = (tmp_path / path for path in build_memory.LAYOUTS["hico"]["train"])
    drawn = read_json(annotations)
    build_memory.repeat_images(tmp_path, 5)
    repeated = read_json(annotations)
    for number, entry in enumerate(repeated):
        size = build_memory.SIZES[number]
        with Image.open(images / entry["file_name"]) as image:
            assert image.size == (entry["width"], entry["height"]) == size
        factors = np.array(2 * size) / 128
        for row, source in zip(entry["annotations"], drawn[number % 2]["annotations"], strict=True):
            np.testing.assert_allclose(row["bbox"], factors * source["bbox"])
    assert len(repeated) == 5


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
@pytest.mark.parametrize("form", ["JPEG", "PNG"])
def test_pictures_of_100_megapixels_fit_two_gigabytes(tmp_path, monkeypatch, form):
    """Two, one after the other; the build itself, with PyTorch and its models, takes the half."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert build_memory.large_image(tmp_path, 100, 2, form) < 2000
