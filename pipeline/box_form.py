"""Tells from the numbers of a file's boxes whether they are of the form that is expected."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pipeline.errors import InputError, bad_field

CORNERS, SIDES = "[x1, y1, x2, y2]", "[x, y, width, height]"
# Coordinates from 0 to 1 may reach a little over the edge, as predicted ones do.
UNIT = 1.05
# None of HICO-DET's boxes lies within a pixel or has an x2 below its x1; given as sides, two thirds
# would. Boxes over the edge are met more often. Fewer than three boxes tell nothing.
MANY, MANY_OVER_EDGE, FEWEST = 0.1, 0.3, 3
NEARLY_ALL = 0.95
# No picture reaches so far; areas of larger boxes leave single precision.
FARTHEST = 1e9


class OtherForm(InputError):
    """Boxes, or the roles of boxes, that are all meant otherwise than the form has them."""


class BoxForm:
    """Counts what the boxes of a file look like.

    Args:
        form: `CORNERS` or `SIDES`, what is expected.
        most_unit: the largest share of boxes within a pixel that may be meant so.
        most_wrong: the largest share of boxes that may be wrong in the form; None takes that of
            annotated boxes.
    """

    def __init__(self, form: str, most_unit: float = 0.5, most_wrong: float | None = None) -> None:
        self.form, self._most_unit = form, most_unit
        self._most_wrong = most_wrong or (MANY if form == CORNERS else MANY_OVER_EDGE)
        # Boxes, those within one pixel, those wrong in the expected form, and right in the other.
        self._total = self._unit = self._wrong = self._right = 0

    def add(self, boxes: np.ndarray, size: tuple[int, int] | np.ndarray | None = None) -> None:
        """Looks at boxes.

        Args:
            boxes: (N, 4) as they stand in the file.
            size: width and height of their picture, or (N, 2), of every box's own, where known.
        """
        limit = np.full((len(boxes), 2), np.inf) if size is None else np.array(size, np.float64)
        limit = np.broadcast_to(limit, (len(boxes), 2))
        # Nothing tells the forms apart in a picture of a pixel, nor by a box of zeros.
        telling = (boxes != 0).any(axis=1) & (limit.max(axis=1) > 2)
        boxes, limit = boxes[telling], limit[telling]
        first, last = boxes[:, :2], boxes[:, 2:]
        self._total += len(boxes)
        self._unit += int((np.abs(boxes) <= UNIT).all(axis=1).sum())
        are_corners = (last > first).all(axis=1) & (last <= limit + 1).all(axis=1)
        are_sides = (last > 0).all(axis=1) & (first + last <= limit + 1).all(axis=1)
        if self.form == CORNERS:
            wrong, others = (last < first).any(axis=1), are_sides
        else:
            wrong, others = (first + last > limit + 1).any(axis=1), are_corners
        self._wrong += int(wrong.sum())
        self._right += int((wrong & others).sum())

    def check(self, file: Path, field: str) -> None:
        """Refuses a file whose boxes are of another form.

        Raises:
            OtherForm: too many have coordinates from 0 to 1, or make sense in the other form alone;
                names the form.
        """
        is_many = self._unit >= max(FEWEST, self._most_unit * self._total)
        if is_many or 2 * self._unit > self._total:
            found = f"numbers from 0 to 1 in {self._unit} of {self._total} boxes"
            hint = "shares of the picture's width and height; multiply by these"
            raise OtherForm(
                str(bad_field(file, field, f"{self.form} in pixels", found)) + f": {hint}"
            )
        are_many = self._wrong >= max(FEWEST, self._most_wrong * self._total)
        if are_many and self._right >= NEARLY_ALL * self._wrong:
            other = SIDES if self.form == CORNERS else CORNERS
            found = f"{other}: otherwise {self._wrong} of {self._total} boxes are none"
            raise OtherForm(str(bad_field(file, field, f"{self.form} in pixels", found)))
