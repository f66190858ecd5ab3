"""Phase one on a real GPU: `make test-gpu`."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from teacher_cache.build import build_cache
from teacher_cache.reader.cache import open_cache
from teacher_cache.teachers.regions import RegionMode, crop_regions
from teacher_cache.toy.models import DetectorTrainingConfig, TeacherTrainingConfig, ToyModelsConfig
from teacher_cache.toy.train import (
    _run_detector_training,
    _run_teacher_training,
    draw_training_data,
)

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 2e-3), ("auto", 2e-2)])
def test_the_teacher_answers_as_on_a_cpu(shared_dataset, build_config, gpu, precision, tolerance):
    caches = []
    for name, device, own in (("cpu", "cpu", "float32"), ("gpu", "cuda", precision)):
        config = build_config(
            shared_dataset, name, device=device, precision=own, candidates="annotated"
        )
        build_cache(config)
        caches.append(open_cache(config.out))
    expected, found = caches
    for image in expected.image_ids:
        for name in ("probabilities", "embeddings"):
            one, other = (getattr(cache[image], name) for cache in (found, expected))
            np.testing.assert_allclose(one, other, atol=tolerance)


def test_a_build_with_the_detector(shared_dataset, build_config, gpu):
    config = build_config(shared_dataset, device="cuda")
    build_cache(config)
    cache = open_cache(config.out)
    assert cache.failed == {} and len(cache.image_ids) == 7
    for image in cache.image_ids:
        assert np.isfinite(cache[image].embeddings).all()


@pytest.mark.parametrize("size", [(640, 480), (60, 40_000), (40_000, 60)])
def test_regions_are_those_of_a_cpu_in_little_memory(gpu, size):
    rng = np.random.default_rng(0)
    width, height = size
    image = Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
    boxes = np.array([[0, 0, width, height], [10, 10, 40, 50]], np.float32)
    # The statistics exist once the GPU is in use.
    torch.ones(1, device=gpu)
    torch.cuda.reset_peak_memory_stats(gpu)
    before = torch.cuda.memory_allocated(gpu)
    found = crop_regions(image, boxes, 96, RegionMode(), gpu).cpu()
    assert torch.cuda.max_memory_allocated(gpu) - before < 2**30
    expected = crop_regions(image, boxes, 96, RegionMode(), torch.device("cpu"))
    assert (found.int() - expected.int()).abs().max() <= 1


def test_the_toy_models_learn(tmp_path, gpu):
    config = ToyModelsConfig(
        pictures=32,
        teacher=TeacherTrainingConfig(steps=4, batch_size=16),
        detector=DetectorTrainingConfig(epochs=1, batch_size=16),
    )
    pictures = draw_training_data(config.seed, config.pictures, 64, config.templates)
    for train in (_run_teacher_training, _run_detector_training):
        train(pictures, tmp_path, config, "cuda", torch.get_num_threads(), lambda *_: None)
    assert (tmp_path / "detector.safetensors").is_file() and (tmp_path / "teacher").is_dir()


def test_the_build_beside_the_bare_tower(gpu):
    """A table to look at: the ratio says how much of the image tower's speed a build keeps."""
    words = ("--images", "200", "--turns", "3", "--device", "cuda")
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.cache_build", *words], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    print(json.dumps(found, indent=1))
    assert found["device"] == "cuda:0" and found["ratio"] > 0
