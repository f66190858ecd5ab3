"""The part of a picture that the teacher looks at: the union of a pair's two boxes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

from pipeline.boxes import union_boxes
from pipeline.errors import InputError
from pipeline.types import Pairs

LEVELS = ("region", "image")
FILTERS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
PIXELS_AT_ONCE = 2**24


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


def whole_image(pairs: Pairs, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """The image's own rectangle as the one region of all its pairs.

    Args:
        pairs: of the image; without any there is nothing to ask, and no region.
        size: width and height of the image.

    Returns:
        (R, 4) float32 xyxy with R = 1 or 0, and (P,) int64 zeros.
    """
    boxes = np.array([[0, 0, *size]] * min(len(pairs), 1), dtype=np.float32)
    return boxes.reshape(-1, 4), np.zeros(len(pairs), dtype=np.int64)


def crop_regions(
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
    corners = whole_pixels(image, boxes, mode.context)
    if mode.name == "stretch":
        return [np.asarray(resized(image.crop(box), size, size, interpolation)) for box in corners]
    return [padded_region(image, box, size, interpolation) for box in corners]


def padded_region(
    image: Image.Image, corners: tuple[int, int, int, int], size: int, interpolation: str
) -> np.ndarray:
    """A region (left, top, right, bottom) made square with black bars: (size, size, 3) uint8."""
    crop = image.crop(corners)
    # PIL resizes rows first, each by itself; black ones need no resizing.
    if crop.width > crop.height:
        crop = centred(resized(crop, size, crop.height, interpolation), size, crop.width)
    elif crop.width < crop.height:
        crop = _with_short_rows(crop, size, interpolation)
    return np.asarray(resized(crop, size, size, interpolation))


def _with_short_rows(crop: Image.Image, size: int, interpolation: str) -> Image.Image:
    """An upright crop with black bars, rows resized: in bands, for the square of something long
    would be thousands of times the picture."""
    side = crop.height
    rows = max(1, PIXELS_AT_ONCE // side)
    canvas = Image.new("RGB", (size, side))
    for top in range(0, side, rows):
        end = min(top + rows, side)
        band = centred(crop.crop((0, top, crop.width, end)), side, end - top)
        canvas.paste(resized(band, size, end - top, interpolation), (0, top))
    return canvas


def resized(image: Image.Image, width: int, height: int, interpolation: str) -> Image.Image:
    """Antialiased; an axis that keeps its length is left alone."""
    return image.resize((width, height), FILTERS[interpolation])


def centred(image: Image.Image, width: int, height: int) -> Image.Image:
    """In the middle of a black picture."""
    canvas = Image.new("RGB", (width, height))
    canvas.paste(image, ((width - image.width) // 2, (height - image.height) // 2))
    return canvas


def whole_pixels(
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
