import pytest
import torch

from teacher_cache.cluster.dask_workers import gpu_environment


@pytest.mark.parametrize(
    "device, gpus, visible, found",
    [
        ("auto", 0, None, [None, None, None]),
        ("cpu", 2, None, [None, None, None]),
        ("cuda:1", 2, None, [None, None, None]),
        ("auto", 2, None, ["0", "1", "0"]),
        ("cuda", 2, "", ["0", "1", "0"]),
        ("cuda", 2, "5, 7", ["5", "7", "5"]),
        ("auto", 1, "GPU-8f2a", ["GPU-8f2a"] * 3),
    ],
)
def test_every_worker_keeps_to_a_gpu(monkeypatch, device, gpus, visible, found):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    environments = [gpu_environment(number, device) for number in range(3)]
    assert [each.get("CUDA_VISIBLE_DEVICES") for each in environments] == found
