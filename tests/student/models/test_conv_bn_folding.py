import pytest
import torch
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

from student.models.backbone import folded_conv_bn


@pytest.fixture
def norm():
    """A frozen batch norm of six channels that has seen something."""
    layer = FrozenBatchNorm2d(6)
    for name, buffer in layer.named_buffers():
        buffer.copy_(torch.rand(6) + 0.5 if name in ("weight", "running_var") else torch.randn(6))
    return layer


@pytest.mark.parametrize(
    "options",
    [{}, {"stride": 2, "padding": 1}, {"groups": 2}, {"padding": 2, "dilation": 2}],
)
def test_folding_is_convolution_and_norm(norm, options):
    convolution = nn.Conv2d(4, 6, 3, bias=False, **options)
    x = torch.randn(2, 4, 9, 11, requires_grad=True)
    found, expected = folded_conv_bn(x, convolution, norm), norm(convolution(x))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    weight = torch.randn_like(expected)
    for wrt in (x, convolution.weight):
        gradients = [
            torch.autograd.grad((y * weight).sum(), wrt, retain_graph=True)[0]
            for y in (found, expected)
        ]
        torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-4)


def test_no_images(norm):
    assert (
        folded_conv_bn(torch.zeros(0, 4, 5, 5), nn.Conv2d(4, 6, 3, bias=False), norm).shape[0] == 0
    )


def test_half_precision_maps_stay_half_precision(norm):
    convolution = nn.Conv2d(4, 6, 1, bias=False)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert folded_conv_bn(torch.randn(1, 4, 5, 5), convolution, norm).dtype == torch.bfloat16


def test_only_frozen_norms_without_a_bias_before_them_fold(norm):
    x = torch.zeros(1, 4, 5, 5)
    with pytest.raises(AssertionError):
        folded_conv_bn(x, nn.Conv2d(4, 6, 1), norm)
    with pytest.raises(AssertionError):
        folded_conv_bn(x, nn.Conv2d(4, 6, 1, bias=False), nn.BatchNorm2d(6))
