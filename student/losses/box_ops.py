"""IoU and generalised IoU of box tensors, element by element with broadcasting.

`torchvision.ops.box_iou` compares two lists of boxes. Here the losses compare matched boxes one to
one, and the matcher compares all queries and pairs of a batch at once.
"""

from __future__ import annotations

from torch import Tensor
from torchvision.ops import box_convert

# Smallest divisor: the ratio of two empty boxes is 0 instead of NaN, and so is its gradient.
MIN_AREA = 1e-12


def iou_and_giou(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """IoU and generalised IoU (Rezatofighi et al. 2019, algorithm 1).

    Args:
        first, second: (..., 4) cxcywh in the same unit; shapes broadcast, so that (Q, 1, 4) and
            (N, 4) compare all boxes with all.

    Returns:
        IoU and GIoU, of the broadcast shape without its last dimension. Both are finite for boxes
        without area.
    """
    a, b = box_convert(first, "cxcywh", "xyxy"), box_convert(second, "cxcywh", "xyxy")
    area_a, area_b = _area(a[..., :2], a[..., 2:]), _area(b[..., :2], b[..., 2:])
    intersection = _area(a[..., :2].maximum(b[..., :2]), a[..., 2:].minimum(b[..., 2:]))
    hull = _area(a[..., :2].minimum(b[..., :2]), a[..., 2:].maximum(b[..., 2:]))
    union = area_a + area_b - intersection
    iou = intersection / union.clamp(min=MIN_AREA)
    return iou, iou - (hull - union) / hull.clamp(min=MIN_AREA)


def _area(top_left: Tensor, bottom_right: Tensor) -> Tensor:
    width, height = (bottom_right - top_left).clamp(min=0).unbind(-1)
    return width * height
