"""Frozen batch norm at no cost: it is a part of the convolution before it."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional
from torchvision.ops import FrozenBatchNorm2d


def folded(x: Tensor, convolution: nn.Module, norm: nn.Module) -> Tensor:
    """Convolution and frozen batch norm in one pass over the feature map.

    The norm's factor and shift are constants, so that they can go into the weights, which are
    small, instead of the map, which is large. Gradients reach the convolution's own weights.

    Args:
        x: (B, C, h, w).
        convolution: an `nn.Conv2d` without bias.
        norm: the `FrozenBatchNorm2d` behind it.
    """
    assert isinstance(norm, FrozenBatchNorm2d)
    assert isinstance(convolution, nn.Conv2d) and convolution.bias is None
    factor = norm.weight * (norm.running_var + norm.eps).rsqrt()
    return functional.conv2d(
        x,
        convolution.weight * factor.view(-1, 1, 1, 1),
        norm.bias - norm.running_mean * factor,
        convolution.stride,
        convolution.padding,
        convolution.dilation,
        convolution.groups,
    )
