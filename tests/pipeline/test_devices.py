import pytest
import torch

from pipeline.devices import resolve_device
from pipeline.errors import InputError


def test_auto_takes_a_gpu_when_there_is_one():
    expected = "cuda" if torch.cuda.is_available() else "cpu"
    assert resolve_device("auto").type == expected


def test_cpu():
    assert resolve_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize("name", ["", "gpu", "mps", "cuda:x", "cuda:99", "cpu cuda"])
def test_what_is_no_device_here(name):
    with pytest.raises(InputError, match="--device: "):
        resolve_device(name)
