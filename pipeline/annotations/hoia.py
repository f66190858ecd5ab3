"""The HOIA form of PPDM, QPIC and their successors: `trainval_hico.json`, `test_hico.json`.

A list with one entry for each image: `file_name`, `annotations` (boxes: `bbox` xyxy in pixels,
`category_id` in COCO's numbering), `hoi_annotation` (`subject_id` and `object_id` count boxes from
0; `category_id` is the verb, counted from 1), and perhaps `width` and `height`. The published
V-COCO files of this form (`trainval_vcoco.json`, `test_vcoco.json`) count verbs from 0 and write
-1 for the object of a verb that has none.
"""

from __future__ import annotations

from typing import Any

from pipeline.annotations.base import (
    NO_INTERACTION_OF,
    Names,
    Place,
    RawImage,
    Reading,
    UnknownNumber,
    assemble,
)
from pipeline.types import Annotation
from pipeline.utils.errors import bad_field
from pipeline.vocabulary import Vocabulary

# Fewer labels tell nothing about the whole file.
ENOUGH_LABELS = 20


def parse_hoia(value: list[Any], reading: Reading) -> list[Annotation]:
    """All images of the file, in its order, those without a box too.

    Raises:
        InputError: an entry is structurally wrong, or has a blemish under `reading.strict`.
    """
    if not value:
        raise bad_field(reading.file, "file", "an entry for each image", "an empty list")
    names = Names(reading.file)
    annotations = []
    for index, entry in enumerate(value):
        where = f"entry {index}"
        with reading.entry():
            if not isinstance(entry, dict):
                raise bad_field(reading.file, where, "an object", entry)
            name = names.add(f"{where}: file_name", entry.get("file_name"))
            annotations.append(assemble(_raw(entry, name, reading), reading))
    with reading.entry():
        _check_numbering(annotations, reading)
    return annotations


def _check_numbering(annotations: list[Annotation], reading: Reading) -> None:
    """Verbs that are one off are no outlandish numbers, but they hardly ever go with the objects.

    Raises:
        InputError: most labels with an object are no interaction of the vocabulary.
    """
    dropped = reading.blemishes[NO_INTERACTION_OF]
    total = dropped + sum(int((item.hois[:, 1] >= 0).sum()) for item in annotations)
    if total >= ENOUGH_LABELS and 2 * dropped > total:
        first = reading.vocabulary.first_verb
        expected = f"interactions of {reading.vocabulary.name}, with verbs counted from {first}"
        found = f"{dropped} of {total} that are none; are they counted from {1 - first}?"
        raise UnknownNumber(str(bad_field(reading.file, "hoi_annotation", expected, found)))


def _raw(entry: dict[str, Any], name: str, reading: Reading) -> RawImage:
    place, vocabulary = Place(reading.file, name), reading.vocabulary
    size = None
    if entry.get("width") is not None or entry.get("height") is not None:
        size = place.size([entry.get("width"), entry.get("height")], "width and height")
    boxes, labels = [], []
    for index, row in enumerate(place.objects(entry, "annotations")):
        field = f"annotations[{index}]"
        boxes.append(place.box(row.get("bbox"), f"{field}.bbox"))
        labels.append(reading.label(place, row.get("category_id"), f"{field}.category_id"))
    reading.note_boxes(boxes, size)
    hois = []
    for index, row in enumerate(place.objects(entry, "hoi_annotation")):
        field = f"hoi_annotation[{index}]"
        human = place.whole(row.get("subject_id"), f"{field}.subject_id", "a box number")
        target = place.whole(row.get("object_id"), f"{field}.object_id", "a box number")
        with reading.entry():
            verb = _verb(row.get("category_id"), f"{field}.category_id", place, vocabulary)
            hois.append((human, target, verb))
    return RawImage(
        name,
        boxes,
        labels,
        hois,
        size,
        box_field=lambda index: f"annotations[{index}].bbox",
        hoi_field=lambda index: f"hoi_annotation[{index}]",
    )


def _verb(number: Any, field: str, place: Place, vocabulary: Vocabulary) -> int:
    """0-based verb of the file's number."""
    first = vocabulary.first_verb
    last = first + vocabulary.num_verbs - 1
    expected = f"a verb of {vocabulary.name} from {first} to {last}"
    if not first <= place.whole(number, field, expected) <= last:
        counts = "0; does this file count verbs from 0?" if number == 0 else number
        raise UnknownNumber(str(place.wrong(field, expected, counts)))
    return number - first
