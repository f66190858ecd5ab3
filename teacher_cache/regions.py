"""The part of a picture that the teacher looks at: the union of a pair's two boxes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

from pipeline.boxes import union_boxes
from pipeline.errors import InputError
from pipeline.types import Pairs


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
        return cls(text, context)


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


def crop_regions(
    image: Image.Image, boxes: np.ndarray, size: int, mode: RegionMode
) -> list[np.ndarray]:
    """Cuts regions out of an image and brings them to the teacher's input size.

    Corners are rounded to whole pixels as PIL rounds them, a region is at least one pixel, and
    the bicubic resize is antialiased.

    Args:
        image: RGB.
        boxes: (R, 4) xyxy in pixels.
        size: side of the teacher's input in pixels.
        mode: pad, stretch or context.

    Returns:
        R arrays (size, size, 3) uint8.
    """
    corners = whole_pixels(image, boxes, mode.context)
    if mode.name == "stretch":
        return [np.asarray(resized(image.crop(box), size, size)) for box in corners]
    return [padded_region(image, box, size) for box in corners]


def padded_region(image: Image.Image, corners: tuple[int, int, int, int], size: int) -> np.ndarray:
    """A region (left, top, right, bottom) made square with black bars: (size, size, 3) uint8."""
    crop = image.crop(corners)
    if crop.width > crop.height:
        # PIL resizes rows first, each by itself; black ones need no resizing.
        crop = centred(resized(crop, size, crop.height), size, crop.width)
    elif crop.width < crop.height:
        crop = centred(crop, crop.height, crop.height)
    return np.asarray(resized(crop, size, size))


def resized(image: Image.Image, width: int, height: int) -> Image.Image:
    """Antialiased bicubic; an axis that keeps its length is left alone."""
    return image.resize((width, height), Image.Resampling.BICUBIC)


def centred(image: Image.Image, width: int, height: int) -> Image.Image:
    """In the middle of a black picture."""
    canvas = Image.new("RGB", (width, height))
    canvas.paste(image, ((width - image.width) // 2, (height - image.height) // 2))
    return canvas


def whole_pixels(
    image: Image.Image, boxes: np.ndarray, context: float
) -> list[tuple[int, int, int, int]]:
    """Left, top, right and bottom of R boxes, grown `context`-fold, inside the image."""
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    halves = (boxes[:, 2:] - boxes[:, :2]) / 2 * context
    grown = np.concatenate([centres - halves, centres + halves], axis=1)
    corners = np.rint(grown if context != 1 else boxes).astype(np.int64)
    limits = np.array([image.width, image.height])
    corners[:, :2] = corners[:, :2].clip(0, limits - 1)
    corners[:, 2:] = np.maximum(corners[:, 2:].clip(0, limits), corners[:, :2] + 1)
    return [tuple(box) for box in corners.tolist()]
