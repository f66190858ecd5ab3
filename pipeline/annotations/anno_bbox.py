"""The official annotations of HICO-DET: `anno_bbox.mat`, MATLAB structs in one file.

`bbox_train` and `bbox_test` have for each image `filename`, `size` and `hoi`, and each of these
its `id` (a row of `list_action`, counted from 1), `invis`, the boxes `bboxhuman` and `bboxobject`,
and `connection`, rows of two box numbers, counted from 1.

Box coordinates are taken as they stand. They count pixels from 1, x1 to x2 inclusive, and the
published JSON forms carry the same numbers (their smallest is 1, their largest the image's size),
so all three forms give equal boxes, and equal scores.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from pipeline.annotations.assemble import RawImage, assemble
from pipeline.annotations.fields import Names, Place, UnknownNumber
from pipeline.annotations.reading import PAST_LIST, Reading
from pipeline.errors import InputError, bad_field
from pipeline.types import Annotation

PARTS = {"train": "bbox_train", "test": "bbox_test"}
CORNERS = ("x1", "y1", "x2", "y2")


def parse_anno_bbox(part: str, reading: Reading) -> list[Annotation]:
    """All images of a part that have a visible pair, in the file's order.

    Raises:
        InputError: the file cannot be read, an entry is structurally wrong, or it has a blemish
            under `reading.strict`.
    """
    if part not in PARTS:
        raise InputError(f"{reading.file}: part: expected {' or '.join(PARTS)}, found {part}")
    content = _content(reading, PARTS[part])
    actions = _actions(content, reading)
    names = Names(reading.file)
    annotations = []
    for index, entry in enumerate(_structs(content.get(PARTS[part]))):
        where = f"{PARTS[part]}({index + 1})"
        with reading.entry():
            if not isinstance(entry, dict):
                raise bad_field(reading.file, where, "a struct", entry)
            place = Place(reading.file, names.add(f"{where}.filename", entry.get("filename")))
            raw = _raw(entry, place, actions, reading)
            if raw.hois:
                annotations.append(assemble(raw, reading))
            else:
                reading.unlabelled.add(raw.name)
    return annotations


def _content(reading: Reading, part: str) -> dict[str, Any]:
    from scipy.io import loadmat

    if not reading.file.is_file():
        raise InputError(f"{reading.file}: no such file")
    try:
        return loadmat(reading.file, simplify_cells=True, variable_names=[part, "list_action"])
    # On damaged bytes scipy's reader fails in every way a program can.
    except Exception as error:
        raise InputError(f"{reading.file}: expected a MATLAB file, found {error}") from None


def _structs(value: Any) -> list[Any]:
    """A struct array as a list, however many elements it has."""
    if value is None:
        return []
    return list(value) if isinstance(value, (list, np.ndarray)) else [value]


def _actions(content: dict[str, Any], reading: Reading) -> list[tuple[int, int]]:
    """(verb, object) of the vocabulary for each of the file's interactions, by name."""
    vocabulary = reading.vocabulary
    actions = []
    for index, action in enumerate(_structs(content.get("list_action"))):
        row = action if isinstance(action, dict) else {}
        verb, noun = str(row.get("vname")), str(row.get("nname"))
        if verb not in vocabulary.verbs or noun not in vocabulary.objects:
            expected = f"vname and nname of vocabulary {vocabulary.name}"
            found = f"{verb} {noun}"
            raise bad_field(reading.file, f"list_action({index + 1})", expected, found)
        actions.append((vocabulary.verbs.index(verb), vocabulary.objects.index(noun)))
    if not actions:
        raise bad_field(reading.file, "list_action", "the table of interactions", "none")
    return actions


def _raw(
    entry: dict[str, Any], place: Place, actions: list[tuple[int, int]], reading: Reading
) -> RawImage:
    size = entry.get("size")
    if not isinstance(size, dict):
        raise place.wrong("size", "a struct with width and height", size)
    whole = [_whole(size.get(key), f"size.{key}", place) for key in ("width", "height")]
    sides = place.size(whole, "size")
    boxes: list[list[float]] = []
    labels: list[int] = []
    hois: list[tuple[int, int, int]] = []
    box_fields: list[str] = []
    hoi_fields: list[str] = []
    for number, hoi in enumerate(_structs(entry.get("hoi")), 1):
        field = f"hoi({number})"
        if not isinstance(hoi, dict):
            raise place.wrong(field, "a struct", hoi)
        if _whole(hoi.get("invis"), f"{field}.invis", place):
            continue
        action = _whole(hoi.get("id"), f"{field}.id", place)
        if not 1 <= action <= len(actions):
            expected = f"a row of list_action, 1 to {len(actions)}"
            raise UnknownNumber(str(place.wrong(f"{field}.id", expected, action)))
        verb, label = actions[action - 1]
        humans = _boxes(hoi.get("bboxhuman"), f"{field}.bboxhuman", place)
        targets = _boxes(hoi.get("bboxobject"), f"{field}.bboxobject", place)
        rows = _connections(hoi.get("connection"), f"{field}.connection", place)
        offset = len(boxes)
        for row, (human, target) in enumerate(rows, 1):
            where = f"{field}.connection({row})"
            if not (1 <= human <= len(humans) and 1 <= target <= len(targets)):
                expected = f"[human, object] from 1 to [{len(humans)}, {len(targets)}]"
                reading.blemish(PAST_LIST, place.image, where, expected, [human, target])
                continue
            hois.append((offset + human - 1, offset + len(humans) + target - 1, verb))
            hoi_fields.append(where)
        boxes += humans + targets
        labels += [reading.vocabulary.person] * len(humans) + [label] * len(targets)
        box_fields += [f"{field}.bboxhuman({i + 1})" for i in range(len(humans))]
        box_fields += [f"{field}.bboxobject({i + 1})" for i in range(len(targets))]
    reading.note_boxes(boxes, sides)
    return RawImage(
        place.image,
        boxes,
        labels,
        hois,
        sides,
        box_field=box_fields.__getitem__,
        hoi_field=hoi_fields.__getitem__,
    )


def _boxes(value: Any, field: str, place: Place) -> list[list[float]]:
    boxes = []
    for index, box in enumerate(_structs(value), 1):
        if not isinstance(box, dict):
            raise place.wrong(f"{field}({index})", "a struct with x1, x2, y1, y2", box)
        boxes.append(place.box([box.get(key) for key in CORNERS], f"{field}({index})"))
    return boxes


def _connections(value: Any, field: str, place: Place) -> list[tuple[int, int]]:
    """Rows of (human, object), counted from 1."""
    table = np.asarray(value)
    whole = table.dtype.kind in "iuf" and np.array_equal(table, np.trunc(table))
    if not whole or table.size % 2:
        raise place.wrong(field, "rows of two box numbers", value)
    return [(int(row[0]), int(row[1])) for row in table.reshape(-1, 2)]


def _whole(value: Any, field: str, place: Place) -> int:
    """A whole number; MATLAB keeps most of them as floats."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return place.whole(value, field)
