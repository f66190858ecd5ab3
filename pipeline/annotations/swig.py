"""SWIG-HOI's annotation files, `swig_trainval_1000.json` and `swig_test_1000.json`.

All ids of objects and actions count from 0. `aux_category_id`, further objects that annotators
named for a box, is not read: the zero-shot projects (THID, CMD-SE, INP-CC) do not train on it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from msgspec import Struct

from pipeline.annotations.base import (
    Box,
    DuplicateImage,
    ParseContext,
    RawAnnotation,
    UnknownCategory,
    build_annotation,
)
from pipeline.types import Annotation
from pipeline.utils.errors import bad_field
from pipeline.utils.schema import Number, Positive

FIELDS = BOXES, LABELS = "box_annotations", "hoi_annotations"


class _Box(Struct):
    bbox: Box
    category_id: Number


class _Label(Struct):
    subject_id: Number
    object_id: Number
    action_id: Number


class _Entry(Struct):
    img_id: Number
    width: Positive
    height: Positive
    box_annotations: list[_Box] = []
    hoi_annotations: list[_Label] = []


@dataclass(frozen=True, eq=False)
class SwigImage:
    """Labels of one image as they stand in the file, which the benchmark's scores are against:
    boxes are not clipped, and repeated labels count.

    Attributes:
        id: the file's id of the image, by which published predictions name it.
        name: file name.
        size: width and height in pixels.
        boxes: (N, 4) float64, xyxy, pixels.
        pairs: (K, 2) int64, boxes of person and object of every label.
        interactions: (K,) int64, HOI index of every label.
    """

    id: int
    name: str
    size: tuple[int, int]
    boxes: np.ndarray
    pairs: np.ndarray
    interactions: np.ndarray


def is_swig(value: Any) -> bool:
    """Whether the content of a JSON file has the form of SWIG-HOI, by the entry of any image: one
    without boxes and labels may lack both."""
    entries = value if isinstance(value, list) else []
    return any(isinstance(row, dict) and not row.keys().isdisjoint(FIELDS) for row in entries)


def parse_swig(
    value: list[Any], context: ParseContext
) -> tuple[list[Annotation], tuple[SwigImage, ...]]:
    """Annotations of the images with a label, and the ground truth of all images.

    Images without boxes or labels are skipped in training and testing, as in the public projects.

    Raises:
        InputError: an entry is structurally wrong, or has an issue and `context.strict` is set.
    """
    annotations, images = [], []
    ids: set[int] = set()
    for index, row in enumerate(value):
        where = f"entry {index}"
        with context.catch_errors():
            if not isinstance(row, dict):
                raise bad_field(context.file, where, "an object", row)
            name = context.add_name(f"{where}: file_name", row.get("file_name"))
            entry = context.convert(row, _Entry, name)
            if entry.img_id in ids:
                found = f"{entry.img_id} a second time"
                error = context.error(name, "img_id", "every image once", found)
                raise DuplicateImage(str(error))
            ids.add(entry.img_id)
            raw = _parse_entry(name, entry, context)
            images.append(_ground_truth(raw, entry, context))
            if raw.hois:
                annotations.append(build_annotation(raw, context))
            else:
                context.unlabelled.add(name)
    return annotations, tuple(images)


def _parse_entry(name: str, entry: _Entry, context: ParseContext) -> RawAnnotation:
    size, vocabulary = (entry.width, entry.height), context.vocabulary
    boxes = [row.bbox for row in entry.box_annotations]
    context.add_boxes(boxes, size)
    hois = []
    for index, row in enumerate(entry.hoi_annotations):
        if 0 <= row.action_id < vocabulary.num_verbs:
            hois.append((row.subject_id, row.object_id, row.action_id))
            continue
        expected = f"a verb of {vocabulary.name} from 0 to {vocabulary.num_verbs - 1}"
        with context.catch_errors():
            where = f"{LABELS}[{index}].action_id"
            raise UnknownCategory(str(context.error(name, where, expected, row.action_id)))
    return RawAnnotation(
        name,
        boxes,
        [
            context.read_label(name, row.category_id, f"{BOXES}[{index}].category_id")
            for index, row in enumerate(entry.box_annotations)
        ],
        hois,
        size,
        box_field=lambda index: f"{BOXES}[{index}].bbox",
        hoi_field=lambda index: f"{LABELS}[{index}]",
        coco_image_id=entry.img_id,
    )


def _ground_truth(raw: RawAnnotation, entry: _Entry, context: ParseContext) -> SwigImage:
    """The labels that the benchmark's code can read: their boxes exist, and are an interaction."""
    labels = np.array([*raw.labels, -1], dtype=np.int64)
    hois = np.array(raw.hois, dtype=np.int64).reshape(-1, 3)
    exists = ((hois[:, :2] >= 0) & (hois[:, :2] < len(raw.boxes))).all(axis=1)
    hois = hois[exists]
    objects = labels[hois[:, 1]]
    interactions = np.where(
        objects < 0, -1, context.vocabulary.interaction_ids[hois[:, 2], objects]
    )
    known = interactions >= 0
    return SwigImage(
        id=entry.img_id,
        name=raw.name,
        size=(entry.width, entry.height),
        boxes=np.array(raw.boxes, dtype=np.float64).reshape(-1, 4),
        pairs=hois[known, :2],
        interactions=interactions[known],
    )
