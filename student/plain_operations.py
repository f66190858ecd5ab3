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


# What takes an operation's place when a graph is made for others.
PLAIN: dict[torch._ops.OperatorBase, Callable[..., Tensor]] = {
    torch.ops.aten.upsample_nearest2d.vec: resize_nearest,
}
