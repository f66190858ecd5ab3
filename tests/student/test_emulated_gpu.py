"""Training and inference on an emulated GPU."""

import json

import pytest
import torch

from student.metrics import METRICS

GPU = torch.device("cuda", 0)


def logged(run):
    return [json.loads(line) for line in (run / METRICS).read_text().splitlines()]


@pytest.mark.parametrize("queries", ["pairs", "learned"])
def test_training_is_that_of_a_cpu(make_trainer, tmp_path, queries, emulate_cuda):
    options = {"queries": queries, "dropout": 0.0, "epochs": 1}
    make_trainer("cpu", **options).go()
    with emulate_cuda() as gpu:
        make_trainer("gpu", device=GPU, **options).go()
    assert gpu.kernels.total() > 0
    expected, found = logged(tmp_path / "cpu"), logged(tmp_path / "gpu")
    assert len(found) == len(expected) == 4
    for one, other in zip(found, expected, strict=True):
        assert one["losses"] == pytest.approx(other["losses"], rel=1e-3, abs=1e-4)
