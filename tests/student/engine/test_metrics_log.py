import json

import pytest
import torch
from PIL import Image
from training import read_lines

from student.engine.metrics_log import (
    MetricsLogger,
    PendingMetrics,
    StepMetrics,
    Throughput,
    non_finite_message,
    peak_memory,
    progress_line,
    truncate_log,
)
from student.utils.distributed import SINGLE_PROCESS

RECORD = {
    "step": 3,
    "epoch": 0.5,
    "images": 12,
    "lr": 1e-4,
    "images_per_second": 8.0,
    "data_wait_share": 0.25,
    "memory_gb": 1.5,
    "candidates": {"total": 40, "overlapping": 9, "interactive": 5, "kept": 3},
}
VALUES = {"object": 1.0, "verb_hard": 2.0, "total": 3.0, "gradient": 0.5}


def step_metrics(step=3):
    return StepMetrics(step, ("a.jpg",), VALUES, {**RECORD, "step": step})


def test_throughput_since_the_last_record():
    throughput = Throughput(torch.device("cpu"))
    assert throughput.compute()["images_per_second"] == 0
    throughput.update(images=6, seconds=2.0, waited=0.5)
    throughput.update(images=4, seconds=2.0, waited=0.5)
    found = throughput.compute()
    assert (found["images_per_second"], found["data_wait_share"]) == (2.5, 0.25)
    assert found["memory_gb"] == pytest.approx(peak_memory(torch.device("cpu")) / 1e9, rel=0.2)
    assert throughput.compute()["images_per_second"] == 0


def test_entering_removes_lines_of_later_steps(tmp_path):
    for step in (2, 4):
        with MetricsLogger(tmp_path, 0 if step == 2 else 3, 9, SINGLE_PROCESS) as log:
            log.advance()
            log.log_step(step_metrics(step))
            log.log_validation(step, 1, {"seen": 0.25}, best=True, drawings=tmp_path)
    with MetricsLogger(tmp_path, 3, 9, SINGLE_PROCESS) as log:
        log.log_step(step_metrics(5))
    found = read_lines(tmp_path / "metrics.jsonl")
    assert [line["step"] for line in found] == [2, 5]
    assert found[0]["losses"] == {"object": 1.0, "verb_hard": 2.0} and found[0]["loss"] == 3
    assert found[0]["grad_norm"] == 0.5 and found[0]["images_per_second"] == 8
    assert found[0]["candidates"] == RECORD["candidates"]
    assert read_lines(tmp_path / "validation.jsonl") == [
        {"step": 2, "epoch": 1, "metrics": {"seen": 0.25}, "best": True}
    ]


def test_progress_and_validation_are_shown(tmp_path, capsys, messages):
    with MetricsLogger(tmp_path, 0, 9, SINGLE_PROCESS) as log:
        log.log_step(step_metrics())
        log.advance()
        metrics = {"seen": 0.5, "mean_max_recall": 0.25}
        log.log_validation(3, 2, metrics, best=True, drawings=tmp_path)
    out, err = capsys.readouterr()
    assert out == ""
    assert messages == ["epoch 2, validation: seen 50.00, max recall 25.00 (best so far)"]
    assert "1/9 [" in err and progress_line(read_lines(tmp_path / "metrics.jsonl")[0]) in err
    assert progress_line({**RECORD, "loss": 3, "losses": {"object": 1.0}}) == (
        "loss 3.00, 8.0 images/s, waiting 25%, 1.5 GB, lr 1.0e-04, object 1.00,"
        " 3 of 40 candidates kept"
    )


class Recorder:
    """A logger that keeps what it gets."""

    def __init__(self):
        self.scalars, self.images = [], []

    def log_scalars(self, step, values):
        self.scalars.append((step, dict(values)))

    def log_image(self, step, name, image):
        self.images.append((step, name, image.size))


def test_loggers_get_values_and_drawings(tmp_path):
    for name in ("a", "b"):
        Image.new("RGB", (40, 10)).save(tmp_path / f"{name}.png")
    recorder = Recorder()
    with MetricsLogger(tmp_path, 0, 9, SINGLE_PROCESS, [recorder]) as log:
        log.log_step(step_metrics())
        log.log_validation(3, 1, {"seen": 0.25}, best=False, drawings=tmp_path)
        log.log_test(3, 1, {"full": 0.5}, drawings=tmp_path / "none")
    (_, values), validation, test = recorder.scalars
    expected = {"losses/verb_hard": 2.0, "candidates/kept": 3, "lr": 1e-4, "images_per_second": 8.0}
    assert values.items() >= expected.items()
    assert (validation, test) == ((3, {"val/seen": 0.25}), (3, {"test/full": 0.5}))
    # Drawings stand one below the other, with a gap.
    ((step, name, (width, height)),) = recorder.images
    assert (step, name, width) == (3, "val/pictures", 40) and 20 < height < 40


@pytest.mark.parametrize("current", [0, 1])
def test_metrics_on_a_gpu_arrive_one_step_later(emulate_cuda, current):
    """Whichever GPU is the current one."""
    with emulate_cuda(devices=2) as gpu:
        gpu.current = current
        device = torch.device("cuda", 0)
        found = PendingMetrics(device)

        def on_device(total):
            return {"total": torch.tensor(total).to(device)}

        assert found.put(1, (), on_device(1.0), None) == []
        assert [one.values["total"] for one in found.put(2, (), on_device(2.0), None)] == [1.0]
        assert [one.step for one in found.flush()] == [2] and found.flush() == []
        assert gpu.waits_of("event") == 2


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ([(4, "a, b", {"object": 1.0, "verb": NAN, "gradient": NAN})], "verb, gradient .* a, b"),
        # The gradient is common to all processes; the images are those of the non-finite loss.
        (
            [(4, "a", {"verb": 1.0, "gradient": INF}), (4, "b", {"verb": INF, "gradient": INF})],
            "verb, gradient .* b",
        ),
        ([(4, "a", {"gradient": INF}), (4, "b", {"gradient": INF})], "gradient .* a, b"),
        ([(4, "a", {"verb": NAN}), (5, "b", {"verb": NAN})], "verb .* a"),
    ],
)
def test_non_finite_message(found, message):
    metrics = [
        StepMetrics(step, tuple(ids.split(", ")), losses, None) for step, ids, losses in found
    ]
    expected = message.replace(".*", "not finite on images")
    assert non_finite_message(metrics) == f"step 4: {expected}"


def log_text(*steps):
    return "".join(json.dumps({"step": step, "loss": 1 / step}) + "\n" for step in steps)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (log_text(10, 20), log_text(10, 20)),
        (log_text(10, 25, 30), log_text(10, 25)),
        (log_text(30), ""),
        (log_text(10) + '{"step": 20, "lo', log_text(10)),
        (log_text(10) + "\0\0\0\0", log_text(10)),
        (log_text(10) + "[]\n{}\nnull\n" + '{"step": "x"}\n', log_text(10)),
    ],
)
def test_lines_after_the_checkpoint_are_removed(tmp_path, before, after):
    path = tmp_path / "metrics.jsonl"
    truncate_log(path, 25)
    assert not path.exists()
    path.write_text(before)
    written = path.stat().st_ino
    truncate_log(path, 25)
    assert path.read_text() == after
    # An unchanged log is not rewritten.
    assert (path.stat().st_ino == written) == (before == after)
