"""Operations that some runtimes and tracers lack, in those that all have."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def resize_nearest(
    features: Tensor, size: Sequence[int] | None, factors: Sequence[float] | None = None
) -> Tensor:
    """(B, C, h, w) to (B, C, *size), each cell the nearest one before it, as torch's "nearest".

    Args:
        size: the new height and width.
        factors: other callers' way to say it; None here.
    """
    assert size is not None and factors is None, "resizing to a size, no other"
    rows, columns = (
        torch.arange(new, device=features.device) * old // new
        for new, old in zip(size, features.shape[-2:], strict=True)
    )
    return features[:, :, rows][:, :, :, columns]


def linear(inputs: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """(..., n) to (..., m) by weights (m, n), as a product of matrices."""
    rows = inputs.reshape(-1, weight.shape[1]) @ weight.t()
    outputs = rows.reshape(*inputs.shape[:-1], weight.shape[0])
    return outputs if bias is None else outputs + bias


# What takes an operation's place when a graph is made for others.
PLAIN: dict[torch._ops.OperatorBase, Callable[..., Tensor]] = {
    torch.ops.aten.upsample_nearest2d.vec: resize_nearest,
}
if torch.__version__ < "2.7":
    # Its ONNX exporter fails at tokens of any number.
    PLAIN[torch.ops.aten.linear.default] = linear
