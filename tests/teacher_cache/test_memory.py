"""Memory of a build: images held at once, and pictures of 100 megapixels."""

import gc
import sys
import weakref

import pytest

from benchmarks import build_memory
from pipeline.images import read_image
from pipeline.toy.generate import write_toy
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


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
@pytest.mark.parametrize("form", ["JPEG", "PNG"])
def test_pictures_of_100_megapixels_fit_two_gigabytes(tmp_path, monkeypatch, form):
    """Two, one after the other; the build itself, with PyTorch and its models, takes the half."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert build_memory.large_image(tmp_path, 100, 2, form) < 2000
