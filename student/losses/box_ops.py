"""Overlaps of box tensors, element by element with broadcasting."""

from __future__ import annotations

from torch import Tensor
from torchvision.ops import box_convert

# Boxes of normalised size below this have no area worth dividing by.
MIN_AREA = 1e-12


def iou_and_giou(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """IoU and generalised IoU (Rezatofighi et al. 2019, algorithm 1).

    Args:
        first, second: (..., 4) cxcywh of the same scale; shapes broadcast, so (Q, 1, 4) against
            (N, 4) compares all with all.

    Returns:
        Two tensors of the broadcast shape without the 4. Boxes without area give 0, not NaN.
    """
    a, b = box_convert(first, "cxcywh", "xyxy"), box_convert(second, "cxcywh", "xyxy")
    area_a, area_b = _area(a[..., :2], a[..., 2:]), _area(b[..., :2], b[..., 2:])
    shared = _area(a[..., :2].maximum(b[..., :2]), a[..., 2:].minimum(b[..., 2:]))
    hull = _area(a[..., :2].minimum(b[..., :2]), a[..., 2:].maximum(b[..., 2:]))
    union = area_a + area_b - shared
    iou = shared / union.clamp(min=MIN_AREA)
    return iou, iou - (hull - union) / hull.clamp(min=MIN_AREA)


def _area(low: Tensor, high: Tensor) -> Tensor:
    width, height = (high - low).clamp(min=0).unbind(-1)
    return width * height
