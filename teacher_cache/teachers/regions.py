"""The part of a picture that the teacher looks at: the union of a pair's two boxes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from pipeline.boxes import union_boxes
from pipeline.types import Pairs
from pipeline.utils.errors import InputError

LEVELS = ("region", "image")
RESAMPLING_FILTERS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
MAX_PIXELS = 2**24


@dataclass(frozen=True)
class RegionMode:
    """How a union box becomes the teacher's square input.

    Attributes:
        name: "pad" (black bars make the crop square, the published way), "stretch" (the crop is
            resized without bars) or "context=F" (the box grows F-fold, then bars).
        context: F; 1 for the others.
    """

    name: str = "pad"
    context: float = 1.0

    @classmethod
    def parse(cls, text: str) -> RegionMode:
        """Reads `pad`, `stretch` or `context=F`.

        Raises:
            InputError: something else.
        """
        if text in ("pad", "stretch"):
            return cls(text)
        name, _, factor = text.partition("=")
        try:
            context = float(factor)
        except ValueError:
            context = 0.0
        if name != "context" or not 1.0 <= context < float("inf"):
            raise InputError(
                f"--region: expected pad, stretch or context=F with F >= 1, found {text}"
            )
        return cls(f"context={context}", context)


def union_regions(pairs: Pairs) -> tuple[np.ndarray, np.ndarray]:
    """The distinct union boxes of an image's pairs.

    Returns:
        (R, 4) float32 xyxy boxes in the order in which the pairs need them, and (P,) int64, the
        row of every pair's box.
    """
    unions = union_boxes(pairs.human_boxes, pairs.object_boxes).astype(np.float32)
    numbers: dict[bytes, int] = {}
    rows = [numbers.setdefault(union.tobytes(), len(numbers)) for union in unions]
    first = np.array([rows.index(number) for number in range(len(numbers))], dtype=np.int64)
    return unions[first].reshape(-1, 4), np.array(rows, dtype=np.int64)


def whole_image_region(pairs: Pairs, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """The image's own rectangle as the one region of all its pairs.

    Args:
        pairs: of the image; without any there is no region.
        size: width and height of the image.

    Returns:
        (R, 4) float32 xyxy with R = 1 or 0, and (P,) int64 zeros.
    """
    boxes = np.array([[0, 0, *size]] * min(len(pairs), 1), dtype=np.float32)
    return boxes.reshape(-1, 4), np.zeros(len(pairs), dtype=np.int64)


def crop_regions_pil(
    image: Image.Image,
    boxes: np.ndarray,
    size: int,
    mode: RegionMode,
    interpolation: str = "bicubic",
) -> list[np.ndarray]:
    """Cuts regions out of an image and brings them to the teacher's input size.

    Corners are rounded to whole pixels as PIL rounds them and moved into the picture, a region is
    at least one pixel, and the resize is antialiased.

    Args:
        image: RGB.
        boxes: (R, 4) xyxy in pixels.
        size: side of the teacher's input in pixels.
        mode: pad, stretch or context.
        interpolation: "bicubic" or "bilinear", as the teacher was trained with.

    Returns:
        R arrays (size, size, 3) uint8.
    """
    corners = round_boxes(image, boxes, mode.context)
    if mode.name == "stretch":
        return [np.asarray(resize(image.crop(box), size, size, interpolation)) for box in corners]
    return [pad_and_resize(image, box, size, interpolation) for box in corners]


def pad_and_resize(
    image: Image.Image, corners: tuple[int, int, int, int], size: int, interpolation: str
) -> np.ndarray:
    """A region (left, top, right, bottom) made square with black bars: (size, size, 3) uint8."""
    crop = image.crop(corners)
    # PIL resizes rows first, each by itself; black ones need no resizing.
    if crop.width > crop.height:
        crop = centre_pad(resize(crop, size, crop.height, interpolation), size, crop.width)
    elif crop.width < crop.height:
        crop = _pad_tall_region(crop, size, interpolation)
    return np.asarray(resize(crop, size, size, interpolation))


def _pad_tall_region(crop: Image.Image, size: int, interpolation: str) -> Image.Image:
    """An upright crop with black bars, rows resized: in bands, for the square of something long
    would be thousands of times the picture."""
    side = crop.height
    rows = max(1, MAX_PIXELS // side)
    canvas = Image.new("RGB", (size, side))
    for top in range(0, side, rows):
        end = min(top + rows, side)
        band = centre_pad(crop.crop((0, top, crop.width, end)), side, end - top)
        canvas.paste(resize(band, size, end - top, interpolation), (0, top))
    return canvas


def resize(image: Image.Image, width: int, height: int, interpolation: str) -> Image.Image:
    """Antialiased; an axis that keeps its length is left alone."""
    return image.resize((width, height), RESAMPLING_FILTERS[interpolation])


def centre_pad(image: Image.Image, width: int, height: int) -> Image.Image:
    """In the middle of a black picture."""
    canvas = Image.new("RGB", (width, height))
    canvas.paste(image, ((width - image.width) // 2, (height - image.height) // 2))
    return canvas


def round_boxes(
    image: Image.Image, boxes: np.ndarray, context: float
) -> list[tuple[int, int, int, int]]:
    """Left, top, right and bottom of R boxes, grown `context`-fold, inside the image."""
    wide = boxes.astype(np.float64)
    if context != 1:
        centres = (wide[:, :2] + wide[:, 2:]) / 2
        halves = (wide[:, 2:] - wide[:, :2]) / 2 * context
        wide = np.concatenate([centres - halves, centres + halves], axis=1)
    limits = np.array([image.width, image.height])
    # Clipped before they become integers, which far-off corners would overflow.
    corners = np.rint(wide.clip(0, np.tile(limits, 2))).astype(np.int64)
    corners[:, :2] = np.minimum(corners[:, :2], limits - 1)
    corners[:, 2:] = np.maximum(corners[:, 2:], corners[:, :2] + 1)
    return [(left, top, right, bottom) for left, top, right, bottom in corners.tolist()]


# Keys' cubic convolution with a = -0.5, which reaches two pixels to either side.
CUBIC_A = -0.5
CUBIC_RADIUS = 2.0
MAX_REGIONS = 32
# Bounds what a thread takes beside picture and result. Making the weights of a row or column of
# input pixels holds six float32 numbers at once for each output pixel of a region; a row is held
# itself, in three colours, before and after it is rearranged.
MAX_BYTES = 2**28
BYTES_PER_COLUMN = 4 * 6
BYTES_PER_ROW = BYTES_PER_COLUMN + 4 * 6
# From this ratio on a pixel's share in the result is at most a half, so that torch's shorter
# weights do not move a result by more than one grey level from PIL's.
MIN_DOWNSCALE = 2


def crop_regions(
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
    is_huge = image.width * image.height > MAX_PIXELS
    if mode.name == "stretch" or (not on_cpu and (is_huge or interpolation != "bicubic")):
        regions = crop_regions_pil(image, boxes, size, mode, interpolation)
        stacked = np.stack(regions) if regions else np.zeros((0, size, size, 3), np.uint8)
        cut = torch.from_numpy(stacked).permute(0, 3, 1, 2)
        return cut if on_cpu else cut.pin_memory().to(device, non_blocking=True)
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    corners = round_boxes(image, boxes, mode.context)
    if on_cpu:
        return _crop_regions_cpu(image, pixels, corners, size, interpolation)
    pixels = pixels.pin_memory().to(device, non_blocking=True)
    return resample_regions(pixels, np.array(corners, dtype=np.int64).reshape(-1, 4), size)


def _crop_regions_cpu(
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
        is_tower = width < side and height * side > MAX_PIXELS
        if is_tower and height * width <= MAX_PIXELS and interpolation == "bicubic":
            # Its black square would be thousands of times the region, and is not needed here.
            out[place] = resample_regions(pixels, np.array(corners[place : place + 1]), size)[0]
        elif side < MIN_DOWNSCALE * size or is_tower:
            region = pad_and_resize(image, corners[place], size, interpolation)
            out[place] = torch.from_numpy(region.copy()).permute(2, 0, 1)
        else:
            crop = pixels[None, :, top:bottom, left:right]
            if width < side:
                crop = _centre_pad_tensor(crop, height, side)
            # PIL resizes rows first, each by itself; black ones need no resizing.
            if height < side:
                crop = _centre_pad_tensor(_downscale(crop, height, size, interpolation), side, size)
            out[place] = _downscale(crop, size, size, interpolation)[0]
    return out


def _downscale(pixels: Tensor, height: int, width: int, interpolation: str) -> Tensor:
    return functional.interpolate(pixels, (height, width), mode=interpolation, antialias=True)


def _centre_pad_tensor(pixels: Tensor, height: int, width: int) -> Tensor:
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
    if not len(corners):
        return image.new_zeros((0, 3, size, size))
    longest = (corners[:, 2:] - corners[:, :2]).max()
    fitting = MAX_BYTES // int(BYTES_PER_ROW * size * longest)
    count = min(max(fitting, 1), MAX_REGIONS)
    parts = [
        _resample(image, corners[start : start + count], size)
        for start in range(0, len(corners), count)
    ]
    return torch.cat(parts)


def _resample(image: Tensor, corners: np.ndarray, size: int) -> Tensor:
    left, top = corners[:, :2].min(axis=0).tolist()
    right, bottom = corners[:, 2:].max(axis=0).tolist()
    count, height, width = len(corners), bottom - top, right - left
    # Copies from memory that is not pinned do not wait for the device where they are this small.
    regions = torch.from_numpy(corners - [left, top, left, top])
    regions = regions.to(image.device, non_blocking=True)
    first, end = regions[:, :2], regions[:, 2:]
    side = (end - first).amax(dim=1)
    start = first - (side[:, None] - (end - first)) // 2
    # Known here without asking the device, which would wait for all its work.
    longest_side = int((corners[:, 2:] - corners[:, :2]).max())
    sums = _kernel_sums(side, longest_side, size)

    def weights(axis: int, begin: int, stop: int) -> Tensor:
        places = torch.arange(begin, stop, device=image.device)
        return _resampling_weights(start[:, axis], side, first[:, axis], end[:, axis], places, sums)

    # In float32: shorter numbers move pixels by two grey levels where light overshoots.
    result = torch.zeros((count, size, 3 * size), device=image.device)
    rows_at_once = max(1, MAX_BYTES // (BYTES_PER_ROW * count * size))
    columns_at_once = max(1, MAX_BYTES // (BYTES_PER_COLUMN * count * size))
    for upper in range(0, height, rows_at_once):
        lower = min(upper + rows_at_once, height)
        # (3 h, w) x (w, R size): every row of the picture for all regions at once.
        rows = torch.zeros((3 * (lower - upper), count * size), device=image.device)
        for begin in range(0, width, columns_at_once):
            stop = min(begin + columns_at_once, width)
            pixels = image[:, top + upper : top + lower, left + begin : left + stop].float()
            across = weights(0, begin, stop).view(-1, stop - begin)
            rows.addmm_(pixels.reshape(-1, stop - begin), across.T)
        rows = _round_pixels(rows).view(3, lower - upper, count, size).permute(2, 1, 0, 3)
        result.baddbmm_(weights(1, upper, lower), rows.reshape(count, -1, 3 * size))
    return _round_pixels(result).view(-1, size, 3, size).transpose(1, 2).to(torch.uint8)


def _round_pixels(values: Tensor) -> Tensor:
    return values.add_(0.5).floor_().clamp_(0, 255)


def _resampling_scales(side: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """(R, 1, 1) input pixels for an output pixel, and how much wider the kernel gets by that."""
    scale = (side.float() / size).view(-1, 1, 1)
    return scale, scale.clamp(min=1)


def _kernel_sums(side: Tensor, longest_side: int, size: int) -> Tensor:
    """(R, size, 1) float32: the kernel summed over the square's pixels, for every output pixel.

    The square reaches past the picture, so this is not the sum of the weights of its pixels.

    Args:
        side: (R,) int64, lengths of the squares.
        longest_side: the largest of them.
        size: output pixels.
    """
    scale, blur = _resampling_scales(side, size)
    # At most so many input pixels add to an output pixel.
    reach = 2 * math.ceil(CUBIC_RADIUS * max(longest_side / size, 1)) + 2
    reached = torch.arange(reach, device=side.device)
    parts = []
    at_once = max(1, MAX_BYTES // (BYTES_PER_COLUMN * len(side) * reach))
    for places in torch.arange(size, device=side.device).split(at_once):
        centres = (places.view(1, -1, 1) + 0.5) * scale
        pixels = (centres - CUBIC_RADIUS * blur).floor() + reached
        in_square = (pixels >= 0) & (pixels < side.view(-1, 1, 1))
        kernel = _cubic_kernel((pixels + 0.5 - centres) / blur) * in_square
        parts.append(kernel.sum(2, keepdim=True))
    return torch.cat(parts, dim=1)


def _resampling_weights(
    start: Tensor, side: Tensor, first: Tensor, end: Tensor, pixels: Tensor, sums: Tensor
) -> Tensor:
    """(R, size, P) float32: what input pixels add to each output pixel, along one axis.

    Args:
        start, side: (R,) int64, where the black square begins, and its length.
        first, end: (R,) int64, the region's own pixels.
        pixels: (P,) int64, places of input pixels.
        sums: (R, size, 1), see `_kernel_sums`.
    """
    size = sums.shape[1]
    scale, blur = _resampling_scales(side, size)
    centres = (torch.arange(size, device=start.device).view(1, -1, 1) + 0.5) * scale
    own = (pixels >= first.view(-1, 1, 1)) & (pixels < end.view(-1, 1, 1))
    middles = (pixels - start.view(-1, 1, 1) + 0.5) / blur
    return _cubic_kernel(middles - centres / blur).div_(sums).mul_(own)


def _cubic_kernel(distance: Tensor) -> Tensor:
    x = distance.abs()
    near = ((CUBIC_A + 2) * x - (CUBIC_A + 3)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * CUBIC_A
    return torch.where(x < 1, near, torch.where(x < CUBIC_RADIUS, far, 0))
