"""Cuts regions out on the device: PIL's antialiased bicubic resize as two matrix products."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

# Keys' cubic convolution with a = -0.5, which reaches two pixels to either side.
SHARPNESS = -0.5
REACH = 2.0
# Weights take a number per region, output and input pixel.
REGIONS_AT_ONCE = 32


def resample_regions(image: Tensor, corners: np.ndarray, size: int) -> Tensor:
    """Regions of one picture, padded to squares with black, at the teacher's input size.

    Equal to PIL's crop, padding and bicubic resize to one grey level of 255: like PIL it resizes
    rows first and rounds to whole grey levels between the two passes.

    Args:
        image: (3, h, w) uint8 on the device.
        corners: (R, 4) int64, left, top, right, bottom in whole pixels inside the picture.
        size: side of the output in pixels.

    Returns:
        (R, 3, size, size) float32, whole grey levels from 0 to 255.
    """
    parts = [
        _resample(image, corners[start : start + REGIONS_AT_ONCE], size)
        for start in range(0, len(corners), REGIONS_AT_ONCE)
    ]
    return torch.cat(parts) if parts else torch.zeros((0, 3, size, size), device=image.device)


def _resample(image: Tensor, corners: np.ndarray, size: int) -> Tensor:
    left, top = corners[:, :2].min(axis=0)
    right, bottom = corners[:, 2:].max(axis=0)
    pixels = image[:, top:bottom, left:right].float()
    height, width = pixels.shape[1:]
    regions = torch.as_tensor(corners - [left, top, left, top], device=image.device)
    first, end = regions[:, :2], regions[:, 2:]
    side = (end - first).amax(dim=1)
    # Known here without asking the device, which would wait for all its work.
    longest_side = int((corners[:, 2:] - corners[:, :2]).max())
    reach = 2 * math.ceil(REACH * max(longest_side / size, 1)) + 1
    start = first - (side[:, None] - (end - first)) // 2
    across = _weights(start[:, 0], side, first[:, 0], end[:, 0], width, size, reach)
    down = _weights(start[:, 1], side, first[:, 1], end[:, 1], height, size, reach)
    # (3 h, w) x (w, R size): every row of the picture for all regions at once.
    rows = _grey_levels(pixels.reshape(-1, width) @ across.reshape(-1, width).T)
    rows = rows.view(3, height, len(corners), size).permute(2, 1, 0, 3)
    columns = _grey_levels(torch.bmm(down, rows.reshape(len(corners), height, 3 * size)))
    return columns.view(-1, size, 3, size).transpose(1, 2)


def _grey_levels(values: Tensor) -> Tensor:
    return values.add_(0.5).floor_().clamp_(0, 255)


def _weights(
    start: Tensor, side: Tensor, first: Tensor, end: Tensor, extent: int, size: int, reach: int
) -> Tensor:
    """(R, size, extent) float32: what each input pixel adds to each output pixel, along one axis.

    Args:
        start, side: (R,) int64, where the black square begins, and its length.
        first, end: (R,) int64, the region's own pixels.
        extent: input pixels.
        size: output pixels.
        reach: at most so many input pixels add to an output pixel.
    """
    # In double precision as in PIL, so that the kernel's ends fall on the same pixels.
    scale = (side.double() / size).view(-1, 1, 1)
    blur = scale.clamp(min=1)
    places = torch.arange(size, device=start.device, dtype=torch.float64).view(1, -1, 1)
    centres = (places + 0.5) * scale
    low = (centres - REACH * blur + 0.5).trunc().clamp(min=0)
    high = torch.minimum((centres + REACH * blur + 0.5).trunc(), side.view(-1, 1, 1))
    # The square reaches past the picture, so the kernel is summed over its own stretch.
    reached = low + torch.arange(reach, device=start.device)
    total = (_cubic((reached - centres + 0.5) / blur) * (reached < high)).sum(2, keepdim=True)
    pixels = torch.arange(extent, device=start.device).view(1, 1, -1)
    own = (pixels >= first.view(-1, 1, 1)) & (pixels < end.view(-1, 1, 1))
    inside = (pixels - start.view(-1, 1, 1)).double()
    weights = _cubic((inside - centres + 0.5) / blur) / total
    return (weights * (own & (inside >= low) & (inside < high))).float()


def _cubic(distance: Tensor) -> Tensor:
    x = distance.abs()
    near = ((SHARPNESS + 2) * x - (SHARPNESS + 3)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * SHARPNESS
    return torch.where(x < 1, near, torch.where(x < REACH, far, 0))
