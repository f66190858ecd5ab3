"""The pair form of HICO-DET: `instances_train2015.json`, `instances_test2015.json`.

An object with `filenames`, `annotation` (per image `boxes_h`, `boxes_o` xyxy and `object`, `verb`,
`hoi`, one entry for each labelled pair and verb), perhaps `size` [[w, h]], and the file's own
numbering: `objects` and `verbs` (names; the objects in alphabetical order) and `correspondence`
[[hoi, object, verb]]. Indices count from 0. Box coordinates are those of the official
`anno_bbox.mat`, like the HOIA form's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.annotations.assemble import RawImage, assemble
from pipeline.annotations.fields import Names, Place, UnknownNumber
from pipeline.annotations.reading import Reading
from pipeline.errors import bad_field
from pipeline.types import Annotation

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
