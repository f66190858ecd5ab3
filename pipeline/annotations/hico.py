"""HICO-DET's annotation files: `anno_bbox.mat`, `instances_*.json` and the HOIA format."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np
from msgspec import Meta, Struct

from pipeline.annotations.base import (
    INDEX_OUT_OF_RANGE,
    UNKNOWN_INTERACTION,
    Box,
    Coordinate,
    ParseContext,
    RawAnnotation,
    Size,
    UnknownCategory,
    build_annotation,
)
from pipeline.types import Annotation
from pipeline.utils.errors import InputError, bad_field
from pipeline.utils.schema import Number, Positive, convert


class _InstancesFile(Struct):
    filenames: Annotated[list[Any], Meta(min_length=1)]
    annotation: list[Any]
    objects: list[Any]
    verbs: list[Any]
    correspondence: list[
        Annotated[tuple[Number, Number, Number], Meta(description="[hoi, object, verb]")]
    ]
    size: list[Any] | None = None


class _InstancesEntry(Struct):
    boxes_h: list[Box]
    boxes_o: list[Box]
    object: list[Number]
    verb: list[Number]
    hoi: list[Number]


def parse_instances(value: dict[str, Any], context: ParseContext) -> list[Annotation]:
    """Annotations of all images with a labelled pair, in the order of the file.

    Raises:
        InputError: an entry is structurally wrong, or has an issue and `context.strict` is set.
    """
    content = convert(value, _InstancesFile, context.file)
    count = len(content.filenames)
    sizes = [None] * count if content.size is None else content.size
    for key, rows in (("annotation", content.annotation), ("size", sizes)):
        if len(rows) != count:
            expected = f"{count} entries, as in filenames"
            raise bad_field(context.file, key, expected, len(rows))
    # Vocabulary indices by the file's.
    objects = _vocabulary_indices(content.objects, "objects", context.vocabulary.objects, context)
    verbs = _vocabulary_indices(content.verbs, "verbs", context.vocabulary.verbs, context)
    pairs = {}
    for index, (hoi, label, verb) in enumerate(content.correspondence):
        if not (0 <= label < len(objects) and 0 <= verb < len(verbs)):
            expected = f"[hoi, object below {len(objects)}, verb below {len(verbs)}]"
            raise bad_field(context.file, f"correspondence[{index}]", expected, [hoi, label, verb])
        pairs[hoi] = (label, verb)
    annotations = []
    for index, row in enumerate(content.annotation):
        with context.catch_errors():
            name = context.add_name(f"filenames[{index}]", content.filenames[index])
            entry = context.convert(row, _InstancesEntry, name)
            size = context.convert(sizes[index], Size | None, name, "size")
            raw = _parse_entry(name, entry, size, pairs, objects, verbs, context)
            if raw.hois:
                annotations.append(build_annotation(raw, context))
            else:
                context.unlabelled.add(name)
    return annotations


def _vocabulary_indices(
    names: list[Any], key: str, known: Sequence[str], context: ParseContext
) -> list[int]:
    """Index in `known` of every name in the file's list `key`."""
    for index, name in enumerate(names):
        if name not in known:
            expected = f"{key} of vocabulary {context.vocabulary.name}"
            raise bad_field(context.file, f"{key}[{index}]", expected, name)
    return [known.index(name) for name in names]


def _parse_entry(
    name: str,
    entry: _InstancesEntry,
    size: tuple[int, int] | None,
    pairs: dict[int, tuple[int, int]],
    objects: list[int],
    verbs: list[int],
    context: ParseContext,
) -> RawAnnotation:
    count = len(entry.hoi)
    for key in ("boxes_h", "boxes_o", "object", "verb"):
        if len(getattr(entry, key)) != count:
            expected = f"{count} entries, as many as in hoi"
            raise context.error(name, key, expected, len(getattr(entry, key)))
    for index, (hoi, *pair) in enumerate(zip(entry.hoi, entry.object, entry.verb, strict=True)):
        if pairs.get(hoi) != tuple(pair):
            expected = (
                f"the interaction of object {pair[0]} and verb {pair[1]}, as in correspondence"
            )
            raise UnknownCategory(str(context.error(name, f"hoi[{index}]", expected, hoi)))
    boxes = entry.boxes_h + entry.boxes_o
    context.add_boxes(boxes, size)
    return RawAnnotation(
        name,
        boxes,
        [context.vocabulary.person] * count + [objects[label] for label in entry.object],
        [(index, count + index, verbs[verb]) for index, verb in enumerate(entry.verb)],
        size,
        box_field=lambda i: f"boxes_h[{i}]" if i < count else f"boxes_o[{i - count}]",
        hoi_field=lambda i: f"hoi[{i}]",
    )


MAT_KEYS = {"train": "bbox_train", "test": "bbox_test"}
# Struct arrays: scipy returns an array of one element as the element itself.
ARRAYS = ("hoi", "bboxhuman", "bboxobject")


class _MatBox(Struct):
    x1: Coordinate
    y1: Coordinate
    x2: Coordinate
    y2: Coordinate


class _MatHoi(Struct):
    id: Number
    bboxhuman: list[_MatBox]
    bboxobject: list[_MatBox]
    connection: list[Annotated[tuple[Number, Number], Meta(description="two box indices")]]
    invis: int


class _MatSize(Struct):
    width: Positive
    height: Positive


class _MatImage(Struct):
    size: _MatSize
    hoi: list[_MatHoi]


def parse_anno_bbox(part: str, context: ParseContext) -> list[Annotation]:
    """Annotations of all images with a visible pair of part "train" or "test", in the file's order.

    Raises:
        InputError: the file cannot be read, an entry is structurally wrong, or has an issue and
            `context.strict` is set.
    """
    if part not in MAT_KEYS:
        raise InputError(f"{context.file}: part: expected {' or '.join(MAT_KEYS)}, found {part}")
    content = _load_mat(context, MAT_KEYS[part])
    actions = _read_action_table(content, context)
    annotations = []
    for index, entry in enumerate(_struct_list(content.get(MAT_KEYS[part])), 1):
        where = f"{MAT_KEYS[part]}({index})"
        with context.catch_errors():
            fields = entry if isinstance(entry, dict) else {}
            name = context.add_name(f"{where}.filename", fields.get("filename"))
            image = context.convert(_to_json(entry), _MatImage, name)
            raw = _parse_mat_image(name, image, actions, context)
            if raw.hois:
                annotations.append(build_annotation(raw, context))
            else:
                context.unlabelled.add(name)
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
    """A struct array as a list."""
    if value is None:
        return []
    return list(value) if isinstance(value, (list, np.ndarray)) else [value]


def _to_json(value: Any, key: str = "") -> Any:
    """A MATLAB value as JSON would hold it; MATLAB usually stores integers as floats."""
    if key == "connection":
        table = np.asarray(value)
        value = table.reshape(-1, 2) if table.ndim and table.size % 2 == 0 else value
    if isinstance(value, dict) and key in ARRAYS:
        value = [value]
    if isinstance(value, dict):
        return {name: _to_json(one, name) for name, one in value.items()}
    if isinstance(value, (list, np.ndarray)):
        return [_to_json(one) for one in np.asarray(value, dtype=object).tolist()]
    return int(value) if isinstance(value, float) and value.is_integer() else value


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


def _parse_mat_image(
    name: str, image: _MatImage, actions: list[tuple[int, int]], context: ParseContext
) -> RawAnnotation:
    boxes: list[tuple[float, ...]] = []
    labels: list[int] = []
    hois: list[tuple[int, int, int]] = []
    box_fields: list[str] = []
    hoi_fields: list[str] = []
    for number, hoi in enumerate(image.hoi, 1):
        field = f"hoi({number})"
        # Interactions that are labelled for the image but not visible have no boxes.
        if hoi.invis:
            continue
        if not 1 <= hoi.id <= len(actions):
            expected = f"a row of list_action, 1 to {len(actions)}"
            raise UnknownCategory(str(context.error(name, f"{field}.id", expected, hoi.id)))
        verb, label = actions[hoi.id - 1]
        first_human, first_object = len(boxes), len(boxes) + len(hoi.bboxhuman)
        for row, (human, target) in enumerate(hoi.connection, 1):
            where = f"{field}.connection({row})"
            if 1 <= human <= len(hoi.bboxhuman) and 1 <= target <= len(hoi.bboxobject):
                hois.append((first_human + human - 1, first_object + target - 1, verb))
                hoi_fields.append(where)
            else:
                sizes = [len(hoi.bboxhuman), len(hoi.bboxobject)]
                expected = f"[human, object] from 1 to {sizes}"
                context.add_issue(INDEX_OUT_OF_RANGE, name, where, expected, [human, target])
        for key, rows, category in (
            ("bboxhuman", hoi.bboxhuman, context.vocabulary.person),
            ("bboxobject", hoi.bboxobject, label),
        ):
            boxes += [(box.x1, box.y1, box.x2, box.y2) for box in rows]
            labels += [category] * len(rows)
            box_fields += [f"{field}.{key}({row + 1})" for row in range(len(rows))]
    size = (image.size.width, image.size.height)
    context.add_boxes(boxes, size)
    return RawAnnotation(
        name, boxes, labels, hois, size, box_fields.__getitem__, hoi_fields.__getitem__
    )


# With fewer labels, the numbering of verbs is not checked.
MIN_LABELS = 20


class _Box(Struct):
    bbox: Box
    category_id: Number


class _Label(Struct):
    subject_id: Number
    object_id: Number
    category_id: Number


class _HoiaEntry(Struct):
    annotations: list[_Box]
    hoi_annotation: list[_Label]
    width: int | None = None
    height: int | None = None


def parse_hoia(value: list[Any], context: ParseContext) -> list[Annotation]:
    """Annotations of all images, in the order of the file, including images without boxes.

    Raises:
        InputError: an entry is structurally wrong, or has an issue and `context.strict` is set.
    """
    if not value:
        raise bad_field(context.file, "file", "an entry for each image", "an empty list")
    annotations = []
    for index, row in enumerate(value):
        where = f"entry {index}"
        with context.catch_errors():
            if not isinstance(row, dict):
                raise bad_field(context.file, where, "an object", row)
            name = context.add_name(f"{where}: file_name", row.get("file_name"))
            entry = context.convert(row, _HoiaEntry, name)
            annotations.append(build_annotation(_parse_hoia_entry(name, entry, context), context))
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


def _parse_hoia_entry(name: str, entry: _HoiaEntry, context: ParseContext) -> RawAnnotation:
    size = None
    if entry.width is not None or entry.height is not None:
        size = context.convert([entry.width, entry.height], Size, name, "width and height")
    boxes = [row.bbox for row in entry.annotations]
    context.add_boxes(boxes, size)
    first, last = context.vocabulary.first_verb_id, context.vocabulary.last_verb_id
    hois = []
    for index, row in enumerate(entry.hoi_annotation):
        if first <= row.category_id <= last:
            hois.append((row.subject_id, row.object_id, row.category_id - first))
            continue
        expected = f"a verb of {context.vocabulary.name} from {first} to {last}"
        found = "0; does this file count verbs from 0?" if row.category_id == 0 else row.category_id
        field = f"hoi_annotation[{index}].category_id"
        with context.catch_errors():
            raise UnknownCategory(str(context.error(name, field, expected, found)))
    return RawAnnotation(
        name,
        boxes,
        [
            context.read_label(name, row.category_id, f"annotations[{index}].category_id")
            for index, row in enumerate(entry.annotations)
        ],
        hois,
        size,
        box_field=lambda index: f"annotations[{index}].bbox",
        hoi_field=lambda index: f"hoi_annotation[{index}]",
    )
