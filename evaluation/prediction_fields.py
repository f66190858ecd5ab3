"""The lists of one image's entry in a predictions file, read column by column."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.box_form import CENTRES, SIDES
from pipeline.errors import InputError, bad_field
from pipeline.vocabulary import Vocabulary

WHOLE, REAL = "iu", "iuf"
BOOLS = frozenset((bool, np.bool_))


def object_hint(found: Any, vocabulary: Vocabulary) -> str:
    """What an object id that the vocabulary lacks may mean."""
    if isinstance(found, int) and 0 <= found <= vocabulary.num_objects:
        last = vocabulary.num_objects - 1
        return f"; does this file number objects 0 to {last} instead of by their ids?"
    return "; is this file of another vocabulary?" if isinstance(found, int) else ""


def verb_hint(found: Any, vocabulary: Vocabulary) -> str:
    """What a verb number outside the vocabulary may mean."""
    first = vocabulary.first_verb
    if isinstance(found, int) and found == (0 if first else vocabulary.num_verbs):
        return f"; this file counts verbs from {1 - first}, not from {first}"
    return "; is this file of another vocabulary?" if isinstance(found, int) else ""


def box_hint(found: list[float]) -> str:
    """What four numbers that are no box may mean."""
    return f"; does this file give {SIDES} or {CENTRES}?" if min(found[2:]) > 0 else ""


class Fields:
    """The lists of one image's entry."""

    def __init__(self, path: Path | str, image: str, entry: dict[str, Any]) -> None:
        self.path, self.image, self._entry = path, image, entry

    def column(
        self,
        field: str,
        key: str,
        kinds: str,
        shape: tuple[int, ...],
        expected: str,
        valid: Callable[[np.ndarray], np.ndarray],
        hint: Callable[[Any], str] = lambda found: "",
    ) -> np.ndarray:
        """The values under `key` of all rows of `field`, checked.

        Args:
            kinds: numpy kinds the values may have.
            shape: shape of one value.
            expected: what an error says was expected.
            valid: from the column to a mask of its good rows.
            hint: what a wrong value may mean, said behind it.
        """
        rows = self._entry.get(field)
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise bad_field(self.path, f"{self.image}: {field}", "a list of objects", rows)
        if not rows:
            return np.zeros((0, *shape), dtype=np.int64 if kinds == WHOLE else np.float64)
        values = [row.get(key) for row in rows]
        column = _array(values)
        fits = column is not None and column.dtype.kind in kinds and column.shape[1:] == shape
        if column is None or not fits or holds_bools(values):
            good = np.array([_is(value, kinds, shape) for value in values])
        else:
            good = valid(column)
        if column is None or not good.all():
            row = int(np.argmin(good))
            where = f"{self.image}: {field}[{row}].{key}"
            if key not in rows[row]:
                raise bad_field(self.path, where, expected, "nothing")
            value = values[row]
            raise InputError(f"{bad_field(self.path, where, expected, repr(value))}{hint(value)}")
        return column


def _array(values: list[Any]) -> np.ndarray | None:
    """The values as an array, None where they differ in shape."""
    try:
        return np.array(values)
    except ValueError:
        return None


def _is(value: Any, kinds: str, shape: tuple[int, ...]) -> bool:
    single = _array(value)
    return (
        single is not None
        and single.dtype.kind in kinds
        and single.shape == shape
        and not holds_bools([value])
    )


def holds_bools(values: Sequence[Any]) -> bool:
    """Whether a truth value stands among numbers or in lists of numbers, where numpy makes it 0
    or 1."""
    lists = (value for value in values if isinstance(value, list | tuple | np.ndarray))
    return not BOOLS.isdisjoint(map(type, chain(values, *lists)))
