"""Region pooling in plain tensor operations, on maps that end earlier for some images."""

from __future__ import annotations

import torch
from torch import Tensor


def pool_regions(features: Tensor, regions: Tensor, bins: int, ends: Tensor) -> Tensor:
    """What `torchvision.ops.roi_align` computes with one aligned sample a bin (Mask R-CNN 3), on
    each image's own part of the map.

    Args:
        features: (B, C, h, w).
        regions: (R, 5) image number, then xyxy in cells.
        bins: of a region, along each side.
        ends: (B, 2) int64, rows and columns of the map that are the image's.

    Returns:
        (R, C, bins, bins).
    """
    image = regions[:, 0].long()
    height, width = features.shape[-2:]
    rows, columns = ends[image].unsqueeze(-1).unbind(1)
    y, inside_y = _samples(regions[:, 2], regions[:, 4], bins, rows)
    x, inside_x = _samples(regions[:, 1], regions[:, 3], bins, columns)
    (top, bottom, down), (left, right, across) = _between(y, rows), _between(x, columns)
    cells = features.permute(0, 2, 3, 1).flatten(0, 2)

    def at(row: Tensor, column: Tensor) -> Tensor:
        """(R, bins, bins, C) features at (R, bins) rows and columns."""
        place = (image[:, None] * height + row) * width
        return cells[place[:, :, None] + column[:, None, :]]

    across, down = across[:, None, :, None], down[:, :, None, None]
    upper = at(top, left) * (1 - across) + at(top, right) * across
    lower = at(bottom, left) * (1 - across) + at(bottom, right) * across
    pooled = upper * (1 - down) + lower * down
    inside = (inside_y[:, :, None] & inside_x[:, None, :])[..., None]
    return (pooled * inside).permute(0, 3, 1, 2)


def _samples(start: Tensor, end: Tensor, bins: int, cells: Tensor) -> tuple[Tensor, Tensor]:
    """(R, bins) centres of the bins of (R,) intervals in cell centres' coordinates, and whether
    they lie within a cell of the (R, 1) cells that there are."""
    middle = (torch.arange(bins, device=start.device) + 0.5) / bins
    places = start[:, None] - 0.5 + middle * (end - start)[:, None]
    return places, (places >= -1) & (places <= cells)


def _between(places: Tensor, cells: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The cells before and after places, and how far these are on the way."""
    places = places.clamp(min=0)
    before = torch.minimum(places.floor().long(), cells - 1)
    after = torch.minimum(before + 1, cells - 1)
    return before, after, (places - before).clamp(max=1)
