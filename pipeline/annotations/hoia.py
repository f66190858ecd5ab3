"""The HOIA format of PPDM, QPIC and later methods: `trainval_hico.json`, `test_hico.json`.

A list with one entry per image: `file_name`; `annotations` (boxes: `bbox` xyxy in pixels,
`category_id` is COCO's id); `hoi_annotation` (`subject_id` and `object_id` are 0-based box indices,
`category_id` is the 1-based verb); optionally `width` and `height`. The published V-COCO files of
this format (`trainval_vcoco.json`, `test_vcoco.json`) have 0-based verbs, and object -1 for verbs
without object.
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

# The numbering of verbs is not judged from fewer labels.
MIN_LABELS = 20


def parse_hoia(value: list[Any], context: ParseContext) -> list[Annotation]:
    """Annotations of all images, in the order of the file, including images without boxes.

    Raises:
        InputError: an entry is structurally wrong, or has an issue and `context.strict` is set.
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
    """Refuses a file whose verbs are counted from the other first number.

    Almost all verb ids that are off by one are valid, but they seldom fit the labelled objects.

    Raises:
        UnknownCategory: most labels with an object are not an interaction of the vocabulary.
    """
    dropped = context.issues[UNKNOWN_INTERACTION]
    total = dropped + sum(int((item.hois[:, 1] >= 0).sum()) for item in annotations)
    if total >= MIN_LABELS and 2 * dropped > total:
        first = context.vocabulary.first_verb_id
        expected = f"interactions of {context.vocabulary.name}, with verbs counted from {first}"
        found = f"{dropped} of {total} labels that are not; are verbs counted from {1 - first}?"
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
        human = reader.read_int(row.get("subject_id"), f"{field}.subject_id", "a box index")
        target = reader.read_int(row.get("object_id"), f"{field}.object_id", "a box index")
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
    """Verb index of a verb id of the file."""
    first = vocabulary.first_verb_id
    last = first + vocabulary.num_verbs - 1
    expected = f"a verb of {vocabulary.name} from {first} to {last}"
    if not first <= reader.read_int(number, field, expected) <= last:
        counts = "0; does this file count verbs from 0?" if number == 0 else number
        raise UnknownCategory(str(reader.error(field, expected, counts)))
    return number - first
