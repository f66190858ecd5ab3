"""From the numbers of one image to an `Annotation`, clipping and dropping known blemishes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from pipeline.annotations.reading import (
    NO_AREA,
    NO_INTERACTION_OF,
    NO_PERSON,
    ON_NO_AREA,
    OVER_EDGE,
    PAST_LIST,
    REPEATED,
    UNKNOWN,
    Reading,
)
from pipeline.boxes import clip_boxes, upright_boxes
from pipeline.images import ImageHeader
from pipeline.types import Annotation

NO_OBJECT = -1


@dataclass(frozen=True)
class RawImage:
    """One image's entry, structurally sound, blemishes not yet looked for.

    Attributes:
        name: file name.
        boxes: N boxes, xyxy, pixels.
        labels: their N object indices.
        hois: K (human box, object box, verb); the object box is -1 for a verb without object.
        size: width and height; None where the file doesn't say.
        box_field, hoi_field: how the file calls a box and a label, for errors.
        number: the file's own number of the image; None where it has none.
    """

    name: str
    boxes: list[list[float]]
    labels: list[int]
    hois: list[tuple[int, int, int]]
    size: tuple[int, int] | None
    box_field: Callable[[int], str]
    hoi_field: Callable[[int], str]
    number: int | None = None


def assemble(raw: RawImage, reading: Reading) -> Annotation:
    """The annotation of one image: clipped, without blemishes, equal boxes merged.

    Boxes and labels keep the file's order; boxes that no label points at stay.

    Raises:
        InputError: a blemish, when `reading.strict`.
    """
    boxes = np.array(raw.boxes, dtype=np.float64).reshape(-1, 4)
    clipped = _clipped(boxes, raw, reading)
    number, kept = _numbered(clipped, raw, reading)
    hois: dict[tuple[int, int, int], None] = {}
    for index, hoi in enumerate(raw.hois):
        row = _checked(hoi, index, number, raw, reading)
        if row is None:
            continue
        if row in hois:
            expected = "every verb of a pair once"
            reading.blemish(REPEATED, raw.name, raw.hoi_field(index), expected, "a second one")
        hois[row] = None
    return Annotation(
        image_id=raw.name,
        boxes=clipped[kept].astype(np.float32),
        labels=np.array(raw.labels, dtype=np.int64)[kept],
        hois=np.array(list(hois), dtype=np.int64).reshape(-1, 3),
        size=raw.size,
        number=raw.number,
    )


def turned_upright(annotation: Annotation, header: ImageHeader, reading: Reading) -> Annotation:
    """An annotation in stored pixels, turned upright with its picture.

    Raises:
        InputError: a box reaches over the picture's edge, when `reading.strict`.
    """
    size = annotation.size or header.stored_size
    if annotation.size is None:
        reading.note_boxes(annotation.boxes.tolist(), size)
    boxes = upright_boxes(annotation.boxes.astype(np.float64), header.orientation, size)
    upright = ImageHeader(size, header.orientation).size
    raw = RawImage(
        annotation.image_id,
        boxes.tolist(),
        annotation.labels.tolist(),
        [tuple(row) for row in annotation.hois.tolist()],
        upright,
        box_field=lambda index: f"box {index}, turned upright",
        hoi_field=lambda index: f"label {index}",
        number=annotation.number,
    )
    turned = assemble(raw, reading)
    return turned if annotation.size else replace(turned, size=None)


def _clipped(boxes: np.ndarray, raw: RawImage, reading: Reading) -> np.ndarray:
    """Boxes cut at the edges; where the size is unknown, at the upper and left ones."""
    clipped = clip_boxes(boxes, raw.size or (np.inf, np.inf))
    for index in np.flatnonzero((clipped != boxes).any(axis=1)).tolist():
        inside = f"a box inside {raw.size[0]} x {raw.size[1]}" if raw.size else "no negative number"
        field = raw.box_field(index)
        reading.blemish(OVER_EDGE, raw.name, field, inside, raw.boxes[index])
    return clipped


def _numbered(
    boxes: np.ndarray, raw: RawImage, reading: Reading
) -> tuple[list[int | None], list[int]]:
    """New number of every box (None for one without area) and the old numbers of those kept."""
    number: list[int | None] = []
    kept: list[int] = []
    known: dict[tuple[float, ...], int] = {}
    for index, (box, label) in enumerate(zip(boxes.tolist(), raw.labels, strict=True)):
        if label == UNKNOWN:
            number.append(None)
            continue
        if box[2] <= box[0] or box[3] <= box[1]:
            field = raw.box_field(index)
            reading.blemish(NO_AREA, raw.name, field, "x1 < x2 and y1 < y2", raw.boxes[index])
            number.append(None)
            continue
        key = (*box, label)
        if key not in known:
            known[key] = len(kept)
            kept.append(index)
        number.append(known[key])
    return number, kept


def _checked(
    hoi: tuple[int, int, int],
    index: int,
    number: list[int | None],
    raw: RawImage,
    reading: Reading,
) -> tuple[int, int, int] | None:
    """A label with the new box numbers, or None when it is dropped."""
    human, target, verb = hoi
    vocabulary, where = reading.vocabulary, raw.hoi_field(index)
    # Only vocabularies with roles (V-COCO's) have verbs that may come without an object.
    alone = target == NO_OBJECT and bool(vocabulary.roles)
    named = (human,) if alone else (human, target)
    for box in named:
        if not 0 <= box < len(number):
            expected = f"box numbers from 0 to {len(number) - 1}"
            reading.blemish(PAST_LIST, raw.name, where, expected, box)
            return None
    if UNKNOWN in [raw.labels[box] for box in named]:
        return None
    if not alone:
        reading.note_pair(raw.labels[human], raw.labels[target])
    if raw.labels[human] != vocabulary.person:
        found = vocabulary.objects[raw.labels[human]]
        reading.blemish(NO_PERSON, raw.name, where, "a person as subject", found)
        return None
    if not alone and not vocabulary.valid[verb, raw.labels[target]]:
        found = f"{vocabulary.verbs[verb]} {vocabulary.objects[raw.labels[target]]}"
        expected = f"an interaction of {vocabulary.name}"
        reading.blemish(NO_INTERACTION_OF, raw.name, where, expected, found)
        return None
    new_human, new_target = number[human], NO_OBJECT if alone else number[target]
    if new_human is None or new_target is None:
        reading.blemish(ON_NO_AREA, raw.name, where, "boxes with area", "one without")
        return None
    return new_human, new_target, verb
