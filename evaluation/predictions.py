"""Predictions on disk in the HOIA/PPDM JSON form, which other HOI projects read and write too.

A list with one entry for each image: `file_name`, `predictions` (boxes: `bbox` xyxy in pixels,
`category_id` as in annotation files) and `hoi_prediction` (`subject_id` and `object_id` pointing
into the boxes, `category_id` the verb counted from 1, `score`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import bad_field
from pipeline.files import read_json, replacing
from pipeline.types import Detections
from pipeline.vocabulary import Vocabulary

WHOLE, REAL = "iu", "iuf"


def write_predictions(
    path: Path | str, detections: Sequence[Detections], vocabulary: Vocabulary
) -> None:
    """Writes detections, one image a line, whole or not at all.

    Numbers get as many digits as tell them apart, so the file scores exactly like `detections`.
    """
    object_ids = np.array(vocabulary.object_ids)
    with replacing(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
        for index, item in enumerate(detections):
            entry = {
                "file_name": item.image_id,
                "predictions": [
                    {"bbox": box, "category_id": category}
                    for box, category in zip(
                        _shortest(item.boxes), object_ids[item.labels].tolist(), strict=True
                    )
                ],
                "hoi_prediction": [
                    {"subject_id": human, "object_id": target, "category_id": verb + 1, "score": s}
                    for (human, target, verb), s in zip(
                        item.hois.tolist(), _shortest(item.scores), strict=True
                    )
                ],
            }
            file.write(",\n" if index else "[\n")
            file.write(json.dumps(entry, separators=(",", ":"), ensure_ascii=False))
        file.write("\n]\n" if detections else "[]\n")


def read_predictions(path: Path | str, vocabulary: Vocabulary) -> list[Detections]:
    """Reads predictions of any HOI project that writes this form.

    Returns:
        one entry for each image of the file, in its order; scores as float64.

    Raises:
        InputError: the file is missing, is not JSON, names an image twice, or an entry is wrong.
    """
    entries = read_json(path)
    if not isinstance(entries, list) or not entries:
        raise bad_field(path, "file", "a list with an entry for each image", entries)
    detections, names = [], set()
    for index, entry in enumerate(entries):
        name = entry.get("file_name") if isinstance(entry, dict) else None
        if not isinstance(name, str):
            raise bad_field(path, f"entry {index}", "an object with file_name", entry)
        if name in names:
            raise bad_field(path, f"{name}: file_name", "each image once", "a second entry")
        names.add(name)
        detections.append(_detections(_Table(path, name, entry), vocabulary))
    return detections


def _detections(table: _Table, vocabulary: Vocabulary) -> Detections:
    boxes = table.column(
        *("predictions", "bbox", REAL, (4,)),
        "four finite numbers x1, y1, x2, y2 with x1 <= x2 and y1 <= y2",
        lambda box: np.isfinite(box).all(axis=1) & (box[:, 2:] >= box[:, :2]).all(axis=1),
    )
    categories = table.column(
        *("predictions", "category_id", WHOLE, ()),
        f"an object id of vocabulary {vocabulary.name}, one of"
        f" {min(vocabulary.object_ids)} to {max(vocabulary.object_ids)}",
        lambda category: np.isin(category, vocabulary.object_ids),
    )
    boxes_named = f"the number of a box, 0 to {len(boxes) - 1}"
    humans, objects = (
        table.column(
            *("hoi_prediction", key, WHOLE, ()),
            boxes_named,
            lambda box: (box >= 0) & (box < len(boxes)),
        )
        for key in ("subject_id", "object_id")
    )
    verbs = table.column(
        *("hoi_prediction", "category_id", WHOLE, ()),
        f"a verb number from 1 to {vocabulary.num_verbs} (verbs count from 1 here, not from 0)",
        lambda verb: (verb >= 1) & (verb <= vocabulary.num_verbs),
    )
    scores = table.column(
        *("hoi_prediction", "score", REAL, ()), "a finite number", lambda score: np.isfinite(score)
    )
    return Detections(
        image_id=table.image,
        boxes=boxes.astype(np.float32),
        labels=np.array([vocabulary.label_of_id[c] for c in categories.tolist()], dtype=np.int64),
        hois=np.column_stack([humans, objects, verbs - 1]).astype(np.int64),
        scores=scores.astype(np.float64),
    )


class _Table:
    """The lists of one image's entry, read column by column."""

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
    ) -> np.ndarray:
        """The values under `key` of all rows of `field`, checked.

        Args:
            kinds: numpy kinds the values may have.
            shape: shape of one value.
            expected: what an error says was expected.
            valid: from the column to a mask of its good rows.
        """
        rows = self._entry.get(field)
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise bad_field(self.path, f"{self.image}: {field}", "a list of objects", rows)
        if not rows:
            return np.zeros((0, *shape), dtype=np.int64 if kinds == WHOLE else np.float64)
        values = [row.get(key) for row in rows]
        column = _array(values)
        if column is None or column.dtype.kind not in kinds or column.shape[1:] != shape:
            good = np.array([_is(value, kinds, shape) for value in values])
        else:
            good = valid(column)
        if column is None or not good.all():
            row = int(np.argmin(good))
            where = f"{self.image}: {field}[{row}].{key}"
            raise bad_field(self.path, where, expected, values[row])
        return column


def _array(values: list[Any]) -> np.ndarray | None:
    """The values as an array, None where they differ in shape."""
    try:
        return np.array(values)
    except ValueError:
        return None


def _is(value: Any, kinds: str, shape: tuple[int, ...]) -> bool:
    single = _array(value)
    return single is not None and single.dtype.kind in kinds and single.shape == shape


def _shortest(values: np.ndarray) -> list[Any]:
    """Nested lists of Python floats with the fewest digits that give `values` back in their own
    precision (0.1, not 0.10000000149011612)."""
    return np.asarray(values).astype(str).astype(np.float64).tolist()
