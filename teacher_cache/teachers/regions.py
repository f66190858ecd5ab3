"""Union regions: the crop of a human-object pair that CLIP encodes (EoID section 3.3).

As in the published code, a region is cropped, padded with black to a square and resized bicubically
with antialiasing by PIL. torch resizes large regions, and all regions on a GPU; its grey levels
differ from PIL's by one at most.
"""

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

RESAMPLING_FILTERS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
# Images and padded squares above this size are not resized as a whole.
MAX_PIXELS = 2**24
# Keys' cubic kernel with a = -0.5, PIL's bicubic; its radius is 2 pixels.
CUBIC_A = -0.5
CUBIC_RADIUS = 2.0
# Regions that `resample_regions` resizes at once.
MAX_REGIONS = 32
# Limits the intermediate tensors of `resample_regions`. Computing the weights of one input row or
# column takes six float32 numbers per output pixel of each region. An input row itself is stored
# twice, before and after it is rearranged, in three colours.
MAX_BYTES = 2**28
BYTES_PER_COLUMN = 4 * 6
BYTES_PER_ROW = BYTES_PER_COLUMN + 4 * 6
# torch rounds its weights for uint8 images to fewer bits than PIL. From this reduction factor on no
# weight exceeds a half, and the results differ by one grey level at most.
MIN_DOWNSCALE = 2


@dataclass(frozen=True)
class RegionMode:
    """How a union box becomes CLIP's square input.

    Attributes:
        name: "pad" (the crop is padded with black to a square, as published), "stretch" (the crop
            is resized without padding) or "context=F" (the box is enlarged F-fold about its centre,
            then padded).
        context: F; 1 for the other modes.
    """

    name: str = "pad"
    context: float = 1.0

    @classmethod
    def parse(cls, text: str) -> RegionMode:
        """Parses `pad`, `stretch` or `context=F`.

        Raises:
            InputError: the text is none of these.
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
    """The distinct union boxes of the P pairs of an image.

    Returns:
        (R, 4) float32 xyxy boxes in the order of the first pair that has them, and (P,) int64, the
        row of each pair's box.
    """
    unions = union_boxes(pairs.human_boxes, pairs.object_boxes).astype(np.float32)
    row_by_box: dict[bytes, int] = {}
    rows = [row_by_box.setdefault(union.tobytes(), len(row_by_box)) for union in unions]
    first_pairs = np.array([rows.index(row) for row in range(len(row_by_box))], dtype=np.int64)
    return unions[first_pairs].reshape(-1, 4), np.array(rows, dtype=np.int64)


def whole_image_region(pairs: Pairs, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """The whole image as the region of all its P pairs.

    Args:
        pairs: pairs of the image.
        size: width and height of the image.

    Returns:
        (R, 4) float32 xyxy, where R is 1, or 0 without pairs; and (P,) int64 zeros.
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
    """Crops regions and resizes them to CLIP's input size with PIL: the reference for all others.

    Args:
        image: RGB.
        boxes: (R, 4) xyxy in pixels; see `round_boxes`.
        size: side of CLIP's input in pixels.
        mode: pad, stretch or context.
        interpolation: "bicubic" or "bilinear", as CLIP was trained with.

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
    """Crops (left, top, right, bottom), pads to a square and resizes: (size, size, 3) uint8."""
    crop = image.crop(corners)
    # PIL resizes horizontally first, each row on its own. Doing that before black rows are added
    # gives the same result in less time.
    if crop.width > crop.height:
        crop = centre_pad(resize(crop, size, crop.height, interpolation), size, crop.width)
    elif crop.width < crop.height:
        crop = _pad_tall_region(crop, size, interpolation)
    return np.asarray(resize(crop, size, size, interpolation))


def _pad_tall_region(crop: Image.Image, size: int, interpolation: str) -> Image.Image:
    """Pads a crop that is taller than wide to a square, and resizes it horizontally.

    It is done in bands of rows: the padded square of a narrow crop may have thousands of times the
    crop's pixels.
    """
    side = crop.height
    band_height = max(1, MAX_PIXELS // side)
    canvas = Image.new("RGB", (size, side))
    for top in range(0, side, band_height):
        end = min(top + band_height, side)
        band = centre_pad(crop.crop((0, top, crop.width, end)), side, end - top)
        canvas.paste(resize(band, size, end - top, interpolation), (0, top))
    return canvas


def resize(image: Image.Image, width: int, height: int, interpolation: str) -> Image.Image:
    """Resizes with antialiasing; PIL skips an axis that keeps its length."""
    return image.resize((width, height), RESAMPLING_FILTERS[interpolation])


def centre_pad(image: Image.Image, width: int, height: int) -> Image.Image:
    """Pads with black to a size, the image in the middle."""
    canvas = Image.new("RGB", (width, height))
    canvas.paste(image, ((width - image.width) // 2, (height - image.height) // 2))
    return canvas


def round_boxes(
    image: Image.Image, boxes: np.ndarray, context: float
) -> list[tuple[int, int, int, int]]:
    """Enlarges R xyxy boxes `context`-fold and rounds them to whole pixels as PIL's `crop` does.

    The corners are clipped to the image, and a region has at least one pixel.

    Returns:
        Left, top, right and bottom of each region.
    """
    enlarged = boxes.astype(np.float64)
    if context != 1:
        centres = (enlarged[:, :2] + enlarged[:, 2:]) / 2
        half_sizes = (enlarged[:, 2:] - enlarged[:, :2]) / 2 * context
        enlarged = np.concatenate([centres - half_sizes, centres + half_sizes], axis=1)
    limits = np.array([image.width, image.height])
    # Clipped before the conversion to integers, which large coordinates would overflow.
    corners = np.rint(enlarged.clip(0, np.tile(limits, 2))).astype(np.int64)
    corners[:, :2] = np.minimum(corners[:, :2], limits - 1)
    corners[:, 2:] = np.maximum(corners[:, 2:], corners[:, :2] + 1)
    return [(left, top, right, bottom) for left, top, right, bottom in corners.tolist()]


def crop_regions(
    image: Image.Image,
    boxes: np.ndarray,
    size: int,
    mode: RegionMode,
    device: torch.device,
    interpolation: str = "bicubic",
) -> Tensor:
    """Crops regions and resizes them to CLIP's input size, on the device where this is possible.

    For a GPU only the image is copied to the device. PIL resizes stretched regions, because the
    order of its two passes differs between its versions; with a GPU also regions of huge images and
    bilinear ones, which `resample_regions` does not support.

    Args:
        image: RGB.
        boxes: (R, 4) xyxy in pixels.
        size: side of CLIP's input in pixels.
        mode: pad, stretch or context.
        device: device of the result.
        interpolation: "bicubic" or "bilinear".

    Returns:
        (R, 3, size, size) uint8.
    """
    on_cpu = device.type == "cpu"
    is_huge = image.width * image.height > MAX_PIXELS
    if mode.name == "stretch" or (not on_cpu and (is_huge or interpolation != "bicubic")):
        regions = crop_regions_pil(image, boxes, size, mode, interpolation)
        stacked = np.stack(regions) if regions else np.zeros((0, size, size, 3), np.uint8)
        tensor = torch.from_numpy(stacked).permute(0, 3, 1, 2)
        return tensor if on_cpu else tensor.pin_memory().to(device, non_blocking=True)
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
    """Crops, pads and resizes on a CPU: large regions with torch, which is faster than PIL."""
    out = torch.empty((len(corners), size, size, 3), dtype=torch.uint8).permute(0, 3, 1, 2)
    for index, (left, top, right, bottom) in enumerate(corners):
        width, height = right - left, bottom - top
        side = max(width, height)
        # The padded square of a tall, narrow region may have thousands of times its pixels;
        # `resample_regions` computes the result without it.
        is_huge_square = width < side and height * side > MAX_PIXELS
        if is_huge_square and height * width <= MAX_PIXELS and interpolation == "bicubic":
            out[index] = resample_regions(pixels, np.array(corners[index : index + 1]), size)[0]
        elif side < MIN_DOWNSCALE * size or is_huge_square:
            region = pad_and_resize(image, corners[index], size, interpolation)
            out[index] = torch.from_numpy(region.copy()).permute(2, 0, 1)
        else:
            crop = pixels[None, :, top:bottom, left:right]
            if width < side:
                crop = _centre_pad_tensor(crop, height, side)
            # Horizontally first, before black rows are added, as in `pad_and_resize`.
            if height < side:
                crop = _centre_pad_tensor(_downscale(crop, height, size, interpolation), side, size)
            out[index] = _downscale(crop, size, size, interpolation)[0]
    return out


def _downscale(pixels: Tensor, height: int, width: int, interpolation: str) -> Tensor:
    return functional.interpolate(pixels, (height, width), mode=interpolation, antialias=True)


def _centre_pad_tensor(pixels: Tensor, height: int, width: int) -> Tensor:
    """Pads (1, 3, h, w) uint8 with black to (1, 3, height, width), the image in the middle."""
    # Channels last in memory: torch has a fast path for resizing such uint8 images.
    canvas = torch.zeros((1, height, width, 3), dtype=torch.uint8).permute(0, 3, 1, 2)
    left, top = (width - pixels.shape[3]) // 2, (height - pixels.shape[2]) // 2
    canvas[:, :, top : top + pixels.shape[2], left : left + pixels.shape[3]] = pixels
    return canvas


def resample_regions(image: Tensor, corners: np.ndarray, size: int) -> Tensor:
    """Crops, pads with black to squares and resizes bicubically by matrix products.

    The result equals that of PIL up to one grey level: like PIL it resizes horizontally first and
    rounds to integers between the two passes.

    Args:
        image: (3, h, w) uint8 on the device.
        corners: (R, 4) int64, left, top, right, bottom in whole pixels inside the image.
        size: side of the output in pixels.

    Returns:
        (R, 3, size, size) uint8.
    """
    if not len(corners):
        return image.new_zeros((0, 3, size, size))
    longest_side = (corners[:, 2:] - corners[:, :2]).max()
    count = min(max(MAX_BYTES // int(BYTES_PER_ROW * size * longest_side), 1), MAX_REGIONS)
    parts = [
        _resample(image, corners[start : start + count], size)
        for start in range(0, len(corners), count)
    ]
    return torch.cat(parts)


def _resample(image: Tensor, corners: np.ndarray, size: int) -> Tensor:
    """`resample_regions` for regions that fit the memory limit together."""
    left, top = corners[:, :2].min(axis=0).tolist()
    right, bottom = corners[:, 2:].max(axis=0).tolist()
    count, height, width = len(corners), bottom - top, right - left
    # CUDA copies up to 64 KiB from pageable memory without waiting for the device.
    regions = torch.from_numpy(corners - [left, top, left, top])
    regions = regions.to(image.device, non_blocking=True)
    first, end = regions[:, :2], regions[:, 2:]
    side = (end - first).amax(dim=1)
    start = first - (side[:, None] - (end - first)) // 2
    # From the host's copy: reading it from the device would wait for all queued work.
    longest_side = int((corners[:, 2:] - corners[:, :2]).max())
    kernel_sums = _kernel_sums(side, longest_side, size)

    def weights(axis: int, begin: int, stop: int) -> Tensor:
        pixels = torch.arange(begin, stop, device=image.device)
        return _resampling_weights(
            start[:, axis], side, first[:, axis], end[:, axis], pixels, kernel_sums
        )

    # float32: in half precision, pixels beside edges, where the kernel overshoots, are off by two
    # grey levels.
    result = torch.zeros((count, size, 3 * size), device=image.device)
    rows_at_once = max(1, MAX_BYTES // (BYTES_PER_ROW * count * size))
    columns_at_once = max(1, MAX_BYTES // (BYTES_PER_COLUMN * count * size))
    for upper in range(0, height, rows_at_once):
        lower = min(upper + rows_at_once, height)
        # (3 h, w) x (w, R size): each image row for all regions at once.
        rows = torch.zeros((3 * (lower - upper), count * size), device=image.device)
        for begin in range(0, width, columns_at_once):
            stop = min(begin + columns_at_once, width)
            pixels = image[:, top + upper : top + lower, left + begin : left + stop].float()
            row_weights = weights(0, begin, stop).view(-1, stop - begin)
            rows.addmm_(pixels.reshape(-1, stop - begin), row_weights.T)
        rows = _round_pixels(rows).view(3, lower - upper, count, size).permute(2, 1, 0, 3)
        result.baddbmm_(weights(1, upper, lower), rows.reshape(count, -1, 3 * size))
    return _round_pixels(result).view(-1, size, 3, size).transpose(1, 2).to(torch.uint8)


def _round_pixels(values: Tensor) -> Tensor:
    return values.add_(0.5).floor_().clamp_(0, 255)


def _resampling_scales(side: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """(R, 1, 1) input pixels per output pixel, and the factor by which the kernel is widened."""
    scale = (side.float() / size).view(-1, 1, 1)
    return scale, scale.clamp(min=1)


def _kernel_sums(side: Tensor, longest_side: int, size: int) -> Tensor:
    """(R, size, 1) float32: for each output pixel, the kernel summed over the padded square.

    The weights are divided by it. It has to include the padding, so it is not the sum of the
    weights of the region's own pixels.

    Args:
        side: (R,) int64, sides of the squares.
        longest_side: the largest of them.
        size: number of output pixels.
    """
    scale, kernel_scale = _resampling_scales(side, size)
    # Upper bound of the number of input pixels with a weight for one output pixel.
    support = 2 * math.ceil(CUBIC_RADIUS * max(longest_side / size, 1)) + 2
    offsets = torch.arange(support, device=side.device)
    parts = []
    at_once = max(1, MAX_BYTES // (BYTES_PER_COLUMN * len(side) * support))
    for outputs in torch.arange(size, device=side.device).split(at_once):
        centres = (outputs.view(1, -1, 1) + 0.5) * scale
        pixels = (centres - CUBIC_RADIUS * kernel_scale).floor() + offsets
        in_square = (pixels >= 0) & (pixels < side.view(-1, 1, 1))
        kernel = _cubic_kernel((pixels + 0.5 - centres) / kernel_scale) * in_square
        parts.append(kernel.sum(2, keepdim=True))
    return torch.cat(parts, dim=1)


def _resampling_weights(
    start: Tensor, side: Tensor, first: Tensor, end: Tensor, pixels: Tensor, kernel_sums: Tensor
) -> Tensor:
    """(R, size, P) float32: weights of input pixels for each output pixel along one axis.

    Args:
        start, side: (R,) int64, first coordinate and side of the padded squares.
        first, end: (R,) int64, half-open range of the regions' own pixels.
        pixels: (P,) int64, coordinates of the input pixels.
        kernel_sums: (R, size, 1), see `_kernel_sums`.
    """
    size = kernel_sums.shape[1]
    scale, kernel_scale = _resampling_scales(side, size)
    centres = (torch.arange(size, device=start.device).view(1, -1, 1) + 0.5) * scale
    in_region = (pixels >= first.view(-1, 1, 1)) & (pixels < end.view(-1, 1, 1))
    positions = (pixels - start.view(-1, 1, 1) + 0.5) / kernel_scale
    return _cubic_kernel(positions - centres / kernel_scale).div_(kernel_sums).mul_(in_region)


def _cubic_kernel(distance: Tensor) -> Tensor:
    """Keys' kernel, a piecewise cubic polynomial of the distance (IEEE TASSP 29, 1981)."""
    x = distance.abs()
    near = ((CUBIC_A + 2) * x - (CUBIC_A + 3)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * CUBIC_A
    return torch.where(x < 1, near, torch.where(x < CUBIC_RADIUS, far, 0))
