import pytest
import torch
from torch.nn import functional

from student.inference.export import DECOMPOSITIONS, linear, resize_nearest


@pytest.mark.parametrize("old", [(1, 1), (8, 8), (25, 34), (800, 1066)])
@pytest.mark.parametrize("new", [(1, 1), (16, 16), (25, 34), (7, 50), (101, 67)])
def test_equals_torch(old, new):
    features = torch.randn(2, 3, *old)
    expected = functional.interpolate(features, size=new)
    assert torch.equal(resize_nearest(features, new), expected)


def test_nothing():
    assert resize_nearest(torch.zeros(0, 3, 4, 5), (8, 8)).shape == (0, 3, 8, 8)


@pytest.mark.parametrize("shape", [(3,), (2, 3), (2, 0, 3), (2, 5, 3)])
@pytest.mark.parametrize("bias", [None, torch.randn(4)])
def test_linear_equals_torch(shape, bias):
    inputs, weight = torch.randn(shape), torch.randn(4, 3)
    expected = functional.linear(inputs, weight, bias)
    torch.testing.assert_close(linear(inputs, weight, bias), expected)


def test_they_stand_for_what_the_detector_uses():
    names = {str(operation) for operation in DECOMPOSITIONS}
    # Products of matrices only where torch's exporter needs them.
    assert names - {"aten.linear.default"} == {"aten.upsample_nearest2d.vec"}
