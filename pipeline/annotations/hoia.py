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
    UNKNOWN_INTERACTION,
    EntryReader,
    ParseContext,
    RawAnnotation,
    UniqueImageNames,
    UnknownCategory,
    build_annotation,
)
from pipeline.types import Annotation
from pipeline.utils.errors import bad_field
from pipeline.vocabulary import Vocabulary

# Fewer labels tell nothing about the whole file.
MIN_LABELS = 20


def parse_hoia(value: list[Any], context: ParseContext) -> list[Annotation]:
    """All images of the file, in its order, those without a box too.

    Raises:
        InputError: an entry is structurally wrong, or has an issue under `context.strict`.
    """
    if not value:
        raise bad_field(context.file, "file", "an entry for each image", "an empty list")
    names = UniqueImageNames(context.file)
    annotations = []
    for index, entry in enumerate(value):
        where = f"entry {index}"
        with context.catch_errors():
            if not isinstance(entry, dict):
                raise bad_field(context.file, where, "an object", entry)
            name = names.add(f"{where}: file_name", entry.get("file_name"))
            annotations.append(build_annotation(_parse_entry(entry, name, context), context))
    with context.catch_errors():
        _check_numbering(annotations, context)
    return annotations


def _check_numbering(annotations: list[Annotation], context: ParseContext) -> None:
    """Verbs that are one off are no outlandish numbers, but they hardly ever go with the objects.

    Raises:
        InputError: most labels with an object are no interaction of the vocabulary.
    """
    dropped = context.issues[UNKNOWN_INTERACTION]
    total = dropped + sum(int((item.hois[:, 1] >= 0).sum()) for item in annotations)
    if total >= MIN_LABELS and 2 * dropped > total:
        first = context.vocabulary.first_verb_id
        expected = f"interactions of {context.vocabulary.name}, with verbs counted from {first}"
        found = f"{dropped} of {total} that are none; are they counted from {1 - first}?"
        raise UnknownCategory(str(bad_field(context.file, "hoi_annotation", expected, found)))


def _parse_entry(entry: dict[str, Any], name: str, context: ParseContext) -> RawAnnotation:
    reader, vocabulary = EntryReader(context.file, name), context.vocabulary
    size = None
    if entry.get("width") is not None or entry.get("height") is not None:
        size = reader.read_size([entry.get("width"), entry.get("height")], "width and height")
    boxes, labels = [], []
    for index, row in enumerate(reader.read_objects(entry, "annotations")):
        field = f"annotations[{index}]"
        boxes.append(reader.read_box(row.get("bbox"), f"{field}.bbox"))
        labels.append(context.read_label(reader, row.get("category_id"), f"{field}.category_id"))
    context.add_boxes(boxes, size)
    hois = []
    for index, row in enumerate(reader.read_objects(entry, "hoi_annotation")):
        field = f"hoi_annotation[{index}]"
        human = reader.read_int(row.get("subject_id"), f"{field}.subject_id", "a box number")
        target = reader.read_int(row.get("object_id"), f"{field}.object_id", "a box number")
        with context.catch_errors():
            verb = _verb_index(row.get("category_id"), f"{field}.category_id", reader, vocabulary)
            hois.append((human, target, verb))
    return RawAnnotation(
        name,
        boxes,
        labels,
        hois,
        size,
        box_field=lambda index: f"annotations[{index}].bbox",
        hoi_field=lambda index: f"hoi_annotation[{index}]",
    )


def _verb_index(number: Any, field: str, reader: EntryReader, vocabulary: Vocabulary) -> int:
    """0-based verb of the file's number."""
    first = vocabulary.first_verb_id
    last = first + vocabulary.num_verbs - 1
    expected = f"a verb of {vocabulary.name} from {first} to {last}"
    if not first <= reader.read_int(number, field, expected) <= last:
        counts = "0; does this file count verbs from 0?" if number == 0 else number
        raise UnknownCategory(str(reader.error(field, expected, counts)))
    return number - first
