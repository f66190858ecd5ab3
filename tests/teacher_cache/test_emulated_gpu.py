"""Phase one on an emulated GPU."""

import gc
import weakref
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.utils.devices import resolve_device
from pipeline.utils.errors import InputError
from teacher_cache.build import build_cache
from teacher_cache.cluster.modes import LocalWorkers
from teacher_cache.detectors.torchvision import Detector, DetectorConfig
from teacher_cache.extraction.inputs import BuildInputs
from teacher_cache.maintenance.add_prompts import AddPromptsConfig, create_prompts_file
from teacher_cache.maintenance.rescore import RescoreConfig, rescore_cache
from teacher_cache.reader.cache import open_cache
from teacher_cache.teachers import clip as clip_teacher
from teacher_cache.teachers.clip import ClipConfig, ClipTeacher
from teacher_cache.teachers.regions import RegionMode, crop_regions
from teacher_cache.toy.models import DetectorTrainingConfig, TeacherTrainingConfig, ToyModelsConfig
from teacher_cache.toy.train import (
    _run_detector_training,
    _run_teacher_training,
    draw_training_data,
)

# What a GPU's outputs may differ by.
TOLERANCE = 2e-3


def same_answers(found, expected):
    assert found.image_ids == expected.image_ids and found.failed == {}
    for image in expected.image_ids:
        one, other = found[image], expected[image]
        np.testing.assert_array_equal(one.pairs.object_labels, other.pairs.object_labels)
        np.testing.assert_allclose(one.region_boxes, other.region_boxes, atol=1e-2)
        np.testing.assert_allclose(one.probabilities, other.probabilities, atol=TOLERANCE)
        np.testing.assert_allclose(one.embeddings, other.embeddings, atol=TOLERANCE)


def test_a_cache_is_that_of_a_cpu(finished, shared_dataset, build_config, emulated_gpu):
    config = build_config(shared_dataset, device="cuda", precision="float32")
    build_cache(config)
    assert emulated_gpu.kernels["convolution"] + emulated_gpu.kernels["cudnn_convolution"] > 0
    same_answers(open_cache(config.out), open_cache(finished))


def test_the_host_waits_once_for_a_batch_of_results(shared_dataset, build_config, emulated_gpu):
    """Beside what torchvision's detector does: sizes of its results are only known to the GPU."""
    config = build_config(shared_dataset, device="cuda", images_per_shard=100)
    build_cache(config)
    cache = open_cache(config.out)
    regions = sum(len(cache[image].region_boxes) for image in cache.image_ids)
    batches = -(-regions // config.extraction.regions_per_batch)
    images = -(-len(cache.image_ids) // config.extraction.images_per_batch)
    events = emulated_gpu.waits_of("event")
    assert events == batches + images
    others = {
        name: count
        for name, count in emulated_gpu.waits.items()
        if not name.startswith("event") and "detectors/torchvision.py" not in name
    }
    # Loading the teacher, the prompts' tokens and their embeddings.
    assert {name.split()[0] for name in others} == {"upload", "download"}
    assert all("teachers/clip.py" in name for name in others)
    assert sum(n for name, n in others.items() if name.startswith("download")) == 1


def test_without_a_detector_nothing_else_waits(shared_dataset, build_config, emulated_gpu):
    config = build_config(shared_dataset, device="cuda", candidates="annotated")
    config = replace(config, detector=None, images_per_shard=100)
    build_cache(config)
    work = [name for name in emulated_gpu.waits if "detectors/torchvision.py" in name]
    assert work == []
    cache = open_cache(config.out)
    regions = sum(len(cache[image].region_boxes) for image in cache.image_ids)
    assert emulated_gpu.waits_of("event") == -(-regions // config.extraction.regions_per_batch)


@pytest.mark.parametrize("mode", ["pad", "stretch", "context=1.5"])
def test_cutting_regions_does_not_wait(emulated_gpu, mode):
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


def overflowing(monkeypatch, in_float32=False):
    """The image tower's largest values do not fit float16, or any number, on whole batches."""
    whole = ClipTeacher._encode

    def encode(self, pixels, precision):
        found = whole(self, pixels, precision)
        return found * torch.inf if precision != "float32" or in_float32 else found

    monkeypatch.setattr(clip_teacher.ClipTeacher, "_encode", encode)


def test_float16_that_overflows_is_encoded_again(monkeypatch, teacher, emulated_gpu):
    regions = torch.arange(4 * 3 * 64 * 64).view(4, 3, 64, 64).mul(37).to(torch.uint8).to("cuda")
    assert teacher.precision == "float16"
    expected = teacher.encode_images(regions)
    overflowing(monkeypatch)
    np.testing.assert_allclose(teacher.encode_images(regions), expected, atol=TOLERANCE)


def test_an_image_without_finite_numbers_is_named(
    monkeypatch, shared_dataset, build_config, emulated_gpu
):
    overflowing(monkeypatch, in_float32=True)
    config = build_config(shared_dataset, device="cuda")
    with pytest.raises(InputError) as caught:
        build_cache(config)
    (first, *_) = sorted((shared_dataset / "images/train2015").iterdir())
    assert str(first) in str(caught.value) and "finite" in str(caught.value)
    assert not (config.out / "manifest.json").exists()


@pytest.mark.parametrize("place", [ClipTeacher, Detector])
def test_lack_of_memory_names_the_batches(
    monkeypatch, shared_dataset, build_config, emulated_gpu, place
):
    def lack(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has\n")

    name = "encode_images_async" if place is ClipTeacher else "__call__"
    monkeypatch.setattr(place, name, lack)
    with pytest.raises(InputError) as caught:
        build_cache(build_config(shared_dataset, device="cuda"))
    said = str(caught.value)
    assert "8 regions" in said and "3 images" in said and "128 x 128" in said and "\n" not in said


def test_models_take_the_named_gpu(monkeypatch, shared_dataset, build_config, emulate_cuda):
    with emulate_cuda(devices=2) as gpu:
        build_cache(build_config(shared_dataset, device="cuda:1"))
        assert gpu.current == 1


def test_the_builder_keeps_no_models_where_others_work(
    monkeypatch, shared_dataset, build_config, emulate_cuda
):
    clips = []
    init = BuildInputs.__init__

    def record_clip(self, *args):
        init(self, *args)
        clips.append(weakref.ref(self.clip))

    monkeypatch.setattr(BuildInputs, "__init__", record_clip)

    @contextmanager
    def open_workers(*_):
        gc.collect()
        assert [clip() for clip in clips] == [None]
        raise InputError("far enough")
        yield

    monkeypatch.setattr("teacher_cache.cluster.run._open_workers", open_workers)
    with emulate_cuda(devices=2), pytest.raises(InputError, match="far enough"):
        build_cache(build_config(shared_dataset, device="auto"))


# Every process has an emulated GPU, and notes which real one it would be when it takes it.
IN_CHILDREN = """
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
def test_workers_keep_to_one_gpu_each(
    monkeypatch, finished, shared_dataset, build_config, emulate_cuda, tmp_path
):
    """Workers that did not have the GPU that the builder meant would refuse to answer."""
    folder, log = tmp_path / "children", tmp_path / "shown"
    folder.mkdir()
    text = IN_CHILDREN.format(tests=str(Path(__file__).parents[1]), log=str(log))
    (folder / "sitecustomize.py").write_text(text)
    monkeypatch.setenv("PYTHONPATH", str(folder))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    config = build_config(shared_dataset, device="auto", mode=LocalWorkers(2))
    with emulate_cuda(devices=2):
        build_cache(config)
    assert set(log.read_text().split()) == {"0", "1"}
    cache = open_cache(config.out)
    assert cache.manifest["parts"]["clip.precision"] == "float16"
    assert cache.image_ids == open_cache(finished).image_ids and cache.failed == {}


def test_rescoring_and_new_prompts_are_those_of_a_cpu(finished, tmp_path, emulate_cuda):
    def run(device):
        out = tmp_path / device
        templates = ("a photo of person {ing} {object}",)
        rescore_cache(RescoreConfig(finished, out, templates, device=device))
        config = AddPromptsConfig(
            finished, tmp_path / f"{device}.h5", ("kicking:dog",), device=device
        )
        return open_cache(out), create_prompts_file(config)

    cache, prompts = run("cpu")
    with emulate_cuda() as gpu:
        found, new = run("cuda")
    assert gpu.kernels.total() > 0
    same_answers(found, cache)
    np.testing.assert_allclose(new.embeddings, prompts.embeddings, atol=TOLERANCE)


def test_the_toy_models_learn_on_a_gpu(vocabulary, tmp_path, emulated_gpu):
    config = ToyModelsConfig(
        pictures=16,
        teacher=TeacherTrainingConfig(steps=2, batch_size=8),
        detector=DetectorTrainingConfig(epochs=1, batch_size=8),
    )
    pictures = draw_training_data(config.seed, config.pictures, 64, config.templates)
    threads = torch.get_num_threads()
    for train in (_run_teacher_training, _run_detector_training):
        train(pictures, tmp_path, config, "cuda", threads, lambda *_: None)
    assert emulated_gpu.kernels.total() > 0
    cpu = torch.device("cpu")
    teacher = ClipTeacher(ClipConfig(str(tmp_path / "teacher")), cpu)
    assert np.isfinite(teacher.encode_texts(["a picture of person riding horse"])).all()
    weights = DetectorConfig("toy", str(tmp_path / "detector.safetensors"))
    assert Detector(weights, vocabulary, cpu).missing_objects == ()
