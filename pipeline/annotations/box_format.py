"""Tells from the numbers of a file's boxes whether they are of the form that is expected."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pipeline.utils.errors import InputError, bad_field

XYXY, XYWH = "[x1, y1, x2, y2]", "[x, y, width, height]"
CXCYWH = "[cx, cy, width, height]"
# Coordinates from 0 to 1 may reach a little over the edge, as predicted ones do.
NORMALISED_LIMIT = 1.05
# None of HICO-DET's boxes lies within a pixel or has an x2 below its x1; given as sides, two thirds
# would. Boxes over the edge are met more often. Fewer than three boxes tell nothing.
MAX_WRONG_SHARE, MAX_WRONG_XYWH_SHARE, MIN_BOXES = 0.1, 0.3, 3
MIN_EXPLAINED_SHARE = 0.95
# No image reaches so far; areas of larger boxes leave single precision.
MAX_COORDINATE = 1e9
# A box in pixels of an image of another size reaches farther over the edge than this share of the
# side; of HICO-DET's boxes none reaches over the edge by a pixel, in thousandths nine tenths would.
OUTSIDE_MARGIN = 0.05
# Odd images may have a few such boxes; of another scale most are.
MAX_OUTSIDE_SHARE = 0.5


def far_outside_mask(boxes: np.ndarray, size: tuple[int, int] | np.ndarray) -> np.ndarray:
    """(N,) which boxes reach clearly over the right or lower edge.

    Args:
        boxes: (N, 4) xyxy, pixels.
        size: width and height of their image, or (N, 2), of every box's own; may be infinite.
    """
    side = np.broadcast_to(np.array(size, np.float64), (len(boxes), 2))
    margin = np.where(np.isfinite(side), OUTSIDE_MARGIN * side, 0) + 1
    outside: np.ndarray = (boxes[:, 2:] > side + margin).any(axis=1)
    return outside


class BoxFormatError(InputError):
    """Boxes, or the roles of boxes, that are all meant otherwise than the form has them."""


class BoxFormatCheck:
    """Counts what the boxes of a file look like.

    Args:
        box_format: `XYXY` or `XYWH`, what is expected.
        max_normalised_share: the largest share of boxes within a pixel that may be meant so.
        max_wrong_share: the largest share of boxes that may be wrong in the form; None takes
            that of annotated boxes.
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
        # Boxes, those within one pixel, those wrong in the expected form, those outside.
        self._total = self._normalised = self._wrong = self._outside = 0
        # How many of the wrong ones are right in each of the other forms.
        self._right = {other: 0 for other in (XYXY, XYWH, CXCYWH) if other != box_format}
        self._first = ""

    def add(
        self,
        boxes: np.ndarray,
        size: tuple[int, int] | np.ndarray | None = None,
        image: str = "",
    ) -> None:
        """Looks at boxes.

        Args:
            boxes: (N, 4) as they stand in the file.
            size: width and height of their image, or (N, 2), of every box's own, where known;
                infinite where not.
            image: their image's name, for errors.
        """
        limit = np.full((len(boxes), 2), np.inf) if size is None else np.array(size, np.float64)
        limit = np.broadcast_to(limit, (len(boxes), 2))
        # Nothing tells the forms apart in an image of a pixel, nor by a box of zeros.
        telling = (boxes != 0).any(axis=1) & (limit.max(axis=1) > 2)
        boxes, limit = boxes[telling], limit[telling]
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
        outside = far_outside_mask(corners, limit)
        if outside.any() and not self._first:
            box, sides = (values[int(np.argmax(outside))].tolist() for values in (boxes, limit))
            shown = ", ".join(f"{number:.6g}" for number in box)
            self._first = f"{image and image + ': '}[{shown}] of {sides[0]:g} x {sides[1]:g}"
        self._outside += int(outside.sum())

    def _add_wrong(self, boxes: np.ndarray, limit: np.ndarray) -> None:
        first, last = boxes[:, :2], boxes[:, 2:]
        half, positive = last / 2, (last > 0).all(axis=1)
        right = {
            XYXY: (last > first).all(axis=1) & (last <= limit + 1).all(axis=1),
            XYWH: positive & (first + last <= limit + 1).all(axis=1),
            CXCYWH: positive & ((first + half <= limit + 1) & (first - half >= -1)).all(axis=1),
        }
        self._wrong += len(boxes)
        for other in self._right:
            self._right[other] += int(right[other].sum())

    def check(self, file: Path, field: str, scale: bool = True) -> None:
        """Refuses a file whose boxes are of another form, with `scale` also of another scale.

        Raises:
            OtherForm: too many have coordinates from 0 to 1, make sense in another form alone, or
                reach clearly outside their images; names the form.
        """
        expected = f"{self.box_format} in pixels"
        is_many = self._normalised >= max(MIN_BOXES, self._max_normalised_share * self._total)
        if is_many or 2 * self._normalised > self._total:
            found = f"numbers from 0 to 1 in {self._normalised} of {self._total} boxes"
            hint = "shares of the image's width and height; multiply by these"
            raise BoxFormatError(f"{bad_field(file, field, expected, found)}: {hint}")
        if self._wrong >= max(MIN_BOXES, self._max_wrong_share * self._total):
            others = [
                name
                for name, right in self._right.items()
                if right >= MIN_EXPLAINED_SHARE * self._wrong
            ]
            if others:
                hint = f"otherwise {self._wrong} of {self._total} boxes are none"
                raise BoxFormatError(
                    f"{bad_field(file, field, expected, ' or '.join(others))}: {hint}"
                )
        if scale and (problem := self.scale_error(file, field)):
            raise BoxFormatError(problem)

    def scale_error(self, file: Path, field: str) -> str:
        """What tells that boxes count in pixels of images of another size, empty where nothing
        does."""
        if self._outside < max(MIN_BOXES, MAX_OUTSIDE_SHARE * self._total):
            return ""
        found = f"{self._outside} of {self._total} boxes outside their images"
        return (
            f"{bad_field(file, field, f'{self.box_format} in pixels of the image', found)}, first"
            f" {self._first}; they are of another scale"
        )
