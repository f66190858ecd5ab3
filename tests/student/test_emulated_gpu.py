"""Training and inference on an emulated GPU."""

import math
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from training import assert_equal_weights, interrupted, logged

from pipeline.utils.errors import InputError
from student.config import get_preset
from student.data.dataset import collate
from student.engine.evaluate import evaluate_checkpoint
from student.engine.run import run_student
from student.engine.train_step import TrainStep
from student.inference.detector import Detector
from student.models.detector import HOIDetector

GPU = torch.device("cuda", 0)


@pytest.mark.parametrize("queries", ["proposals", "learned"])
def test_losses_equal_those_on_a_cpu(make_trainer, tmp_path, queries, emulate_cuda):
    options = {"queries": queries, "dropout": 0.0, "epochs": 1}
    make_trainer("cpu", **options).go()
    with emulate_cuda() as gpu:
        make_trainer("gpu", device=GPU, **options).go()
    assert gpu.kernels.total() > 0
    expected, found = logged(tmp_path / "cpu"), logged(tmp_path / "gpu")
    assert len(found) == len(expected) == 4
    for one, other in zip(found, expected, strict=True):
        assert one["losses"] == pytest.approx(other["losses"], rel=1e-3, abs=1e-4)


@pytest.fixture(scope="module")
def config(configure_run, dataset_root, text_cache, tmp_path_factory):
    """A run with all features of training: a text head, an extra dataset, accumulation,
    averaged weights, dropout and held-out images."""
    options = {"verb_head": "text", "epochs": 2, "ema": 0.9, "dropout": 0.1}
    options |= {"extra_ratio": 0.5, "val_size": 2, "val_every": 1}
    copy = shutil.copytree(dataset_root, tmp_path_factory.mktemp("extra") / "toy")
    extra = f"{copy}:{shutil.copytree(text_cache, copy.parent / 'cache')}"
    options |= {"device": "cuda:1", "accumulation": 2, "log_every": 1}
    out = tmp_path_factory.mktemp("runs") / "run"
    return configure_run(out, cache=text_cache, extra_data=[extra], **options)


@pytest.mark.slow
def test_a_run_on_the_second_gpu_resumes_and_is_evaluated(
    monkeypatch, config, tmp_path, emulate_cuda
):
    stopped = replace(config, out=tmp_path / "stopped")
    losses, currents = TrainStep.losses, []

    def record(self, *given):
        currents.append(torch.cuda.current_device())
        return losses(self, *given)

    monkeypatch.setattr(TrainStep, "losses", record)
    with emulate_cuda(devices=2):
        with interrupted(4):
            run_student(stopped)
        # Later the held-out images are predicted where the emulated tensors are, on the first.
        assert currents[0] == 1
        run_student(stopped)
        run_student(config)
        evaluate_checkpoint(config.out, config.data, None, tmp_path / "out", "cuda:1", 0, False)
    predictions = [folder / "predictions.json" for folder in (config.out, tmp_path / "out")]
    assert predictions[0].read_bytes() == predictions[1].read_bytes()
    assert_equal_weights(stopped.out, config.out)
    assert all(math.isfinite(line["loss"]) for line in logged(config.out))


def test_detector_results_equal_those_on_a_cpu(toy_checkpoint, write_image, emulate_cuda):
    pictures = [str(write_image(f"{n}.png", (128, 128), n)) for n in range(3)]

    def found(device):
        detector = Detector.open(toy_checkpoint, device)
        return detector(pictures, threshold=0.0, top=5)

    expected = found("cpu")
    with emulate_cuda() as gpu:
        got = found("auto")
    assert gpu.kernels.total() > 0
    for one, other in zip(got, expected, strict=True):
        assert one.actions == other.actions
        np.testing.assert_allclose(one.scores, other.scores, atol=1e-4)
        np.testing.assert_allclose(one.human_boxes, other.human_boxes, atol=0.1)


def raise_out_of_memory(*_):
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has\n")


def test_out_of_memory_errors(monkeypatch, make_trainer, toy_checkpoint, write_image, emulated_gpu):
    trainer = make_trainer("run", accumulation=2, device=GPU)
    detector = Detector.open(toy_checkpoint, "cuda")
    pictures = [str(write_image(f"{n}.png", (128, 128), n)) for n in range(3)]
    monkeypatch.setattr(HOIDetector, "forward", raise_out_of_memory)
    with pytest.raises(InputError, match=r"batch size 4.*128 x 128.*accumulation 2") as caught:
        trainer.go()
    assert "2.00 GiB" in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(InputError, match=r"batch size 3.*128 x 128"):
        detector(pictures)


SMALL = {"backbone": "resnet18", "hidden_dim": 32, "feedforward_dim": 48, "num_encoder_layers": 1}
SLOW_STEPS = ("parts", "more")
STEPS = {
    "toy": ("toy", {}),
    "published": ("published", SMALL),
    "parts": ("toy", {"accumulation": 2, "dropout": 0.1, "precision": "bfloat16"}),
    "more": ("published", {**SMALL, "matching_head": True, "verb_loss": "bce_bce"}),
}


@pytest.mark.parametrize(
    "name", ["toy", "published", *(pytest.param(n, marks=pytest.mark.slow) for n in SLOW_STEPS)]
)
def test_a_step_waits_for_the_device_twice(make_trainer, vocabulary, name, emulate_cuda):
    """The host waits for the matching costs, and for the metrics of the previous step."""
    start, changes = STEPS[name]
    sizes = (vocabulary.num_objects, vocabulary.num_verbs, vocabulary.person)
    parts = get_preset(start, *sizes).to_dict().values()
    options = {field: value for part in parts for field, value in part.items()} | changes
    with emulate_cuda() as gpu:
        trainer = make_trainer("run", device=GPU, **options)
        trainer.train_step.dataset_names = ["main", "extra"]
        samples = [trainer.batches.images[0, index] for index in range(5)]
        smaller = [one._replace(image=one.image[:, 9 * row :]) for row, one in enumerate(samples)]
        batch = collate(smaller, trainer.batches.multiple).pin_memory()
        waits = []
        for _ in range(3):
            trainer._train_batch(batch, 0.0)
            waits.append(gpu.waits.copy())
    assert (waits[2] - waits[1]).total() == 2, waits[2] - waits[1]
