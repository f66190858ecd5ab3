"""Shared by the readers of annotation files: types of fields, issues, building annotations.

A reader turns every entry of a file into a `RawAnnotation`. `build_annotation` repairs the issues
that published files have (or refuses them) and returns the `Annotation`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, TypeVar

import numpy as np
from msgspec import Meta

from pipeline.annotations.box_format import (
    MAX_COORDINATE,
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
from pipeline.utils.schema import Positive, convert
from pipeline.utils.text import count_noun
from pipeline.vocabulary import Vocabulary

Kind = TypeVar("Kind")
Coordinate = Annotated[float, Meta(ge=-MAX_COORDINATE, le=MAX_COORDINATE)]
Numbers = tuple[Coordinate, Coordinate, Coordinate, Coordinate]
Box = Annotated[Numbers, Meta(description=f"four finite numbers {XYXY} in pixels")]
XywhBox = Annotated[Numbers, Meta(description=f"four finite numbers {XYWH} in pixels")]
Size: Any = Annotated[
    tuple[Positive, Positive], Meta(description="[width, height], whole numbers from 1 on")
]


class UnknownCategory(InputError):
    """A category id of an object or a verb that is not in the vocabulary."""


class DuplicateImage(InputError):
    """An image that occurs twice in a file."""


def is_utf8(name: str) -> bool:
    """Whether a file name is valid UTF-8; Python represents other bytes by lone surrogates."""
    return not any("\ud800" <= letter <= "\udfff" for letter in name)


# Kinds of issues that published files have and that are repaired, as shown in messages.
BOX_OUT_OF_BOUNDS = "boxes over the image's edge (clipped)"
EMPTY_BOX = "boxes without area (dropped)"
LABEL_ON_EMPTY_BOX = "labels of boxes without area (dropped)"
INDEX_OUT_OF_RANGE = "labels with a box index out of range (dropped)"
SUBJECT_NOT_PERSON = "labels whose subject is not a person (dropped)"
UNKNOWN_INTERACTION = "labels of no interaction of the vocabulary (dropped)"
DUPLICATE_LABEL = "repeated labels (dropped)"

# Kinds of errors that make a file unusable, as shown in messages.
ENTRY_ERRORS: dict[type[InputError], str] = {
    UnknownCategory: "ids of objects or verbs outside the vocabulary",
    DuplicateImage: "images named more than once",
    BoxFormatError: "files with another format of boxes or labels",
    InputError: "malformed entries",
}
# With fewer labels, roles are not checked for being swapped.
MIN_LABELS = 5
# Label of a box whose category is not in the vocabulary, in lenient mode.
UNKNOWN_LABEL = -1


@dataclass(frozen=True)
class ParseContext:
    """Settings and counts of reading one file.

    Attributes:
        file: path of the file, for errors.
        vocabulary: objects and verbs of the annotations.
        strict: raise an error for issues instead of repairing them.
        lenient: count wrong entries and issues instead of raising errors, for a complete report.
        issues: number of issues by kind.
        entry_errors: number of wrong entries by kind, in lenient mode.
        examples: error message of the first issue or wrong entry of each kind.
        unlabelled: names of images without any labelled pair, in formats that list labelled images.
        names: names of all images that have been read, in their shortest form.
        box_formats: statistics of the boxes, by the expected format.
        role_order: number of labels with "right" and with "swapped" subject and object.
    """

    file: Path
    vocabulary: Vocabulary
    strict: bool = False
    lenient: bool = False
    issues: Counter[str] = field(default_factory=Counter)
    entry_errors: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)
    unlabelled: set[str] = field(default_factory=set)
    names: set[str] = field(default_factory=set)
    box_formats: dict[str, BoxFormatCheck] = field(
        default_factory=lambda: {
            box_format: BoxFormatCheck(box_format, MAX_WRONG_SHARE) for box_format in (XYXY, XYWH)
        }
    )
    role_order: Counter[str] = field(default_factory=Counter)

    def error(self, image: str, where: str, expected: str, found: object) -> InputError:
        """The error for a wrong field of an image's entry."""
        return bad_field(self.file, f"{image}: {where}", expected, found)

    def convert(self, value: Any, kind: type[Kind], image: str, where: str = "") -> Kind:
        """An image's entry, or its field `where`, as a value of a type; see `convert`."""
        return convert(value, kind, f"{self.file}: {image}", where)

    def add_name(self, where: str, value: Any) -> str:
        """Checks and returns the name of an image file, relative to the images folder.

        Raises:
            InputError: the name is empty, not a UTF-8 string, or outside of the images folder.
            DuplicateImage: the name has been added before.
        """
        expected = "the name of an image file"
        if not isinstance(value, str) or not value.strip() or "\0" in value:
            raise bad_field(self.file, where, expected, value)
        if not is_utf8(value):
            raise bad_field(self.file, where, f"{expected} in UTF-8", ascii(value))
        path = PurePosixPath(value)
        if path.is_absolute() or ".." in path.parts:
            raise bad_field(self.file, where, f"{expected} below the images folder", value)
        # "./a.jpg" is "a.jpg".
        if str(path) in self.names:
            error = bad_field(self.file, where, "every image once", f"{value} a second time")
            raise DuplicateImage(str(error))
        self.names.add(str(path))
        return value

    def read_label(self, image: str, category: int, where: str) -> int:
        """Object index of a category id; `UNKNOWN_LABEL` in lenient mode for unknown ids.

        Raises:
            UnknownCategory: the vocabulary has no such id, and the mode is not lenient.
        """
        label = self.vocabulary.label_by_category_id.get(category, UNKNOWN_LABEL)
        if label == UNKNOWN_LABEL:
            ids = self.vocabulary.category_ids
            expected = f"an object id of {self.vocabulary.name} (from {min(ids)} to {max(ids)})"
            with self.catch_errors():
                raise UnknownCategory(str(self.error(image, where, expected, category)))
        return label

    def add_issue(self, kind: str, image: str, where: str, expected: str, found: object) -> None:
        """Counts an issue of an image, with the field, expected and found value for its message.

        Raises:
            InputError: the file is read with `strict` and without `lenient`.
        """
        # Files can have very many issues, so only the first message of a kind is built.
        if kind not in self.examples or self.strict:
            error = self.error(image, where, expected, found)
            if self.strict and not self.lenient:
                raise error
            self.examples.setdefault(kind, str(error))
        self.issues[kind] += 1

    def add_boxes(
        self, boxes: Sequence[Sequence[float]], size: tuple[int, int] | None, box_format: str = XYXY
    ) -> None:
        """Adds boxes of an image, as in the file, to the statistics of `check_format`."""
        self.box_formats[box_format].add(np.array(boxes, dtype=np.float64).reshape(-1, 4), size)

    def add_pair(self, subject: int, target: int) -> None:
        """Adds the object indices of a label's two boxes to the statistics of `check_format`."""
        person = self.vocabulary.person
        self.role_order["swapped" if subject != person == target else "right"] += 1

    def check_format(self) -> None:
        """Refuses a file whose boxes have another format or whose labels have swapped roles.

        Raises:
            BoxFormatError: names the format; needs all boxes and labels to have been added.
        """
        for box_format in self.box_formats.values():
            box_format.check(self.file, "bbox")
        swapped, total = self.role_order["swapped"], self.role_order.total()
        if total >= MIN_LABELS and 2 * swapped > total:
            expected = "a person as subject"
            found = f"subject and object swapped in {swapped} of {total} labels"
            raise BoxFormatError(
                str(bad_field(self.file, "subject_id and object_id", expected, found))
            )

    @contextmanager
    def catch_errors(self) -> Iterator[None]:
        """Context of reading one entry; in lenient mode its error is counted, not raised."""
        try:
            yield
        except InputError as error:
            if not self.lenient:
                raise
            kind = next(name for cause, name in ENTRY_ERRORS.items() if isinstance(error, cause))
            self.entry_errors[kind] += 1
            self.examples.setdefault(kind, str(error))


def format_issues(file: Path, issues: Counter[str]) -> str:
    """One line about the issues that were repaired; empty without issues."""
    counts = ", ".join(count_noun(count, kind) for kind, count in issues.items())
    return f"{file}: {counts}" if counts else ""


NO_OBJECT = -1


@dataclass(frozen=True)
class RawAnnotation:
    """Entry of one image with valid fields, before issues are repaired.

    Attributes:
        name: file name of the image.
        boxes: N boxes, xyxy, pixels.
        labels: object indices of the N boxes.
        hois: K (human box, object box, verb); the object box is -1 for a verb without object.
        size: width and height in pixels; None if the file has no sizes.
        box_field, hoi_field: field names in the file of a box and a label, by index, for errors.
        coco_image_id: id of the image in files of COCO and SWIG-HOI; None in other formats.
    """

    name: str
    boxes: Sequence[Sequence[float]]
    labels: list[int]
    hois: list[tuple[int, int, int]]
    size: tuple[int, int] | None
    box_field: Callable[[int], str]
    hoi_field: Callable[[int], str]
    coco_image_id: int | None = None


def build_annotation(raw: RawAnnotation, context: ParseContext) -> Annotation:
    """The annotation of one image: boxes clipped, equal boxes merged, wrong labels dropped.

    Boxes and labels keep the order of the file; boxes without label are kept.

    Raises:
        InputError: there is an issue, and `context.strict` is set.
    """
    boxes = np.array(raw.boxes, dtype=np.float64).reshape(-1, 4)
    clipped = _clip_to_image(boxes, raw, context)
    new_indices, kept = _merge_equal_boxes(clipped, raw, context)
    hois: dict[tuple[int, int, int], None] = {}
    for index, hoi in enumerate(raw.hois):
        row = _check_label(hoi, index, new_indices, raw, context)
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
    """An annotation in stored pixels, transformed to the upright image of the header.

    Raises:
        InputError: a box reaches over the edge of the image, and `context.strict` is set.
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
        box_field=lambda index: f"box {index}, rotated upright",
        hoi_field=lambda index: f"label {index}",
        coco_image_id=annotation.coco_image_id,
    )
    turned = build_annotation(raw, context)
    return turned if annotation.size else replace(turned, size=None)


def _clip_to_image(boxes: np.ndarray, raw: RawAnnotation, context: ParseContext) -> np.ndarray:
    """Boxes clipped to the image; only at the left and upper edge if its size is unknown."""
    clipped = clip_boxes(boxes, raw.size or (np.inf, np.inf))
    for index in np.flatnonzero((clipped != boxes).any(axis=1)).tolist():
        field = raw.box_field(index)
        expected = (
            f"a box inside {raw.size[0]} x {raw.size[1]}" if raw.size else "no negative number"
        )
        context.add_issue(BOX_OUT_OF_BOUNDS, raw.name, field, expected, list(raw.boxes[index]))
    return clipped


def _merge_equal_boxes(
    boxes: np.ndarray, raw: RawAnnotation, context: ParseContext
) -> tuple[list[int | None], list[int]]:
    """Removes boxes without area, of unknown objects, and repeated ones.

    Returns the new index of every box (None for removed ones), and the old indices of those left.
    """
    new_indices: list[int | None] = []
    kept: list[int] = []
    index_by_box: dict[tuple[float, ...], int] = {}
    for index, (box, label) in enumerate(zip(boxes.tolist(), raw.labels, strict=True)):
        if label == UNKNOWN_LABEL:
            new_indices.append(None)
            continue
        if box[2] <= box[0] or box[3] <= box[1]:
            field = raw.box_field(index)
            context.add_issue(
                EMPTY_BOX, raw.name, field, "x1 < x2 and y1 < y2", list(raw.boxes[index])
            )
            new_indices.append(None)
            continue
        key = (*box, label)
        if key not in index_by_box:
            index_by_box[key] = len(kept)
            kept.append(index)
        new_indices.append(index_by_box[key])
    return new_indices, kept


def _check_label(
    hoi: tuple[int, int, int],
    index: int,
    new_indices: list[int | None],
    raw: RawAnnotation,
    context: ParseContext,
) -> tuple[int, int, int] | None:
    """A label with new box indices; None if it has to be dropped."""
    human, target, verb = hoi
    vocabulary, where = context.vocabulary, raw.hoi_field(index)
    # Only V-COCO, whose vocabulary has roles, labels verbs without an object.
    without_object = target == NO_OBJECT and bool(vocabulary.roles)
    indices = (human,) if without_object else (human, target)
    for box in indices:
        if not 0 <= box < len(new_indices):
            expected = f"box indices from 0 to {len(new_indices) - 1}"
            context.add_issue(INDEX_OUT_OF_RANGE, raw.name, where, expected, box)
            return None
    if UNKNOWN_LABEL in [raw.labels[box] for box in indices]:
        return None
    if not without_object:
        context.add_pair(raw.labels[human], raw.labels[target])
    if raw.labels[human] != vocabulary.person:
        found = vocabulary.objects[raw.labels[human]]
        context.add_issue(SUBJECT_NOT_PERSON, raw.name, where, "a person as subject", found)
        return None
    if not without_object and not vocabulary.valid[verb, raw.labels[target]]:
        found = f"{vocabulary.verbs[verb]} {vocabulary.objects[raw.labels[target]]}"
        expected = f"an interaction of {vocabulary.name}"
        context.add_issue(UNKNOWN_INTERACTION, raw.name, where, expected, found)
        return None
    new_human = new_indices[human]
    new_target = NO_OBJECT if without_object else new_indices[target]
    if new_human is None or new_target is None:
        context.add_issue(LABEL_ON_EMPTY_BOX, raw.name, where, "boxes with area", "one without")
        return None
    return new_human, new_target, verb
