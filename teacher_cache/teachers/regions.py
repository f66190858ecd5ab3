"""Union regions: the crop of a human-object pair that CLIP encodes (EoID section 3.3).

As in the published code, a region is cropped, padded with black to a square and resized bicubically
with antialiasing by PIL. torch resizes large regions, and all regions on a GPU; its grey levels
differ from PIL's by one at most.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from pipeline.boxes import union_boxes
from pipeline.images import is_large, iter_bands, to_array
from pipeline.types import Pairs
from pipeline.utils.devices import copy_to_device
from pipeline.utils.errors import InputError

RESAMPLING_FILTERS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
# Images and padded squares above this size are not resized as a whole.
MAX_PIXELS = 2**24
# Reduction factor up to which torch's GPU kernels have enough shared memory.
MAX_GPU_DOWNSCALE = 64
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
    """The whole image of a width and height as the region of all its P pairs.

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
    """Crops (R, 4) xyxy regions and resizes them with PIL: R arrays (size, size, 3) uint8.

    This is the published procedure, and the reference for `crop_regions`.
    """
    corners = round_boxes(image, boxes, mode.context)
    if mode.name == "stretch":
        return [np.asarray(resize(image.crop(box), size, size, interpolation)) for box in corners]
    return [pad_and_resize(image, box, size, interpolation) for box in corners]


def pad_and_resize(
    image: Image.Image, corners: tuple[int, int, int, int], size: int, interpolation: str
) -> np.ndarray:
    """Crops (left, top, right, bottom), pads to a square and resizes: (size, size, 3) uint8."""
    left, top, right, bottom = corners
    width, height = right - left, bottom - top
    if width < height:
        crop = _pad_tall_region(image, corners, size, interpolation)
    else:
        crop = image.crop(corners)
    # PIL resizes horizontally first, each row on its own. Doing that before black rows are added
    # gives the same result in less time.
    if width > height:
        crop = centre_pad(resize(crop, size, height, interpolation), size, width)
    return np.asarray(resize(crop, size, size, interpolation))


def _pad_tall_region(
    image: Image.Image, corners: tuple[int, int, int, int], size: int, interpolation: str
) -> Image.Image:
    """Crops a region that is taller than wide, pads it to a square, and resizes it horizontally.

    It is done in bands of rows: the padded square of a narrow crop may have thousands of times the
    crop's pixels.
    """
    left, top, right, bottom = corners
    side = bottom - top
    band_height = max(1, MAX_PIXELS // side)
    canvas = Image.new("RGB", (size, side))
    for start in range(top, bottom, band_height):
        end = min(start + band_height, bottom)
        band = centre_pad(image.crop((left, start, right, end)), side, end - start)
        canvas.paste(resize(band, size, end - start, interpolation), (0, start - top))
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
    """Crops regions and resizes them to CLIP's input size: with torch on the device, or with PIL.

    For a GPU only the image is copied to the device. PIL resizes stretched regions, because the
    order of its two passes differs between its versions, those that torch's kernels cannot resize
    in bounded memory, and on a CPU small ones, for which it is more exact.

    Args:
        image: RGB.
        boxes: (R, 4) xyxy in pixels.
        size: side of CLIP's input in pixels.
        mode: pad, stretch or context.
        device: device of the result.
        interpolation: "bicubic" or "bilinear", as CLIP was trained with.

    Returns:
        (R, 3, size, size) uint8.
    """
    on_cpu = device.type == "cpu"
    corners = round_boxes(image, boxes, mode.context)
    # On a CPU the pixels of a large image are not copied as a whole.
    large = on_cpu and is_large(image)
    pixels = None if large else _to_tensor(image, device)
    out = torch.empty((len(corners), size, size, 3), dtype=torch.uint8, device=device)
    for region, box in zip(out, corners, strict=True):
        left, top, right, bottom = box
        width, height = right - left, bottom - top
        side = max(width, height)
        if on_cpu:
            use_pil = side < MIN_DOWNSCALE * size or (width < side and height * side > MAX_PIXELS)
        else:
            use_pil = side > MAX_GPU_DOWNSCALE * size or height * side > MAX_PIXELS
        if mode.name == "stretch":
            stretched = resize(image.crop(box), size, size, interpolation)
            region.copy_(_to_device(np.array(stretched), device))
        elif use_pil:
            padded = pad_and_resize(image, box, size, interpolation)
            region.copy_(_to_device(padded.copy(), device))
        elif pixels is None:
            resized = _pad_and_resize_large(image, box, size, interpolation)
            region.copy_(resized[0].permute(1, 2, 0))
        else:
            crop = pixels[None, :, top:bottom, left:right]
            region.copy_(_pad_and_resize_tensor(crop, size, interpolation)[0].permute(1, 2, 0))
    return out.permute(0, 3, 1, 2)


def _to_tensor(image: Image.Image, device: torch.device) -> Tensor:
    """The (3, h, w) uint8 pixels of an RGB image on the device, channels last in memory."""
    if device.type == "cpu":
        return torch.from_numpy(to_array(image)).permute(2, 0, 1)
    # Pinned blocks of few sizes, so that torch gives most of them out again.
    bands = [_to_device(band, device) for _, band in iter_bands(image, (0, 0, *image.size))]
    return torch.cat(bands).permute(2, 0, 1)


def _to_device(array: np.ndarray, device: torch.device) -> Tensor:
    return copy_to_device(torch.from_numpy(array), device)


def _pad_and_resize_tensor(crop: Tensor, size: int, interpolation: str) -> Tensor:
    """`pad_and_resize` of a (1, 3, h, w) uint8 crop on its device: (1, 3, size, size)."""
    height, width = crop.shape[2:]
    side = max(width, height)
    if width < side:
        crop = _centre_pad_tensor(crop, height, side)
    # Horizontally first, before black rows are added, as in `pad_and_resize`.
    if height < side:
        crop = _centre_pad_tensor(_resize_tensor(crop, height, size, interpolation), side, size)
    elif crop.device.type != "cpu":
        # Two passes, between which PIL rounds.
        crop = _resize_tensor(crop, height, size, interpolation)
    return _resize_tensor(crop, size, size, interpolation)


def _pad_and_resize_large(
    image: Image.Image, box: tuple[int, int, int, int], size: int, interpolation: str
) -> Tensor:
    """`_pad_and_resize_tensor` of a crop of a large image on a CPU."""
    left, top, right, bottom = box
    width, height = right - left, bottom - top
    if width < height:
        crop = torch.from_numpy(to_array(image.crop(box))).permute(2, 0, 1)[None]
        return _pad_and_resize_tensor(crop, size, interpolation)
    # Horizontally first, which needs a band of rows at a time.
    resized = torch.empty((height, size, 3), dtype=torch.uint8).permute(2, 0, 1)[None]
    for start, band in iter_bands(image, box):
        rows = torch.from_numpy(band).permute(2, 0, 1)[None]
        resized[:, :, start : start + len(band)] = _resize_tensor(
            rows, len(band), size, interpolation
        )
    return _resize_tensor(_centre_pad_tensor(resized, width, size), size, size, interpolation)


def _resize_tensor(pixels: Tensor, height: int, width: int, interpolation: str) -> Tensor:
    # torch resizes uint8 on a CPU only.
    source = pixels if pixels.device.type == "cpu" else pixels.float()
    resized = functional.interpolate(source, (height, width), mode=interpolation, antialias=True)
    if resized.dtype != torch.uint8:
        resized = resized.add_(0.5).clamp_(0, 255).to(torch.uint8)
    return resized


def _centre_pad_tensor(pixels: Tensor, height: int, width: int) -> Tensor:
    """Pads (1, 3, h, w) uint8 with black to (1, 3, height, width), the image in the middle."""
    # Channels last in memory: torch has a fast path for resizing such uint8 images.
    canvas = pixels.new_zeros((1, height, width, 3)).permute(0, 3, 1, 2)
    left, top = (width - pixels.shape[3]) // 2, (height - pixels.shape[2]) // 2
    canvas[:, :, top : top + pixels.shape[2], left : left + pixels.shape[3]] = pixels
    return canvas
