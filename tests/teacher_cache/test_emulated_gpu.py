"""Builds, rescoring and training of the toy models on an emulated GPU."""

import gc
import weakref
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.cluster.modes import LocalWorkers
from pipeline.utils.devices import resolve_device
from pipeline.utils.errors import InputError
from teacher_cache.build import build_cache
from teacher_cache.detectors.base import DetectorConfig
from teacher_cache.detectors.load import load_detector
from teacher_cache.detectors.torchvision import TorchvisionDetector
from teacher_cache.estimate import estimate_build
from teacher_cache.extraction.extract import TeacherModels, extract
from teacher_cache.extraction.inputs import BuildInputs, _loaded_inputs
from teacher_cache.maintenance.add_prompts import create_prompts_file
from teacher_cache.maintenance.rescore import RescoreConfig, rescore_cache
from teacher_cache.reader.cache import open_cache
from teacher_cache.reader.manifest import read_manifest
from teacher_cache.teachers import clip as clip_teacher
from teacher_cache.teachers.clip import ClipConfig, ClipTeacher
from teacher_cache.teachers.regions import RegionMode, crop_regions
from teacher_cache.toy.train import (
    ToyModelsConfig,
    draw_training_data,
    run_detector_training,
    run_teacher_training,
)

# Largest difference between outputs of a GPU and a CPU.
TOLERANCE = 2e-3


def assert_close(found, expected):
    assert found.image_ids == expected.image_ids and found.failed == {}
    for image in expected.image_ids:
        first, second = found[image], expected[image]
        np.testing.assert_array_equal(first.pairs.object_labels, second.pairs.object_labels)
        np.testing.assert_allclose(first.region_boxes, second.region_boxes, atol=1e-2)
        np.testing.assert_allclose(first.probabilities, second.probabilities, atol=TOLERANCE)
        np.testing.assert_allclose(first.embeddings, second.embeddings, atol=TOLERANCE)


def test_a_cache_equals_that_of_a_cpu(finished, shared_dataset, build, emulated_gpu):
    cache = build(shared_dataset, device="cuda", precision="float32")
    assert emulated_gpu.kernels["convolution"] + emulated_gpu.kernels["cudnn_convolution"] > 0
    assert_close(cache, open_cache(finished))


def test_the_host_waits_once_per_batch(shared_dataset, build, extraction, emulated_gpu):
    """Not counting torchvision's detector, whose outputs have sizes that only the GPU knows."""
    cache = build(shared_dataset, device="cuda", images_per_shard=100)
    regions = sum(len(cache[image].region_boxes) for image in cache.image_ids)
    batches = -(-regions // extraction.regions_per_batch)
    images = -(-len(cache.image_ids) // extraction.images_per_batch)
    events = emulated_gpu.waits_of("event")
    assert events == batches + images
    others = {
        name: count
        for name, count in emulated_gpu.waits.items()
        if not name.startswith("event") and "detectors/torchvision.py" not in name
    }
    # Loading the teacher, and encoding the prompts.
    assert {name.split()[0] for name in others} == {"upload", "download"}
    assert all("teachers/clip.py" in name for name in others)
    assert sum(n for name, n in others.items() if name.startswith("download")) == 1


def test_an_estimate(finished, shared_dataset, build_config, emulated_gpu):
    estimate = estimate_build(build_config(shared_dataset, device="cuda"))
    assert estimate.device.startswith("cuda:0 (")
    assert estimate.pairs.count == read_manifest(finished)["counts"]["pairs"]
    assert all(hours > 0 for hours in estimate.hours.values())


@pytest.mark.parametrize("level", ["region", "image"])
def test_without_a_detector_the_host_waits_for_regions_only(
    shared_dataset, build, extraction, emulated_gpu, level
):
    """Of a second build in a process, which has the models: once per batch of regions."""
    options = {
        "device": "cuda",
        "candidates": "annotated",
        "images_per_shard": 4,
        "extraction": replace(extraction, level=level),
    }
    build(shared_dataset, **options)
    emulated_gpu.waits.clear()
    inputs = next(iter(_loaded_inputs.values()))
    batches = 0
    for start in (0, 4):
        tasks = inputs.data.image_tasks[start : start + 4]
        models = TeacherModels(None, inputs.teacher, inputs.data.vocabulary)
        outputs, _ = extract(tasks, models, options["extraction"], lambda count: None)
        regions = sum(len(one.region_boxes) for one in outputs.values())
        batches += -(-regions // extraction.regions_per_batch)
    assert emulated_gpu.waits_of() == emulated_gpu.waits_of("event") == batches > 0


@pytest.mark.parametrize("mode", ["pad", "stretch", "context=1.5"])
def test_cropping_regions_does_not_wait(emulated_gpu, monkeypatch, mode):
    # The image is uploaded in bands.
    monkeypatch.setattr("pipeline.images.BAND_PIXELS", 9000)
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (300, 200, 3), dtype=np.uint8))
    boxes = np.tile(np.array([[0, 0, 200, 300], [20, 10, 90, 50]], np.float32), (40, 1))
    gpu, mode = resolve_device("cuda"), RegionMode.parse(mode)
    found = crop_regions(image, boxes, 32, mode, gpu)
    assert emulated_gpu.waits_of() == 0
    expected = crop_regions(image, boxes, 32, mode, torch.device("cpu"))
    assert (found.cpu().int() - expected.int()).abs().max() <= 1


@pytest.fixture
def teacher(shared_dataset, emulated_gpu):
    return ClipTeacher(ClipConfig(str(shared_dataset / "teacher")), resolve_device("cuda"))


def let_encoder_overflow(monkeypatch, in_float32=False):
    """Makes the image encoder return infinity in half precision, or in any precision."""
    original = ClipTeacher._encode

    def encode(self, pixels, precision):
        embeddings = original(self, pixels, precision)
        overflows = precision != "float32" or in_float32
        return embeddings * torch.inf if overflows else embeddings

    monkeypatch.setattr(clip_teacher.ClipTeacher, "_encode", encode)


def test_batches_that_overflow_float16_are_encoded_again(monkeypatch, teacher, emulated_gpu):
    regions = torch.arange(4 * 3 * 64 * 64).view(4, 3, 64, 64).mul(37).to(torch.uint8).to("cuda")
    assert teacher.precision == "float16"
    expected = teacher.encode_images(regions)
    let_encoder_overflow(monkeypatch)
    np.testing.assert_allclose(teacher.encode_images(regions), expected, atol=TOLERANCE)


def test_the_error_names_an_image_whose_embeddings_are_not_finite(
    monkeypatch, shared_dataset, build_config, emulated_gpu
):
    let_encoder_overflow(monkeypatch, in_float32=True)
    config = build_config(shared_dataset, device="cuda")
    with pytest.raises(InputError) as caught:
        build_cache(config)
    (first, *_) = sorted((shared_dataset / "images/train2015").iterdir())
    assert str(first) in str(caught.value) and "finite" in str(caught.value)
    assert not (config.out / "manifest.json").exists()


@pytest.mark.parametrize("model", [ClipTeacher, TorchvisionDetector])
def test_the_error_of_too_little_memory_names_the_batch_sizes(
    monkeypatch, shared_dataset, build, emulated_gpu, model
):
    def run_out(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has\n")

    name = "encode_images_async" if model is ClipTeacher else "detect"
    monkeypatch.setattr(model, name, run_out)
    with pytest.raises(InputError) as caught:
        build(shared_dataset, device="cuda")
    message = str(caught.value)
    assert "8 regions" in message and "3 images" in message and "128 x 128" in message
    assert "\n" not in message


def test_models_use_the_given_gpu(shared_dataset, build, emulate_cuda):
    with emulate_cuda(devices=2) as gpu:
        build(shared_dataset, device="cuda:1")
        assert gpu.current == 1


def test_the_builder_frees_its_models_for_workers(monkeypatch, shared_dataset, build, emulate_cuda):
    clips = []
    init = BuildInputs.__init__

    def record_clip(self, *args):
        init(self, *args)
        clips.append(weakref.ref(self.teacher))

    monkeypatch.setattr(BuildInputs, "__init__", record_clip)

    @contextmanager
    def open_workers(*_):
        gc.collect()
        assert [clip() for clip in clips] == [None]
        raise InputError("stop here")
        yield

    monkeypatch.setattr("pipeline.cluster.modes._open_workers", open_workers)
    with emulate_cuda(devices=2), pytest.raises(InputError, match="stop here"):
        build(shared_dataset, device="auto")


# Gives every child process an emulated GPU, and logs which real one it would use.
SITECUSTOMIZE = """
import os, sys
sys.path.insert(0, {tests!r})
from emulated_cuda import emulated_cuda
emulation = emulated_cuda()
emulation.__enter__()
import torch
def set_device(device):
    with open({log!r}, "a") as file:
        file.write(os.environ.get("CUDA_VISIBLE_DEVICES", "all") + "\\n")
torch.cuda.set_device = set_device
"""


@pytest.mark.slow
def test_each_worker_uses_one_gpu(
    monkeypatch, finished, shared_dataset, build, emulate_cuda, tmp_path
):
    """Without a GPU they would have another precision than the builder, and refuse the task."""
    folder, log = tmp_path / "children", tmp_path / "shown"
    folder.mkdir()
    code = SITECUSTOMIZE.format(tests=str(Path(__file__).parents[1]), log=str(log))
    (folder / "sitecustomize.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", str(folder))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    with emulate_cuda(devices=2):
        cache = build(shared_dataset, device="auto", mode=LocalWorkers(2))
    assert set(log.read_text().split()) == {"0", "1"}
    assert cache.manifest["parts"]["clip.precision"] == "float16"
    assert cache.image_ids == open_cache(finished).image_ids and cache.failed == {}


def test_rescoring_and_new_prompts_equal_those_of_a_cpu(finished, tmp_path, emulate_cuda):
    def run(device):
        out = tmp_path / device
        templates = ("a photo of person {ing} {object}",)
        rescore_cache(RescoreConfig(finished, out, templates, device=device))
        file = tmp_path / f"{device}.h5"
        prompts = create_prompts_file(finished, file, ("kicking:dog",), device=device)
        return open_cache(out), prompts

    cache, prompts = run("cpu")
    with emulate_cuda() as gpu:
        found, new = run("cuda")
    assert gpu.kernels.total() > 0
    assert_close(found, cache)
    np.testing.assert_allclose(new.embeddings, prompts.embeddings, atol=TOLERANCE)


def test_training_of_the_toy_models(vocabulary, tmp_path, emulated_gpu):
    config = ToyModelsConfig(num_images=16, teacher_steps=1, detector_epochs=1)
    data = draw_training_data(config.seed, config.num_images, 64, config.templates)
    threads = torch.get_num_threads()
    for train in (run_teacher_training, run_detector_training):
        train(data, tmp_path, config, "cuda", threads, lambda *_: None)
    assert emulated_gpu.kernels.total() > 0
    cpu = torch.device("cpu")
    teacher = ClipTeacher(ClipConfig(str(tmp_path / "teacher")), cpu)
    assert np.isfinite(teacher.encode_texts(["a picture of person riding horse"])).all()
    weights = DetectorConfig("toy", str(tmp_path / "detector.safetensors"))
    assert load_detector(weights, vocabulary, cpu).missing_objects == ()
