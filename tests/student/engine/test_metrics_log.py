import json
import sys

import pytest
import torch

from pipeline.utils.errors import InputError
from student.engine.metrics_log import (
    MetricsLogger,
    StepMetrics,
    Throughput,
    peak_memory,
    progress_line,
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
}
VALUES = {"object": 1.0, "verb_hard": 2.0, "total": 3.0, "gradient": 0.5}


def step_metrics(step=3):
    return StepMetrics(step, ("a.jpg",), VALUES, {**RECORD, "step": step})


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_pace_is_that_since_the_last_record():
    throughput = Throughput(torch.device("cpu"))
    assert throughput.compute()["images_per_second"] == 0
    throughput.update(images=6, seconds=2.0, waited=0.5)
    throughput.update(images=4, seconds=2.0, waited=0.5)
    found = throughput.compute()
    assert (found["images_per_second"], found["data_wait_share"]) == (2.5, 0.25)
    assert found["memory_gb"] == pytest.approx(peak_memory(torch.device("cpu")) / 1e9, rel=0.2)
    assert throughput.compute()["images_per_second"] == 0


def test_lines_after_the_step_where_the_run_stands_go(tmp_path):
    for step in (2, 4):
        with MetricsLogger(tmp_path, 0 if step == 2 else 3, 9, SINGLE_PROCESS) as log:
            log.advance()
            log.log_step(step_metrics(step))
            log.log_validation(step, 1, {"seen": 0.25}, best=True)
    with MetricsLogger(tmp_path, 3, 9, SINGLE_PROCESS) as log:
        log.log_step(step_metrics(5))
    found = lines(tmp_path / "metrics.jsonl")
    assert [line["step"] for line in found] == [2, 5]
    assert found[0]["losses"] == {"object": 1.0, "verb_hard": 2.0} and found[0]["loss"] == 3
    assert found[0]["grad_norm"] == 0.5 and found[0]["images_per_second"] == 8
    assert lines(tmp_path / "validation.jsonl") == [
        {"step": 2, "epoch": 1, "metrics": {"seen": 0.25}, "best": True}
    ]


def test_people_see_what_happens(tmp_path, capsys, messages):
    with MetricsLogger(tmp_path, 0, 9, SINGLE_PROCESS) as log:
        log.log_step(step_metrics())
        log.advance()
        log.log_validation(3, 2, {"seen": 0.5}, best=True)
    out, err = capsys.readouterr()
    assert out == "" and messages == ["epoch 2, validation: seen 50.00 (best so far)"]
    assert "1/9 steps" in err and progress_line(lines(tmp_path / "metrics.jsonl")[0]) in err
    assert progress_line({**RECORD, "loss": 3, "losses": {"object": 1.0}}) == (
        "loss 3.00, 8.0 images/s, waiting 25%, 1.5 GB, lr 1.0e-04, object 1.00"
    )


def test_tensorboard_gets_the_same_numbers(tmp_path):
    pytest.importorskip("tensorboard", reason="the extra tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with MetricsLogger(tmp_path, 0, 9, SINGLE_PROCESS, tensorboard=True) as log:
        log.log_step(step_metrics())
        log.log_validation(3, 1, {"seen": 0.25}, best=False)
    found = EventAccumulator(str(tmp_path / "tensorboard"))
    found.Reload()
    assert {"loss", "losses/verb_hard", "lr", "grad_norm"} <= set(found.Tags()["scalars"])
    (event,) = found.Scalars("val/seen")
    assert (event.step, event.value) == (3, 0.25)


def test_without_tensorboard_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(InputError, match=r"--tensorboard: .*pip install 'eoid\[tensorboard\]'"):
        MetricsLogger(tmp_path, 0, 9, SINGLE_PROCESS, tensorboard=True).__enter__()
