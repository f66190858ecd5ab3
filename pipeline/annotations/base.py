"""Shared by the readers of annotation files: checked fields, issues, building annotations."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from pipeline.annotations.box_format import (
    MAX_WRONG_SHARE,
    XYWH,
    XYXY,
    BoxFormatCheck,
    BoxFormatError,
)
from pipeline.boxes import boxes_to_upright, clip_boxes
from pipeline.images import ImageHeader
from pipeline.types import Annotation
from pipeline.utils.errors import InputError, bad_field
from pipeline.vocabulary import Vocabulary

BOX_FORMAT = "four finite numbers [x1, y1, x2, y2]"


class UnknownCategory(InputError):
    """An object or a verb that the vocabulary lacks."""


class DuplicateImage(InputError):
    """An image that the file names a second time."""


@dataclass(frozen=True)
class EntryReader:
    """Where in a file we are: the image (or entry), for errors."""

    file: Path
    image: str

    def error(self, field: str, expected: str, found: object) -> InputError:
        """The error for a field of this image."""
        return bad_field(self.file, f"{self.image}: {field}", expected, found)

    def read_objects(self, entry: dict[str, Any], field: str) -> list[dict[str, Any]]:
        """A list of JSON objects; it may be empty, but not missing."""
        rows = self.require(entry, field, field, "a list of objects")
        if not isinstance(rows, list):
            raise self.error(field, "a list of objects", rows)
        for index, row in enumerate(rows):
            if not isinstance(row, dict):
                raise self.error(f"{field}[{index}]", "an object", row)
        return rows

    def require(self, entry: dict[str, Any], key: str, field: str, expected: str) -> Any:
        """The value under a key that must be there."""
        if key not in entry:
            raise self.error(field, expected, "nothing (the key is missing)")
        return entry[key]

    def read_int(self, value: Any, field: str, expected: str = "a whole number") -> int:
        """A whole number; true and false are none."""
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.error(field, expected, value)
        return value

    def read_box(self, value: Any, field: str, expected: str = BOX_FORMAT) -> list[float]:
        """Four finite numbers."""
        good = (
            isinstance(value, list)
            and len(value) == 4
            and all(isinstance(number, (int, float)) for number in value)
            and not any(isinstance(number, bool) for number in value)
        )
        # A whole number may be too large for a float: then it is no finite coordinate either.
        if not good or not all(abs(number) < math.inf for number in value):
            raise self.error(field, expected, value)
        if any(abs(number) > 1e9 for number in value):
            raise self.error(field, f"{expected} in pixels", value)
        return [float(number) for number in value]

    def read_size(self, value: list[Any], field: str) -> tuple[int, int]:
        """Width and height in pixels."""
        expected = "[width, height], whole numbers from 1 on"
        if not isinstance(value, list) or len(value) != 2:
            raise self.error(field, expected, value)
        width, height = (self.read_int(number, field, expected) for number in value)
        if min(width, height) < 1:
            raise self.error(field, expected, value)
        return width, height

    def read_label(self, category: Any, field: str, vocabulary: Vocabulary) -> int:
        """Object index of a category id."""
        ids = vocabulary.category_ids
        expected = f"an object id of {vocabulary.name} (from {min(ids)} to {max(ids)})"
        if self.read_int(category, field, expected) not in vocabulary.label_by_category_id:
            raise UnknownCategory(str(self.error(field, expected, category)))
        return vocabulary.label_by_category_id[category]


def check_image_name(file: Path, where: str, value: Any) -> str:
    """A file name below the images folder.

    Raises:
        InputError: it is no text in UTF-8, is empty, or leads out of the folder.
    """
    expected = "the name of an image file"
    if not isinstance(value, str) or not value.strip() or "\0" in value:
        raise bad_field(file, where, expected, value)
    if not is_utf8(value):
        raise bad_field(file, where, f"{expected} in UTF-8", ascii(value))
    path = PurePosixPath(value)
    if path.is_absolute() or ".." in path.parts:
        raise bad_field(file, where, f"{expected} below the images folder", value)
    return value


def is_utf8(name: str) -> bool:
    """Whether a name is text: of bytes that are no UTF-8, Python makes half characters."""
    return not any("\ud800" <= letter <= "\udfff" for letter in name)


class UniqueImageNames:
    """The image names of a file so far; none may come twice."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._seen: set[str] = set()

    def add(self, where: str, value: Any) -> str:
        """Checks a name and remembers it."""
        name = check_image_name(self._file, where, value)
        if name in self._seen:
            error = bad_field(self._file, where, "every image once", f"{name} a second time")
            raise DuplicateImage(str(error))
        self._seen.add(name)
        return name


# The issues of published files, as people read them.
BOX_OUT_OF_BOUNDS = "boxes over the image's edge (clipped)"
EMPTY_BOX = "boxes without area (dropped)"
LABEL_ON_EMPTY_BOX = "labels of boxes without area (dropped)"
INDEX_OUT_OF_RANGE = "labels pointing past the box list (dropped)"
SUBJECT_NOT_PERSON = "labels whose subject is no person (dropped)"
UNKNOWN_INTERACTION = "labels that are no interaction of the vocabulary (dropped)"
DUPLICATE_LABEL = "repeated labels (dropped)"

# What makes a file unusable, as people read it.
ENTRY_ERRORS: dict[type[InputError], str] = {
    UnknownCategory: "numbers of objects or verbs that the vocabulary lacks",
    DuplicateImage: "images named more than once",
    BoxFormatError: "files of boxes or labels in another form",
    InputError: "malformed entries",
}
# Fewer labels tell nothing about the whole file.
MIN_LABELS = 5
# Label of a box whose object the vocabulary lacks, in lenient mode.
UNKNOWN_LABEL = -1


@dataclass(frozen=True)
class ParseContext:
    """What holds for a whole file while it is read.

    Attributes:
        file: its path, for errors.
        vocabulary: which verbs and objects its numbers mean.
        strict: refuse issues.
        lenient: go on after wrong entries and issues, and count them.
        issues: how many of each kind were found so far.
        entry_errors: how many wrong entries of each kind lenient mode found so far.
        examples: the first of each kind of both, as an error tells it.
        unlabelled: images that the file names without any labelled pair, and so says nothing of.
        box_formats: what its boxes look like, by the form that is expected of them.
        role_order: how many labels with an object have had "right" and "swapped" roles.
    """

    file: Path
    vocabulary: Vocabulary
    strict: bool = False
    lenient: bool = False
    issues: Counter[str] = field(default_factory=Counter)
    entry_errors: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)
    unlabelled: set[str] = field(default_factory=set)
    box_formats: dict[str, BoxFormatCheck] = field(
        default_factory=lambda: {
            form: BoxFormatCheck(form, MAX_WRONG_SHARE) for form in (XYXY, XYWH)
        }
    )
    role_order: Counter[str] = field(default_factory=Counter)

    def add_issue(self, kind: str, image: str, where: str, expected: str, found: object) -> None:
        """Counts an issue.

        Raises:
            InputError: `strict`, not in lenient mode.
        """
        if kind not in self.examples or self.strict:
            error = EntryReader(self.file, image).error(where, expected, found)
            if self.strict and not self.lenient:
                raise error
            self.examples.setdefault(kind, str(error))
        self.issues[kind] += 1

    def add_boxes(
        self, boxes: list[list[float]], size: tuple[int, int] | None, form: str = XYXY
    ) -> None:
        """Looks at the boxes of an image, as they stand in the file."""
        self.box_formats[form].add(np.array(boxes, dtype=np.float64).reshape(-1, 4), size)

    def add_pair(self, subject: int, target: int) -> None:
        """Looks at the objects that a label's subject and object are."""
        person = self.vocabulary.person
        self.role_order["swapped" if subject != person == target else "right"] += 1

    def check_format(self) -> None:
        """Refuses a file all of whose boxes or labels are meant otherwise, at its end.

        Raises:
            OtherForm: names the form.
        """
        for form in self.box_formats.values():
            form.check(self.file, "bbox")
        swapped, total = self.role_order["swapped"], self.role_order.total()
        if total >= MIN_LABELS and 2 * swapped > total:
            expected = "a person as subject and a thing as object"
            found = f"subject and object swapped in {swapped} of {total} labels"
            raise BoxFormatError(
                str(bad_field(self.file, "subject_id and object_id", expected, found))
            )

    @contextmanager
    def catch_errors(self) -> Iterator[None]:
        """Around the reading of one entry: lenient mode counts what is wrong with it."""
        try:
            yield
        except InputError as error:
            if not self.lenient:
                raise
            kind = next(name for cause, name in ENTRY_ERRORS.items() if isinstance(error, cause))
            self.entry_errors[kind] += 1
            self.examples.setdefault(kind, str(error))

    def read_label(self, reader: EntryReader, category: Any, where: str) -> int:
        """Object index of a category id; in lenient mode `UNKNOWN_LABEL` for one
        that the vocabulary lacks.

        Raises:
            InputError: the vocabulary lacks it, not in lenient mode.
        """
        with self.catch_errors():
            return reader.read_label(category, where, self.vocabulary)
        return UNKNOWN_LABEL


def format_issues(file: Path, issues: Counter[str]) -> str:
    """What was clipped or dropped, in one line for people; empty when nothing was."""
    counts = ", ".join(f"{count} {kind}" for kind, count in issues.items())
    return f"{file}: {counts}" if counts else ""


NO_OBJECT = -1


@dataclass(frozen=True)
class RawAnnotation:
    """One image's entry, structurally sound, issues not yet looked for.

    Attributes:
        name: file name.
        boxes: N boxes, xyxy, pixels.
        labels: their N object indices.
        hois: K (human box, object box, verb); the object box is -1 for a verb without object.
        size: width and height; None where the file doesn't say.
        box_field, hoi_field: how the file calls a box and a label, for errors.
        coco_image_id: the file's own number of the image; None where it has none.
    """

    name: str
    boxes: list[list[float]]
    labels: list[int]
    hois: list[tuple[int, int, int]]
    size: tuple[int, int] | None
    box_field: Callable[[int], str]
    hoi_field: Callable[[int], str]
    coco_image_id: int | None = None


def build_annotation(raw: RawAnnotation, context: ParseContext) -> Annotation:
    """The annotation of one image: clipped, without issues, equal boxes merged.

    Boxes and labels keep the file's order; boxes that no label points at stay.

    Raises:
        InputError: an issue, when `context.strict`.
    """
    boxes = np.array(raw.boxes, dtype=np.float64).reshape(-1, 4)
    clipped = _clip_to_image(boxes, raw, context)
    number, kept = _merge_equal_boxes(clipped, raw, context)
    hois: dict[tuple[int, int, int], None] = {}
    for index, hoi in enumerate(raw.hois):
        row = _check_label(hoi, index, number, raw, context)
        if row is None:
            continue
        if row in hois:
            expected = "every verb of a pair once"
            context.add_issue(
                DUPLICATE_LABEL, raw.name, raw.hoi_field(index), expected, "a second one"
            )
        hois[row] = None
    return Annotation(
        image_id=raw.name,
        boxes=clipped[kept].astype(np.float32),
        labels=np.array(raw.labels, dtype=np.int64)[kept],
        hois=np.array(list(hois), dtype=np.int64).reshape(-1, 3),
        size=raw.size,
        coco_image_id=raw.coco_image_id,
    )


def annotation_to_upright(
    annotation: Annotation, header: ImageHeader, context: ParseContext
) -> Annotation:
    """An annotation in stored pixels, turned upright with its image.

    Raises:
        InputError: a box reaches over the image's edge, when `context.strict`.
    """
    size = annotation.size or header.stored_size
    if annotation.size is None:
        context.add_boxes(annotation.boxes.tolist(), size)
    boxes = boxes_to_upright(annotation.boxes.astype(np.float64), header.orientation, size)
    upright = ImageHeader(size, header.orientation).size
    raw = RawAnnotation(
        annotation.image_id,
        boxes.tolist(),
        annotation.labels.tolist(),
        [tuple(row) for row in annotation.hois.tolist()],
        upright,
        box_field=lambda index: f"box {index}, turned upright",
        hoi_field=lambda index: f"label {index}",
        coco_image_id=annotation.coco_image_id,
    )
    turned = build_annotation(raw, context)
    return turned if annotation.size else replace(turned, size=None)


def _clip_to_image(boxes: np.ndarray, raw: RawAnnotation, context: ParseContext) -> np.ndarray:
    """Boxes cut at the edges; where the size is unknown, at the upper and left ones."""
    clipped = clip_boxes(boxes, raw.size or (np.inf, np.inf))
    for index in np.flatnonzero((clipped != boxes).any(axis=1)).tolist():
        inside = f"a box inside {raw.size[0]} x {raw.size[1]}" if raw.size else "no negative number"
        field = raw.box_field(index)
        context.add_issue(BOX_OUT_OF_BOUNDS, raw.name, field, inside, raw.boxes[index])
    return clipped


def _merge_equal_boxes(
    boxes: np.ndarray, raw: RawAnnotation, context: ParseContext
) -> tuple[list[int | None], list[int]]:
    """New number of every box (None for one without area) and the old numbers of those kept."""
    number: list[int | None] = []
    kept: list[int] = []
    known: dict[tuple[float, ...], int] = {}
    for index, (box, label) in enumerate(zip(boxes.tolist(), raw.labels, strict=True)):
        if label == UNKNOWN_LABEL:
            number.append(None)
            continue
        if box[2] <= box[0] or box[3] <= box[1]:
            field = raw.box_field(index)
            context.add_issue(EMPTY_BOX, raw.name, field, "x1 < x2 and y1 < y2", raw.boxes[index])
            number.append(None)
            continue
        key = (*box, label)
        if key not in known:
            known[key] = len(kept)
            kept.append(index)
        number.append(known[key])
    return number, kept


def _check_label(
    hoi: tuple[int, int, int],
    index: int,
    number: list[int | None],
    raw: RawAnnotation,
    context: ParseContext,
) -> tuple[int, int, int] | None:
    """A label with the new box numbers, or None when it is dropped."""
    human, target, verb = hoi
    vocabulary, where = context.vocabulary, raw.hoi_field(index)
    # Only vocabularies with roles (V-COCO's) have verbs that may come without an object.
    alone = target == NO_OBJECT and bool(vocabulary.roles)
    named = (human,) if alone else (human, target)
    for box in named:
        if not 0 <= box < len(number):
            expected = f"box numbers from 0 to {len(number) - 1}"
            context.add_issue(INDEX_OUT_OF_RANGE, raw.name, where, expected, box)
            return None
    if UNKNOWN_LABEL in [raw.labels[box] for box in named]:
        return None
    if not alone:
        context.add_pair(raw.labels[human], raw.labels[target])
    if raw.labels[human] != vocabulary.person:
        found = vocabulary.objects[raw.labels[human]]
        context.add_issue(SUBJECT_NOT_PERSON, raw.name, where, "a person as subject", found)
        return None
    if not alone and not vocabulary.valid[verb, raw.labels[target]]:
        found = f"{vocabulary.verbs[verb]} {vocabulary.objects[raw.labels[target]]}"
        expected = f"an interaction of {vocabulary.name}"
        context.add_issue(UNKNOWN_INTERACTION, raw.name, where, expected, found)
        return None
    new_human, new_target = number[human], NO_OBJECT if alone else number[target]
    if new_human is None or new_target is None:
        context.add_issue(LABEL_ON_EMPTY_BOX, raw.name, where, "boxes with area", "one without")
        return None
    return new_human, new_target, verb
