"""HICO-DET's annotation files: `anno_bbox.mat`, `instances_*.json` and the HOIA format."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.annotations.base import (
    INDEX_OUT_OF_RANGE,
    UNKNOWN_INTERACTION,
    EntryReader,
    ParseContext,
    RawAnnotation,
    UniqueImageNames,
    UnknownCategory,
    build_annotation,
)
from pipeline.types import Annotation
from pipeline.utils.errors import InputError, bad_field
from pipeline.vocabulary import Vocabulary

ENTRY_KEYS = ("boxes_h", "boxes_o", "object", "verb", "hoi")


@dataclass(frozen=True)
class CategoryMapping:
    """Indices of an `instances_*.json` file mapped to those of the vocabulary.

    Attributes:
        objects, verbs: object and verb index of the vocabulary by index of the file.
        pairs: (object, verb) indices of the file by its interaction index.
    """

    objects: list[int]
    verbs: list[int]
    pairs: dict[int, tuple[int, int]]


def parse_instances(value: dict[str, Any], context: ParseContext) -> list[Annotation]:
    """Annotations of all images with a labelled pair, in the order of the file.

    Args:
        value: parsed JSON of an `instances_*.json` file.
        context: settings and counts of reading the file.

    Raises:
        InputError: an entry is structurally wrong, or has an issue and `context.strict` is set.
    """
    file = context.file
    filenames = _read_column(value, "filenames", value["filenames"], file)
    entries = _read_column(value, "annotation", filenames, file)
    sizes = (
        _read_column(value, "size", filenames, file) if "size" in value else [None] * len(entries)
    )
    mapping = _read_category_mapping(value, context)
    names = UniqueImageNames(file)
    annotations = []
    for index, entry in enumerate(entries):
        with context.catch_errors():
            name = names.add(f"filenames[{index}]", filenames[index])
            if not isinstance(entry, dict):
                raise bad_field(file, f"{name}: annotation", "an object", entry)
            raw = _parse_entry(entry, sizes[index], EntryReader(file, name), mapping, context)
            if raw.hois:
                annotations.append(build_annotation(raw, context))
            else:
                context.unlabelled.add(raw.name)
    return annotations


def _read_column(value: dict[str, Any], key: str, filenames: Any, file: Path) -> list[Any]:
    rows = value[key]
    if not isinstance(rows, list) or not rows:
        raise bad_field(file, key, "a non-empty list", rows)
    if len(rows) != len(filenames):
        raise bad_field(file, key, f"{len(filenames)} entries, as in filenames", len(rows))
    return rows


def _read_category_mapping(value: dict[str, Any], context: ParseContext) -> CategoryMapping:
    vocabulary, file = context.vocabulary, context.file
    objects = _vocabulary_indices(value, "objects", vocabulary.objects, context)
    verbs = _vocabulary_indices(value, "verbs", vocabulary.verbs, context)
    pairs = {}
    rows = value.get("correspondence")
    if not isinstance(rows, list):
        raise bad_field(file, "correspondence", "a list of [hoi, object, verb]", rows)
    for index, row in enumerate(rows):
        is_valid = isinstance(row, list) and len(row) == 3 and all(type(n) is int for n in row)
        if not is_valid or not (0 <= row[1] < len(objects) and 0 <= row[2] < len(verbs)):
            expected = f"[hoi, object below {len(objects)}, verb below {len(verbs)}]"
            raise bad_field(file, f"correspondence[{index}]", expected, row)
        pairs[row[0]] = (row[1], row[2])
    return CategoryMapping(objects, verbs, pairs)


def _vocabulary_indices(
    value: dict[str, Any], key: str, known: Sequence[str], context: ParseContext
) -> list[int]:
    """Index in `known` of every name in the file's list `key`."""
    names = value.get(key)
    if not isinstance(names, list):
        raise bad_field(context.file, key, "a list of names", names)
    for index, name in enumerate(names):
        if name not in known:
            expected = f"{key} of vocabulary {context.vocabulary.name}"
            raise bad_field(context.file, f"{key}[{index}]", expected, name)
    return [known.index(name) for name in names]


def _parse_entry(
    entry: dict[str, Any],
    size: Any,
    reader: EntryReader,
    mapping: CategoryMapping,
    context: ParseContext,
) -> RawAnnotation:
    humans, targets, objects, verbs, hois = (_read_list(entry, key, reader) for key in ENTRY_KEYS)
    count = len(hois)
    for key, rows in zip(ENTRY_KEYS, (humans, targets, objects, verbs, hois), strict=True):
        if len(rows) != count:
            raise reader.error(key, f"{count} entries, as many as in hoi", len(rows))
    boxes = [reader.read_box(box, f"boxes_h[{index}]") for index, box in enumerate(humans)]
    boxes += [reader.read_box(box, f"boxes_o[{index}]") for index, box in enumerate(targets)]
    image_size = None if size is None else reader.read_size(size, "size")
    context.add_boxes(boxes, image_size)
    labels, rows = [context.vocabulary.person] * count, []
    for index in range(count):
        hoi = reader.read_int(hois[index], f"hoi[{index}]")
        label = reader.read_int(objects[index], f"object[{index}]")
        verb = reader.read_int(verbs[index], f"verb[{index}]")
        if mapping.pairs.get(hoi) != (label, verb):
            expected = f"the interaction of object {label} and verb {verb}, as in correspondence"
            raise UnknownCategory(str(reader.error(f"hoi[{index}]", expected, hoi)))
        labels.append(mapping.objects[label])
        rows.append((index, count + index, mapping.verbs[verb]))
    return RawAnnotation(
        reader.image,
        boxes,
        labels,
        rows,
        image_size,
        box_field=lambda i: f"boxes_h[{i}]" if i < count else f"boxes_o[{i - count}]",
        hoi_field=lambda i: f"hoi[{i}]",
    )


def _read_list(entry: dict[str, Any], key: str, reader: EntryReader) -> list[Any]:
    rows = reader.require(entry, key, key, "a list")
    if not isinstance(rows, list):
        raise reader.error(key, "a list", rows)
    return rows


MAT_KEYS = {"train": "bbox_train", "test": "bbox_test"}
BOX_KEYS = ("x1", "y1", "x2", "y2")


def parse_anno_bbox(part: str, context: ParseContext) -> list[Annotation]:
    """Annotations of all images with a visible pair, in the order of the file.

    Args:
        part: "train" or "test".
        context: settings and counts of reading the file, an `anno_bbox.mat`.

    Raises:
        InputError: the file cannot be read, an entry is structurally wrong, or has an issue and
            `context.strict` is set.
    """
    if part not in MAT_KEYS:
        raise InputError(f"{context.file}: part: expected {' or '.join(MAT_KEYS)}, found {part}")
    content = _load_mat(context, MAT_KEYS[part])
    actions = _read_action_table(content, context)
    names = UniqueImageNames(context.file)
    annotations = []
    for index, entry in enumerate(_struct_list(content.get(MAT_KEYS[part]))):
        where = f"{MAT_KEYS[part]}({index + 1})"
        with context.catch_errors():
            if not isinstance(entry, dict):
                raise bad_field(context.file, where, "a struct", entry)
            reader = EntryReader(
                context.file, names.add(f"{where}.filename", entry.get("filename"))
            )
            raw = _parse_mat_entry(entry, reader, actions, context)
            if raw.hois:
                annotations.append(build_annotation(raw, context))
            else:
                context.unlabelled.add(raw.name)
    return annotations


def _load_mat(context: ParseContext, part: str) -> dict[str, Any]:
    from scipy.io import loadmat

    if not context.file.is_file():
        raise InputError(f"{context.file}: no such file")
    try:
        return loadmat(context.file, simplify_cells=True, variable_names=[part, "list_action"])
    # scipy's reader raises all kinds of errors on damaged bytes.
    except Exception as error:
        raise InputError(f"{context.file}: expected a MATLAB file, found {error}") from None


def _struct_list(value: Any) -> list[Any]:
    """A struct array as a list; scipy returns an array of one element as the element itself."""
    if value is None:
        return []
    return list(value) if isinstance(value, (list, np.ndarray)) else [value]


def _read_action_table(content: dict[str, Any], context: ParseContext) -> list[tuple[int, int]]:
    """(verb, object) indices of the vocabulary for every interaction of the file."""
    vocabulary = context.vocabulary
    actions = []
    for index, action in enumerate(_struct_list(content.get("list_action"))):
        row = action if isinstance(action, dict) else {}
        verb, noun = str(row.get("vname")), str(row.get("nname"))
        if verb not in vocabulary.verbs or noun not in vocabulary.objects:
            expected = f"vname and nname of vocabulary {vocabulary.name}"
            found = f"{verb} {noun}"
            raise bad_field(context.file, f"list_action({index + 1})", expected, found)
        actions.append((vocabulary.verbs.index(verb), vocabulary.objects.index(noun)))
    if not actions:
        raise bad_field(context.file, "list_action", "the table of interactions", "none")
    return actions


def _parse_mat_entry(
    entry: dict[str, Any],
    reader: EntryReader,
    actions: list[tuple[int, int]],
    context: ParseContext,
) -> RawAnnotation:
    size = entry.get("size")
    if not isinstance(size, dict):
        raise reader.error("size", "a struct with width and height", size)
    integers = [_read_int(size.get(key), f"size.{key}", reader) for key in ("width", "height")]
    image_size = reader.read_size(integers, "size")
    boxes: list[list[float]] = []
    labels: list[int] = []
    hois: list[tuple[int, int, int]] = []
    box_fields: list[str] = []
    hoi_fields: list[str] = []
    for number, hoi in enumerate(_struct_list(entry.get("hoi")), 1):
        field = f"hoi({number})"
        if not isinstance(hoi, dict):
            raise reader.error(field, "a struct", hoi)
        # Interactions that are labelled for the image but not visible have no boxes.
        if _read_int(hoi.get("invis"), f"{field}.invis", reader):
            continue
        action = _read_int(hoi.get("id"), f"{field}.id", reader)
        if not 1 <= action <= len(actions):
            expected = f"a row of list_action, 1 to {len(actions)}"
            raise UnknownCategory(str(reader.error(f"{field}.id", expected, action)))
        verb, label = actions[action - 1]
        humans = _read_boxes(hoi.get("bboxhuman"), f"{field}.bboxhuman", reader)
        targets = _read_boxes(hoi.get("bboxobject"), f"{field}.bboxobject", reader)
        pairs = _read_connections(hoi.get("connection"), f"{field}.connection", reader)
        offset = len(boxes)
        for row, (human, target) in enumerate(pairs, 1):
            where = f"{field}.connection({row})"
            if not (1 <= human <= len(humans) and 1 <= target <= len(targets)):
                expected = f"[human, object] from 1 to [{len(humans)}, {len(targets)}]"
                context.add_issue(
                    INDEX_OUT_OF_RANGE, reader.image, where, expected, [human, target]
                )
                continue
            hois.append((offset + human - 1, offset + len(humans) + target - 1, verb))
            hoi_fields.append(where)
        boxes += humans + targets
        labels += [context.vocabulary.person] * len(humans) + [label] * len(targets)
        box_fields += [f"{field}.bboxhuman({i + 1})" for i in range(len(humans))]
        box_fields += [f"{field}.bboxobject({i + 1})" for i in range(len(targets))]
    context.add_boxes(boxes, image_size)
    return RawAnnotation(
        reader.image,
        boxes,
        labels,
        hois,
        image_size,
        box_field=box_fields.__getitem__,
        hoi_field=hoi_fields.__getitem__,
    )


def _read_boxes(value: Any, field: str, reader: EntryReader) -> list[list[float]]:
    boxes = []
    for index, box in enumerate(_struct_list(value), 1):
        if not isinstance(box, dict):
            raise reader.error(f"{field}({index})", "a struct with x1, x2, y1, y2", box)
        boxes.append(reader.read_box([box.get(key) for key in BOX_KEYS], f"{field}({index})"))
    return boxes


def _read_connections(value: Any, field: str, reader: EntryReader) -> list[tuple[int, int]]:
    """Rows of (human, object), 1-based."""
    table = np.asarray(value)
    is_integer = table.dtype.kind in "iuf" and np.array_equal(table, np.trunc(table))
    if not is_integer or table.size % 2:
        raise reader.error(field, "rows of two box indices", value)
    return [(int(row[0]), int(row[1])) for row in table.reshape(-1, 2)]


def _read_int(value: Any, field: str, reader: EntryReader) -> int:
    """An integer, which MATLAB usually stores as a float."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return reader.read_int(value, field)


# With fewer labels, the numbering of verbs is not checked.
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
            annotations.append(build_annotation(_parse_hoia_entry(entry, name, context), context))
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


def _parse_hoia_entry(entry: dict[str, Any], name: str, context: ParseContext) -> RawAnnotation:
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
