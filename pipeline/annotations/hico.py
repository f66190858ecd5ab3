"""HICO-DET's own annotation files: `anno_bbox.mat` and `instances_*.json`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.annotations.base import (
    PAST_LIST,
    Names,
    Place,
    RawImage,
    Reading,
    UnknownNumber,
    assemble,
)
from pipeline.types import Annotation
from pipeline.utils.errors import InputError, bad_field

LISTS = ("boxes_h", "boxes_o", "object", "verb", "hoi")


@dataclass(frozen=True)
class Numbering:
    """The file's numbers in the vocabulary's: lists of indices by the file's index.

    Attributes:
        objects, verbs: object and verb index of the vocabulary.
        pairs: the file's (object, verb) of its interactions.
    """

    objects: list[int]
    verbs: list[int]
    pairs: dict[int, tuple[int, int]]


def parse_instances(value: dict[str, Any], reading: Reading) -> list[Annotation]:
    """All images with a labelled pair, in the file's order.

    Raises:
        InputError: an entry is structurally wrong, or has a blemish under `reading.strict`.
    """
    file = reading.file
    filenames = _column(value, "filenames", value["filenames"], file)
    entries = _column(value, "annotation", filenames, file)
    sizes = _column(value, "size", filenames, file) if "size" in value else [None] * len(entries)
    numbering = _numbering(value, reading)
    names = Names(file)
    annotations = []
    for index, entry in enumerate(entries):
        with reading.entry():
            name = names.add(f"filenames[{index}]", filenames[index])
            if not isinstance(entry, dict):
                raise bad_field(file, f"{name}: annotation", "an object", entry)
            raw = _raw(entry, sizes[index], Place(file, name), numbering, reading)
            if raw.hois:
                annotations.append(assemble(raw, reading))
            else:
                reading.unlabelled.add(raw.name)
    return annotations


def _column(value: dict[str, Any], key: str, filenames: Any, file: Path) -> list[Any]:
    rows = value[key]
    if not isinstance(rows, list) or not rows:
        raise bad_field(file, key, "a non-empty list", rows)
    if len(rows) != len(filenames):
        raise bad_field(file, key, f"{len(filenames)} entries, as in filenames", len(rows))
    return rows


def _numbering(value: dict[str, Any], reading: Reading) -> Numbering:
    vocabulary, file = reading.vocabulary, reading.file
    objects = _indices(value, "objects", vocabulary.objects, reading)
    verbs = _indices(value, "verbs", vocabulary.verbs, reading)
    pairs = {}
    rows = value.get("correspondence")
    if not isinstance(rows, list):
        raise bad_field(file, "correspondence", "a list of [hoi, object, verb]", rows)
    for index, row in enumerate(rows):
        good = isinstance(row, list) and len(row) == 3 and all(type(n) is int for n in row)
        if not good or not (0 <= row[1] < len(objects) and 0 <= row[2] < len(verbs)):
            expected = f"[hoi, object below {len(objects)}, verb below {len(verbs)}]"
            raise bad_field(file, f"correspondence[{index}]", expected, row)
        pairs[row[0]] = (row[1], row[2])
    return Numbering(objects, verbs, pairs)


def _indices(value: dict[str, Any], key: str, known: Sequence[str], reading: Reading) -> list[int]:
    """Vocabulary index of each of the file's names."""
    names = value.get(key)
    if not isinstance(names, list):
        raise bad_field(reading.file, key, "a list of names", names)
    for index, name in enumerate(names):
        if name not in known:
            expected = f"{key} of vocabulary {reading.vocabulary.name}"
            raise bad_field(reading.file, f"{key}[{index}]", expected, name)
    return [known.index(name) for name in names]


def _raw(
    entry: dict[str, Any], size: Any, place: Place, numbering: Numbering, reading: Reading
) -> RawImage:
    humans, targets, objects, verbs, hois = (_list(entry, key, place) for key in LISTS)
    count = len(hois)
    for key, rows in zip(LISTS, (humans, targets, objects, verbs, hois), strict=True):
        if len(rows) != count:
            raise place.wrong(key, f"{count} entries, as many as in hoi", len(rows))
    boxes = [place.box(box, f"boxes_h[{index}]") for index, box in enumerate(humans)]
    boxes += [place.box(box, f"boxes_o[{index}]") for index, box in enumerate(targets)]
    sides = None if size is None else place.size(size, "size")
    reading.note_boxes(boxes, sides)
    labels, rows = [reading.vocabulary.person] * count, []
    for index in range(count):
        hoi = place.whole(hois[index], f"hoi[{index}]")
        label = place.whole(objects[index], f"object[{index}]")
        verb = place.whole(verbs[index], f"verb[{index}]")
        if numbering.pairs.get(hoi) != (label, verb):
            expected = f"the interaction of object {label} and verb {verb}, as in correspondence"
            raise UnknownNumber(str(place.wrong(f"hoi[{index}]", expected, hoi)))
        labels.append(numbering.objects[label])
        rows.append((index, count + index, numbering.verbs[verb]))
    return RawImage(
        place.image,
        boxes,
        labels,
        rows,
        sides,
        box_field=lambda i: f"boxes_h[{i}]" if i < count else f"boxes_o[{i - count}]",
        hoi_field=lambda i: f"hoi[{i}]",
    )


def _list(entry: dict[str, Any], key: str, place: Place) -> list[Any]:
    rows = place.value(entry, key, key, "a list")
    if not isinstance(rows, list):
        raise place.wrong(key, "a list", rows)
    return rows


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
            raw = _raw_mat(entry, place, actions, reading)
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


def _raw_mat(
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
