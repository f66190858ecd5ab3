import os

import pytest
import torch

from pipeline import devices
from pipeline.devices import autocast, has_fast_bfloat16, resolve_device, spare_cores
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
    ],
)
def test_precision(monkeypatch, precision, fast, type_):
    monkeypatch.setattr(devices, "has_fast_bfloat16", lambda _: fast)
    with autocast(CPU, precision):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == type_


def test_this_cpu_answers():
    assert has_fast_bfloat16(CPU) in (True, False)


@pytest.mark.parametrize(
    ("cores", "asked", "workers"),
    [
        (None, None, 0),
        (1, None, 0),
        (2, None, 0),
        (5, None, 3),
        (64, None, 8),
        (2, 0, 0),
        (2, 6, 6),
    ],
)
def test_workers_take_the_cores_that_are_left(monkeypatch, cores, asked, workers):
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    assert spare_cores(asked) == workers
