import os
from types import SimpleNamespace

import pytest
import torch

from pipeline import devices
from pipeline.devices import autocast, has_fast_bfloat16, resolve_device, set_float32, spare_cores
from pipeline.errors import InputError

CPU = torch.device("cpu")


def test_auto_takes_a_gpu_when_there_is_one():
    expected = "cuda" if torch.cuda.is_available() else "cpu"
    assert resolve_device("auto").type == expected


def test_cpu():
    assert resolve_device("cpu") == CPU


@pytest.mark.parametrize("name", ["", "gpu", "mps", "cuda:x", "cuda:99", "cuda:-1", "cpu cuda"])
def test_what_is_no_device_here(name):
    with pytest.raises(InputError, match="--device: "):
        resolve_device(name)


@pytest.mark.parametrize(
    ("precision", "fast", "type_"),
    [
        ("float32", True, torch.float32),
        ("bfloat16", False, torch.bfloat16),
        ("auto", True, torch.bfloat16),
        ("auto", False, torch.float32),
        ("tf32", True, torch.float32),
    ],
)
def test_precision(monkeypatch, precision, fast, type_):
    monkeypatch.setattr(devices, "has_fast_bfloat16", lambda _: fast)
    with autocast(CPU, precision):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == type_


@pytest.mark.parametrize(
    ("kind", "precision", "allowed"),
    [
        ("cuda", "auto", True),
        ("cuda", "tf32", True),
        ("cuda", "float32", False),
        ("cpu", "auto", None),
    ],
)
def test_a_gpu_may_round_float32_unless_told_not_to(monkeypatch, kind, precision, allowed):
    found = []
    for place in ("cuda", "cudnn"):
        backend = SimpleNamespace(matmul=SimpleNamespace())
        monkeypatch.setattr(torch.backends, place, backend)
        found.append(backend.matmul if place == "cuda" else backend)
    set_float32(torch.device(kind), precision)
    assert [getattr(one, "allow_tf32", None) for one in found] == [allowed, allowed]


def test_this_cpu_answers():
    assert has_fast_bfloat16(CPU) in (True, False)


@pytest.mark.parametrize(
    ("cores", "asked", "processes", "workers"),
    [
        (None, None, 1, 0),
        (1, None, 1, 0),
        (2, None, 1, 0),
        (5, None, 1, 3),
        (64, None, 1, 8),
        (2, 0, 1, 0),
        (2, 6, 1, 6),
        (16, None, 2, 6),
        (16, None, 8, 0),
        (16, 5, 8, 5),
    ],
)
def test_workers_take_the_cores_that_are_left(monkeypatch, cores, asked, processes, workers):
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    assert spare_cores(asked, processes=processes) == workers
