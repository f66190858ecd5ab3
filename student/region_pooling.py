"""Region pooling in plain tensor operations, for graphs that run where torchvision is not."""

from __future__ import annotations

import torch
from torch import Tensor


def pool_regions(
    features: Tensor,
    regions: Tensor,
    scale: float,
    height: int,
    width: int,
    sampling_ratio: int,
    aligned: bool,
) -> Tensor:
    """What `torchvision.ops.roi_align` computes with one aligned sample a bin (Mask R-CNN 3).

    Args:
        features: (B, C, h, w).
        regions: (R, 5) image number, then xyxy in cells.
        scale: of the boxes, 1 here.
        height, width: bins of a region.
        sampling_ratio, aligned: 1 and True here.

    Returns:
        (R, C, height, width).
    """
    assert scale == 1 and sampling_ratio == 1 and aligned, "the queries' pooling, no other"
    image = regions[:, 0].long()
    cells_y, cells_x = features.shape[-2:]
    y, inside_y = _samples(regions[:, 2], regions[:, 4], height, cells_y)
    x, inside_x = _samples(regions[:, 1], regions[:, 3], width, cells_x)
    (top, bottom, down), (left, right, across) = _between(y, cells_y), _between(x, cells_x)
    cells = features.permute(0, 2, 3, 1).flatten(0, 2)

    def at(row: Tensor, column: Tensor) -> Tensor:
        """(R, height, width, C) features at (R, height) rows and (R, width) columns."""
        place = (image[:, None] * cells_y + row) * cells_x
        return cells[place[:, :, None] + column[:, None, :]]

    across, down = across[:, None, :, None], down[:, :, None, None]
    upper = at(top, left) * (1 - across) + at(top, right) * across
    lower = at(bottom, left) * (1 - across) + at(bottom, right) * across
    pooled = upper * (1 - down) + lower * down
    inside = (inside_y[:, :, None] & inside_x[:, None, :])[..., None]
    return (pooled * inside).permute(0, 3, 1, 2)


def _samples(start: Tensor, end: Tensor, bins: int, cells: int) -> tuple[Tensor, Tensor]:
    """(R, bins) centres of the bins of (R,) intervals in cell centres' coordinates, and whether
    they lie within a cell of the map."""
    middle = (torch.arange(bins, device=start.device) + 0.5) / bins
    places = start[:, None] - 0.5 + middle * (end - start)[:, None]
    return places, (places >= -1) & (places <= cells)


def _between(places: Tensor, cells: int) -> tuple[Tensor, Tensor, Tensor]:
    """The cells before and after places, and how far these are on the way."""
    places = places.clamp(min=0)
    before = places.floor().clamp(max=cells - 1)
    after = (before + 1).clamp(max=cells - 1)
    return before.long(), after.long(), (places - before).clamp(max=1)
