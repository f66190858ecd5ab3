"""Builds, regions and training of the toy models on a real GPU (`make test-gpu`)."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from teacher_cache.teachers.regions import RegionMode, crop_regions
from teacher_cache.toy.train import (
    ToyModelsConfig,
    draw_training_data,
    run_detector_training,
    run_teacher_training,
)

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 2e-3), ("auto", 2e-2)])
def test_outputs_are_those_of_a_cpu(shared_dataset, build, gpu, precision, tolerance):
    options = {"candidates": "annotated"}
    on_cpu = build(shared_dataset, "cpu", device="cpu", precision="float32", **options)
    on_gpu = build(shared_dataset, "gpu", device="cuda", precision=precision, **options)
    for image in on_cpu.image_ids:
        for name in ("probabilities", "embeddings"):
            found, expected = (getattr(cache[image], name) for cache in (on_gpu, on_cpu))
            np.testing.assert_allclose(found, expected, atol=tolerance)


def test_a_build_with_the_detector(shared_dataset, build, gpu):
    cache = build(shared_dataset, device="cuda")
    assert cache.failed == {} and len(cache.image_ids) == 7
    for image in cache.image_ids:
        assert np.isfinite(cache[image].embeddings).all()


@pytest.mark.parametrize("size", [(640, 480), (60, 40_000), (40_000, 60)])
def test_regions_are_those_of_a_cpu_and_take_little_memory(gpu, size):
    rng = np.random.default_rng(0)
    width, height = size
    image = Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
    boxes = np.array([[0, 0, width, height], [10, 10, 40, 50]], np.float32)
    # Memory statistics exist only after the first allocation.
    torch.ones(1, device=gpu)
    torch.cuda.reset_peak_memory_stats(gpu)
    before = torch.cuda.memory_allocated(gpu)
    found = crop_regions(image, boxes, 96, RegionMode(), gpu).cpu()
    assert torch.cuda.max_memory_allocated(gpu) - before < 2**30
    expected = crop_regions(image, boxes, 96, RegionMode(), torch.device("cpu"))
    assert (found.int() - expected.int()).abs().max() <= 1


def test_training_of_the_toy_models(tmp_path, gpu):
    config = ToyModelsConfig(num_images=32, teacher_steps=4, detector_epochs=1)
    data = draw_training_data(config.seed, config.num_images, 64, config.templates)
    for train in (run_teacher_training, run_detector_training):
        train(data, tmp_path, config, "cuda", torch.get_num_threads(), lambda *_: None)
    assert (tmp_path / "detector.safetensors").is_file() and (tmp_path / "teacher").is_dir()


def test_speed_of_a_build_relative_to_the_image_encoder(gpu):
    """Prints the share of the image encoder's speed that a build reaches."""
    arguments = ("--images", "200", "--turns", "3", "--device", "cuda")
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.cache_build", *arguments], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    print(json.dumps(found, indent=1))
    assert found["device"] == "cuda:0" and found["ratio"] > 0
