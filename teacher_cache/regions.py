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
    crops = []
    for left, top, right, bottom in whole_pixels(image, boxes, mode.context):
        crop = image.crop((left, top, right, bottom))
        if mode.name != "stretch" and crop.width != crop.height:
            side = max(crop.size)
            square = Image.new("RGB", (side, side))
            square.paste(crop, ((side - crop.width) // 2, (side - crop.height) // 2))
            crop = square
        crops.append(np.asarray(crop.resize((size, size), Image.Resampling.BICUBIC)))
    return crops


def whole_pixels(image: Image.Image, boxes: np.ndarray, context: float) -> list[list[int]]:
    """Left, top, right and bottom of R boxes, grown `context`-fold, inside the image."""
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    halves = (boxes[:, 2:] - boxes[:, :2]) / 2 * context
    grown = np.concatenate([centres - halves, centres + halves], axis=1)
    corners = np.rint(grown if context != 1 else boxes).astype(np.int64)
    limits = np.array([image.width, image.height])
    corners[:, :2] = corners[:, :2].clip(0, limits - 1)
    corners[:, 2:] = np.maximum(corners[:, 2:].clip(0, limits), corners[:, :2] + 1)
    return corners.tolist()
