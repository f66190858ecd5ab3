"""Phase two on a real GPU: `make test-gpu`."""

import json
import math
import subprocess
import sys
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from training import interrupted, logged

from pipeline.utils.devices import configure_device
from student.engine.evaluate import evaluate_checkpoint
from student.engine.run import run_student
from student.inference.detector import Detector
from student.weights.checkpoint_file import load_checkpoint

pytestmark = pytest.mark.gpu
# Tolerances: matrix products are summed in another order, in all layers and backwards.
LOSSES = {"rel": 1e-3, "abs": 1e-4}


@pytest.fixture
def config(configure_run, tmp_path):
    options = {"epochs": 2, "ema": 0.9, "seed": 3, "precision": "auto"}
    return configure_run(tmp_path / "run", device="cuda", workers=2, log_every=1, **options)


@pytest.mark.parametrize("queries", ["proposals", "learned"])
def test_losses_and_gradients_equal_those_on_a_cpu(make_trainer, tmp_path, gpu, queries):
    configure_device(gpu, "float32")
    options = {"queries": queries, "dropout": 0.0, "epochs": 1}
    for name, device in (("cpu", torch.device("cpu")), ("gpu", gpu)):
        make_trainer(name, device=device, **options).go()
    expected, found = logged(tmp_path / "cpu")[0], logged(tmp_path / "gpu")[0]
    assert found["losses"] == pytest.approx(expected["losses"], **LOSSES)
    assert found["grad_norm"] == pytest.approx(expected["grad_norm"], rel=1e-2)


@pytest.mark.parametrize("precision", ["float32", "auto"])
def test_a_run_is_resumed_and_evaluated(config, tmp_path, gpu, precision):
    config = replace(config, options={**config.options, "precision": precision})
    with interrupted(4):
        run_student(config)
    assert load_checkpoint(config.out / "checkpoint.pt").state["step"] == 2
    results = run_student(config)
    lines = logged(config.out)
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert all(math.isfinite(line["loss"]) for line in lines)
    out = tmp_path / "out"
    again = evaluate_checkpoint(config.out, config.data, None, out, "cuda", 0, False)
    assert again.metrics.keys() == results.metrics.keys()
    for name, value in results.metrics.items():
        assert again.metrics[name] == pytest.approx(value, abs=1e-3), name


def test_detector_results_equal_those_on_a_cpu(toy_checkpoint, write_image, gpu):
    pictures = [str(write_image(f"{n}.png", (128, 128), n)) for n in range(3)]
    expected, found = (
        Detector.open(toy_checkpoint, device)(pictures, threshold=0.0, top=5)
        for device in ("cpu", "cuda")
    )
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one.scores, other.scores, atol=1e-3)


@pytest.mark.parametrize("queries", ["proposals", "learned"])
def test_the_host_waits_at_most_twice_a_step(make_trainer, gpu, queries):
    trainer = make_trainer("run", device=gpu, queries=queries)
    batches = iter(trainer.build_loader())
    for _ in range(2):
        batch = next(batches).to(gpu)
        torch.cuda.synchronize()
        with warnings.catch_warnings(record=True) as waits:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                trainer.train_step(batch)
            finally:
                torch.cuda.set_sync_debug_mode("default")
    # The first step also warms up libraries.
    waits_for_device = [str(one.message) for one in waits if "synchroniz" in str(one.message)]
    assert len(waits_for_device) <= 2, waits_for_device


def test_the_second_gpu(config, two_gpus):
    first = torch.cuda.max_memory_allocated(0)
    run_student(replace(config, device="cuda:1"))
    assert torch.cuda.max_memory_allocated(1) > 0
    assert torch.cuda.max_memory_allocated(0) == first
    assert all(math.isfinite(line["loss"]) for line in logged(config.out))


def test_two_processes_have_the_losses_of_one(train_alone_and_together, two_gpus):
    options = ("--epochs", 1, "--workers", 1, "--device", "cuda", "--dropout", 0.0)
    train_alone_and_together(*options, tolerance=LOSSES)


def test_step_times(gpu):
    """Prints the times of the published student's step with cache, without, and with CLIP."""
    words = ("--batch-size", "8", "--steps", "4", "--turns", "3")
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.student_step", *words, "--device", "cuda"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    print(json.dumps(found, indent=1))
    assert found["device"] == str(gpu)
    assert all(found[part]["ratio"] > 0 for part in ("cache", "teacher"))
