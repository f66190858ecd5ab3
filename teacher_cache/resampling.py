"""Cuts regions out on the device: PIL's antialiased bicubic resize as two matrix products."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from teacher_cache.regions import (
    PIXELS_AT_ONCE,
    RegionMode,
    crop_regions,
    padded_region,
    whole_pixels,
)

# Keys' cubic convolution with a = -0.5, which reaches two pixels to either side.
SHARPNESS = -0.5
REACH = 2.0
# Weights take a number per region, output and input pixel.
REGIONS_AT_ONCE = 32
# From this ratio on a pixel's share in the result is at most a half, so that torch's shorter
# weights do not move a result by more than one grey level from PIL's.
SHRUNK = 2


def cut_regions(
    image: Image.Image,
    boxes: np.ndarray,
    size: int,
    mode: RegionMode,
    device: torch.device,
    interpolation: str = "bicubic",
) -> Tensor:
    """Cuts regions out of an image where they are needed.

    On a GPU only the picture travels. Stretched regions, in which the order of the two passes
    differs between PIL's versions, are left to PIL; so are those of huge pictures and bilinear
    ones where there is a GPU.

    Args:
        image: RGB.
        boxes: (R, 4) xyxy in pixels.
        size: side of the teacher's input in pixels.
        mode: pad, stretch or context.
        device: of the result.
        interpolation: "bicubic" or "bilinear".

    Returns:
        (R, 3, size, size) uint8.
    """
    on_cpu = device.type == "cpu"
    is_huge = image.width * image.height > PIXELS_AT_ONCE
    if mode.name == "stretch" or (not on_cpu and (is_huge or interpolation != "bicubic")):
        regions = crop_regions(image, boxes, size, mode, interpolation)
        stacked = np.stack(regions) if regions else np.zeros((0, size, size, 3), np.uint8)
        return torch.from_numpy(stacked).permute(0, 3, 1, 2).to(device)
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    corners = whole_pixels(image, boxes, mode.context)
    if on_cpu:
        return _shrunk_regions(image, pixels, corners, size, interpolation)
    pixels = pixels.pin_memory().to(device, non_blocking=True)
    return resample_regions(pixels, np.array(corners, dtype=np.int64).reshape(-1, 4), size)


def _shrunk_regions(
    image: Image.Image,
    pixels: Tensor,
    corners: Sequence[tuple[int, int, int, int]],
    size: int,
    interpolation: str,
) -> Tensor:
    """Padded regions on a CPU: torch's vector instructions shrink the large ones."""
    out = torch.empty((len(corners), size, size, 3), dtype=torch.uint8).permute(0, 3, 1, 2)
    for place, (left, top, right, bottom) in enumerate(corners):
        width, height = right - left, bottom - top
        side = max(width, height)
        is_tower = width < side and height * side > PIXELS_AT_ONCE
        if is_tower and height * width <= PIXELS_AT_ONCE and interpolation == "bicubic":
            # Its black square would be thousands of times the region, and is not needed here.
            out[place] = resample_regions(pixels, np.array(corners[place : place + 1]), size)[0]
        elif side < SHRUNK * size or is_tower:
            region = padded_region(image, corners[place], size, interpolation)
            out[place] = torch.from_numpy(region.copy()).permute(2, 0, 1)
        else:
            crop = pixels[None, :, top:bottom, left:right]
            if width < side:
                crop = _between_bars(crop, height, side)
            # PIL resizes rows first, each by itself; black ones need no resizing.
            if height < side:
                crop = _between_bars(_shrunk(crop, height, size, interpolation), side, size)
            out[place] = _shrunk(crop, size, size, interpolation)[0]
    return out


def _shrunk(pixels: Tensor, height: int, width: int, interpolation: str) -> Tensor:
    return functional.interpolate(pixels, (height, width), mode=interpolation, antialias=True)


def _between_bars(pixels: Tensor, height: int, width: int) -> Tensor:
    """(1, 3, h, w) uint8 in the middle of black ones of another size."""
    # Colours side by side, as in a picture, for torch's quick way of resizing.
    canvas = torch.zeros((1, height, width, 3), dtype=torch.uint8).permute(0, 3, 1, 2)
    left, top = (width - pixels.shape[3]) // 2, (height - pixels.shape[2]) // 2
    canvas[:, :, top : top + pixels.shape[2], left : left + pixels.shape[3]] = pixels
    return canvas


def resample_regions(image: Tensor, corners: np.ndarray, size: int) -> Tensor:
    """Regions of one picture, padded to squares with black, at the teacher's input size.

    Equal to PIL's crop, padding and bicubic resize to one grey level of 255: like PIL it resizes
    rows first and rounds to whole grey levels between the two passes.

    Args:
        image: (3, h, w) uint8 on the device.
        corners: (R, 4) int64, left, top, right, bottom in whole pixels inside the picture.
        size: side of the output in pixels.

    Returns:
        (R, 3, size, size) uint8.
    """
    parts = [
        _resample(image, corners[start : start + REGIONS_AT_ONCE], size)
        for start in range(0, len(corners), REGIONS_AT_ONCE)
    ]
    return torch.cat(parts) if parts else image.new_zeros((0, 3, size, size))


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
    reach = 2 * math.ceil(REACH * max(longest_side / size, 1)) + 2
    start = first - (side[:, None] - (end - first)) // 2
    across = _weights(start[:, 0], side, first[:, 0], end[:, 0], width, size, reach)
    down = _weights(start[:, 1], side, first[:, 1], end[:, 1], height, size, reach)
    # In float32: shorter numbers move pixels by two grey levels where light overshoots.
    # (3 h, w) x (w, R size): every row of the picture for all regions at once.
    rows = _grey_levels(pixels.reshape(-1, width) @ across.reshape(-1, width).T)
    rows = rows.view(3, height, len(corners), size).permute(2, 1, 0, 3)
    columns = _grey_levels(torch.bmm(down, rows.reshape(len(corners), height, 3 * size)))
    return columns.view(-1, size, 3, size).transpose(1, 2).to(torch.uint8)


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
    scale = (side.float() / size).view(-1, 1, 1)
    blur = scale.clamp(min=1)
    places = torch.arange(size, device=start.device).view(1, -1, 1)
    centres = (places + 0.5) * scale
    # The square reaches past the picture, so the kernel is summed over its own stretch.
    reached = (centres - REACH * blur).floor() + torch.arange(reach, device=start.device)
    in_square = (reached >= 0) & (reached < side.view(-1, 1, 1))
    total = (_cubic((reached + 0.5 - centres) / blur) * in_square).sum(2, keepdim=True)
    pixels = torch.arange(extent, device=start.device).view(1, 1, -1)
    own = (pixels >= first.view(-1, 1, 1)) & (pixels < end.view(-1, 1, 1))
    middles = (pixels - start.view(-1, 1, 1) + 0.5) / blur
    return _cubic(middles - centres / blur) / total * own


def _cubic(distance: Tensor) -> Tensor:
    x = distance.abs()
    near = ((SHARPNESS + 2) * x - (SHARPNESS + 3)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * SHARPNESS
    return torch.where(x < 1, near, torch.where(x < REACH, far, 0))
