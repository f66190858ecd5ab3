"""Recognises boxes in another format than expected from the values of all boxes of a file.

Wrong formats (sides instead of corners, centres, shares of the image size, another scale) often
give plausible boxes, so a single box does not show its format.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pipeline.utils.errors import InputError, bad_field

XYXY, XYWH = "[x1, y1, x2, y2]", "[x, y, width, height]"
CXCYWH = "[cx, cy, width, height]"
# Normalised coordinates may exceed 1 slightly, because predicted boxes do.
NORMALISED_LIMIT = 1.05
# In HICO-DET no box lies within one pixel or has x2 < x1; if its boxes had sides in place of
# corners, two thirds would. Boxes beyond the edge of the image are more common, so the share for
# sides is higher. With fewer than `MIN_BOXES` boxes nothing is checked.
MAX_WRONG_SHARE, MAX_WRONG_XYWH_SHARE, MIN_BOXES = 0.1, 0.3, 3
# Another format must be right for this share of the boxes that are wrong in the expected one.
MIN_EXPLAINED_SHARE = 0.95
# No image is this large, and areas of larger boxes overflow float32 arithmetic.
MAX_COORDINATE = 1e9
# Boxes of another scale exceed the image by more than this share of its side. No box of HICO-DET
# exceeds its image by a pixel; if coordinates were in thousandths of the side, 90 % would.
OUTSIDE_MARGIN = 0.05
# Single images may have such boxes; with another scale most boxes are outside.
MAX_OUTSIDE_SHARE = 0.5
# Full scales of coordinates that are percent or thousandths of the sides. Boxes have one of them if
# the boxes reach to it within `SCALE_MARGIN` in both directions, and at least this number and share
# of them are in images that are `MIN_SIDE_RATIO` times as large.
SCALES = (100, 1000)
SCALE_MARGIN, MIN_SIDE_RATIO, MIN_SCALED_BOXES, MIN_SCALED_SHARE = 0.1, 2, 20, 0.9


def far_outside_mask(boxes: np.ndarray, size: tuple[int, int] | np.ndarray) -> np.ndarray:
    """(N,) bool: boxes that exceed the right or lower edge by more than `OUTSIDE_MARGIN`.

    Args:
        boxes: (N, 4) xyxy, pixels.
        size: width and height of the image, or (N, 2) with one size per box; may be infinite.
    """
    side = np.broadcast_to(np.array(size, np.float64), (len(boxes), 2))
    margin = np.where(np.isfinite(side), OUTSIDE_MARGIN * side, 0) + 1
    outside: np.ndarray = (boxes[:, 2:] > side + margin).any(axis=1)
    return outside


class BoxFormatError(InputError):
    """The boxes of a file have another format than expected, or swapped roles."""


class BoxFormatCheck:
    """Statistics of the boxes of a file, and the decision whether their format is the expected one.

    Args:
        box_format: the expected format, `XYXY` or `XYWH`.
        max_normalised_share: largest allowed share of boxes with all coordinates within 0 and 1.
        max_wrong_share: largest allowed share of boxes that are invalid in the expected format;
            None for the default for annotated boxes.
    """

    def __init__(
        self,
        box_format: str,
        max_normalised_share: float = 0.5,
        max_wrong_share: float | None = None,
    ) -> None:
        self.box_format, self._max_normalised_share = box_format, max_normalised_share
        self._max_wrong_share = max_wrong_share or (
            MAX_WRONG_SHARE if box_format == XYXY else MAX_WRONG_XYWH_SHARE
        )
        # Numbers of all boxes, of normalised ones, of those that are invalid in the expected
        # format, and of those outside their images.
        self._total = self._normalised = self._wrong = self._outside = 0
        # Number of the invalid boxes that are valid in each of the other formats.
        self._valid_in = {other: 0 for other in (XYXY, XYWH, CXCYWH) if other != box_format}
        self._first_outside = ""
        # Right and lower end of all boxes, and the number of boxes in much larger images.
        self._extent, self._in_large = np.zeros(2), dict.fromkeys(SCALES, 0)

    def add(
        self,
        boxes: np.ndarray,
        size: tuple[int, int] | np.ndarray | None = None,
        image: str = "",
    ) -> None:
        """Adds boxes to the statistics.

        Args:
            boxes: (N, 4) as in the file.
            size: width and height of the image, or (N, 2) with one size per box; None or infinite
                where unknown.
            image: name of the image, for errors.
        """
        limit = np.full((len(boxes), 2), np.inf) if size is None else np.array(size, np.float64)
        limit = np.broadcast_to(limit, (len(boxes), 2))
        # Boxes of zeros, and all boxes in images of 1 or 2 pixels, fit every format.
        informative = (boxes != 0).any(axis=1) & (limit.max(axis=1) > 2)
        boxes, limit = boxes[informative], limit[informative]
        first, last = boxes[:, :2], boxes[:, 2:]
        self._total += len(boxes)
        self._normalised += int((np.abs(boxes) <= NORMALISED_LIMIT).all(axis=1).sum())
        if self.box_format == XYXY:
            wrong, corners = (last < first).any(axis=1), boxes
        else:
            wrong = (first + last > limit + 1).any(axis=1)
            corners = np.concatenate([first, first + last], axis=1)
        if wrong.any():
            self._add_wrong(boxes[wrong], limit[wrong])
        self._extent = corners[:, 2:].max(axis=0, initial=0).clip(self._extent)
        for scale in SCALES:
            is_large = (np.isfinite(limit) & (limit >= MIN_SIDE_RATIO * scale)).all(axis=1)
            self._in_large[scale] += int(is_large.sum())
        outside = far_outside_mask(corners, limit)
        if outside.any() and not self._first_outside:
            box, sides = (values[int(np.argmax(outside))].tolist() for values in (boxes, limit))
            numbers = ", ".join(f"{number:.6g}" for number in box)
            self._first_outside = (
                f"{image and image + ': '}[{numbers}] of {sides[0]:g} x {sides[1]:g}"
            )
        self._outside += int(outside.sum())

    def _add_wrong(self, boxes: np.ndarray, limit: np.ndarray) -> None:
        first, last = boxes[:, :2], boxes[:, 2:]
        half, positive = last / 2, (last > 0).all(axis=1)
        is_valid = {
            XYXY: (last > first).all(axis=1) & (last <= limit + 1).all(axis=1),
            XYWH: positive & (first + last <= limit + 1).all(axis=1),
            CXCYWH: positive & ((first + half <= limit + 1) & (first - half >= -1)).all(axis=1),
        }
        self._wrong += len(boxes)
        for other in self._valid_in:
            self._valid_in[other] += int(is_valid[other].sum())

    def check(self, file: Path, field: str, scale: bool = True) -> None:
        """Refuses a file whose boxes have another format.

        Args:
            file, field: path and name of the boxes' field, for errors.
            scale: also refuse boxes of another scale.

        Raises:
            BoxFormatError: too many boxes have coordinates from 0 to 1, are valid only in another
                format, or lie outside their images; names the format.
        """
        expected = f"{self.box_format} in pixels"
        is_many = self._normalised >= max(MIN_BOXES, self._max_normalised_share * self._total)
        if is_many or 2 * self._normalised > self._total:
            found = f"numbers from 0 to 1 in {self._normalised} of {self._total} boxes"
            hint = "multiply them by the width and height of the image"
            raise BoxFormatError(f"{bad_field(file, field, expected, found)}: {hint}")
        if self._wrong >= max(MIN_BOXES, self._max_wrong_share * self._total):
            others = [
                name
                for name, count in self._valid_in.items()
                if count >= MIN_EXPLAINED_SHARE * self._wrong
            ]
            if others:
                hint = f"{self._wrong} of {self._total} boxes are invalid in the expected format"
                raise BoxFormatError(
                    f"{bad_field(file, field, expected, ' or '.join(others))}: {hint}"
                )
        if scale and (problem := self.scale_error(file, field)):
            raise BoxFormatError(problem)

    def scale_error(self, file: Path, field: str) -> str:
        """Message if boxes are in percent or thousandths of the sides, or in pixels of images of
        another size, otherwise empty."""
        for scale in SCALES:
            is_filled = (np.abs(self._extent / scale - 1) <= SCALE_MARGIN).all()
            min_boxes = max(MIN_SCALED_BOXES, MIN_SCALED_SHARE * self._total)
            if is_filled and self._in_large[scale] >= min_boxes:
                found = f"numbers from 0 to {scale} in all {self._total} boxes"
                return (
                    f"{bad_field(file, field, f'{self.box_format} in pixels', found)}: multiply"
                    f" them by the width and height of the image and divide them by {scale}"
                )
        if self._outside < max(MIN_BOXES, MAX_OUTSIDE_SHARE * self._total):
            return ""
        found = f"{self._outside} of {self._total} boxes outside their images"
        return (
            f"{bad_field(file, field, f'{self.box_format} in pixels of the image', found)}, first"
            f" {self._first_outside}; they seem to have another scale"
        )
