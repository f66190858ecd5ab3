"""Proposals: detections of another program in COCO's results format, which replace the detector."""

from __future__ import annotations

import re
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from pipeline.annotations.box_format import XYWH, BoxFormatCheck
from pipeline.annotations.load import AnnotationFile
from pipeline.boxes import boxes_to_upright, clip_boxes
from pipeline.datasets.dataset import Dataset, list_file_names
from pipeline.datasets.layouts import STORED
from pipeline.images import ImageHeader
from pipeline.types import Annotation
from pipeline.utils.errors import InputError, bad_field
from pipeline.utils.files import iter_json, sha256_of_file
from pipeline.vocabulary import Vocabulary, load_vocabulary
from teacher_cache.detectors.pairing import ObjectBoxes

# One detection: index of its image in the annotation file, xyxy box in pixels, object index, score.
PROPOSAL_DTYPE = np.dtype([("image", "<i4"), ("box", "<f4", 4), ("label", "<i2"), ("score", "<f4")])
REQUIRED_FIELDS = ("image_id", "category_id", "bbox", "score")
NUMBER_TYPES = (int, float)
MAX_COORDINATE = 1e9
# Pixels; results files contain rounded numbers, so smaller distances are not counted as outside.
EDGE_TOLERANCE = 0.01
# Issues that are counted and reported, in this order.
OUTSIDE_IMAGE = "boxes over the image's edge (clipped)"
EMPTY_BOX = "boxes without area (dropped)"
UNANNOTATED_IMAGE = "detections of images that are not annotated (left out)"
UNKNOWN_OBJECT = "detections of COCO objects that the vocabulary does not have (left out)"

# Values of `image_index_by_key` for keys that do not mean one annotated image.
UNKNOWN_IMAGE, NOT_ANNOTATED, AMBIGUOUS_NUMBER = -1, -2, -3
TRAILING_DIGITS = re.compile(r"\d+$")

# (N,) indices of images -> (N, 2) widths and heights, infinity where unknown.
ImageSizes = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True, eq=False)
class Proposals:
    """Content of a detections file.

    Attributes:
        rows: (K,) `PROPOSAL_DTYPE`, grouped by image in the annotation file's order.
        digest: SHA-256 of the file.
        issue_counts: number of detections with each kind of issue.
    """

    rows: np.ndarray
    digest: str
    issue_counts: Counter[str]

    def by_image(self, num_images: int) -> Iterator[ObjectBoxes]:
        """The boxes of each image, in the annotation file's order."""
        ends = np.searchsorted(self.rows["image"], np.arange(num_images), side="right").tolist()
        for first, end in zip([0, *ends[:-1]], ends, strict=True):
            rows = self.rows[first:end]
            yield ObjectBoxes(rows["box"], rows["label"].astype(np.int64), rows["score"])

    def summary(self, file: Path, num_images: int) -> str:
        """One line with the number of detections, and of those that were clipped or dropped."""
        num_with_detections = len(np.unique(self.rows["image"]))
        kinds = (OUTSIDE_IMAGE, EMPTY_BOX, UNANNOTATED_IMAGE, UNKNOWN_OBJECT)
        issues = [f"{self.issue_counts[kind]} {kind}" for kind in kinds if self.issue_counts[kind]]
        total = f"{len(self.rows)} detections in {num_with_detections} of {num_images} images"
        return f"{file}: {', '.join([total, *issues])}"


def read_proposals(
    file: Path,
    images: dict[int | str, int],
    image_sizes: ImageSizes,
    vocabulary: Vocabulary,
    strict: bool = False,
) -> Proposals:
    """Reads a list of `{"image_id", "category_id", "bbox": [x, y, width, height], "score"}`.

    Boxes are clipped to their images; those without area are dropped.

    Args:
        file: the JSON file, which is read entry by entry.
        images: indices of images; see `image_index_by_key`.
        image_sizes: sizes of the images, to clip boxes.
        vocabulary: its object ids are the category ids.
        strict: refuse boxes that reach outside the image or have no area.

    Raises:
        InputError: an entry is wrong; names it by its index.
    """
    parser = _EntryParser(file, images, vocabulary)
    # Packed arrays: as Python objects, the numbers of ten million detections would take gigabytes.
    indices, labels, numbers, entries = array("i"), array("h"), array("d"), array("q")
    for entry, value in enumerate(iter_json(file)):
        row = parser.parse(value, f"entry {entry}")
        if row is not None:
            indices.append(row[0])
            labels.append(row[1])
            numbers.extend(row[2])
            entries.append(entry)
    values = np.frombuffer(numbers, np.float64).reshape(-1, 5) if numbers else np.zeros((0, 5))
    boxes, images_of_rows = values[:, :4].copy(), np.array(indices, dtype=np.int32)
    sizes = image_sizes(images_of_rows)
    format_check = BoxFormatCheck(XYWH)
    format_check.add(boxes, sizes)
    # Detectors predict boxes that reach outside the image, so the scale of the coordinates says
    # nothing about their format.
    format_check.check(file, "bbox", scale=False)
    boxes[:, 2:] += boxes[:, :2]
    clipped = clip_boxes(boxes, sizes)
    is_outside = (np.abs(clipped - boxes) > EDGE_TOLERANCE).any(axis=1)
    # Compared as float32, which is stored: a very thin box in float64 may have no area then.
    clipped = clipped.astype(np.float32)
    is_empty = (clipped[:, 2:] <= clipped[:, :2]).any(axis=1)
    if strict and (is_outside | is_empty).any():
        first = int(np.flatnonzero(is_outside | is_empty)[0])
        expected = "a box with area inside the image"
        box = [round(number, 3) for number in values[first, :4].tolist()]
        raise bad_field(file, f"entry {entries[first]}: bbox", expected, box)
    parser.issue_counts.update(
        {OUTSIDE_IMAGE: int((is_outside & ~is_empty).sum()), EMPTY_BOX: int(is_empty.sum())}
    )
    rows = np.zeros(len(values), PROPOSAL_DTYPE)
    rows["image"], rows["box"] = images_of_rows, clipped
    rows["label"], rows["score"] = np.array(labels, dtype=np.int16), values[:, 4]
    rows = rows[~is_empty]
    order = np.argsort(rows["image"], kind="stable")
    return Proposals(rows[order], sha256_of_file(file), parser.issue_counts)


class _EntryParser:
    """Checks and converts the entries of a detections file one by one."""

    def __init__(self, file: Path, images: dict[int | str, int], vocabulary: Vocabulary) -> None:
        self._file, self._images, self._vocabulary = file, images, vocabulary
        self._labels = vocabulary.label_by_category_id
        self._other_coco_ids = _other_coco_ids(vocabulary)
        self.issue_counts: Counter[str] = Counter()

    def parse(self, entry: Any, where: str) -> tuple[int, int, list[float]] | None:
        """Converts one entry.

        Args:
            entry: the JSON value.
            where: its place in the file, named in errors.

        Returns:
            Index of the image, object index, and [x, y, width, height, score]; None for detections
            of images that are not annotated or objects that the vocabulary lacks.

        Raises:
            InputError: the entry is wrong.
        """
        if not isinstance(entry, dict):
            raise bad_field(
                self._file, where, f"an object with {', '.join(REQUIRED_FIELDS)}", entry
            )
        for field in REQUIRED_FIELDS:
            if field not in entry:
                found = "nothing (the key is missing)"
                raise self._error(
                    where, field, f"an object with {', '.join(REQUIRED_FIELDS)}", found
                )
        index = self._image_index(entry["image_id"], where)
        label = self._label(entry["category_id"], where)
        box, score = entry["bbox"], entry["score"]
        if not _are_numbers(box, 4):
            expected = "four finite numbers [x, y, width, height]"
            raise self._error(where, "bbox", expected, box)
        if box[2] < 0 or box[3] < 0:
            raise self._error(where, "bbox", "[x, y, width, height] with sides >= 0", box)
        if not _are_numbers([score], 1) or not 0 <= score <= 1:
            raise self._error(where, "score", "a number from 0 to 1", score)
        if index == NOT_ANNOTATED or label is None:
            self.issue_counts[UNANNOTATED_IMAGE if index == NOT_ANNOTATED else UNKNOWN_OBJECT] += 1
            return None
        return index, label, [*box, score]

    def _image_index(self, image: Any, where: str) -> int:
        # Not isinstance: True equals 1 as a key.
        is_key = type(image) in (int, str)
        index = self._images.get(image, UNKNOWN_IMAGE) if is_key else UNKNOWN_IMAGE
        if index == AMBIGUOUS_NUMBER:
            expected = "a file name, because several images have this number"
            raise self._error(where, "image_id", expected, image)
        if index == UNKNOWN_IMAGE:
            expected = "the file name or the number of an image of the dataset"
            raise self._error(where, "image_id", expected, image)
        return index

    def _label(self, category: Any, where: str) -> int | None:
        label = self._labels.get(category) if type(category) is int else None
        if label is None and (type(category) is not int or category not in self._other_coco_ids):
            ids = self._vocabulary.category_ids
            expected = f"an object id of {self._vocabulary.name} (from {min(ids)} to {max(ids)})"
            raise self._error(where, "category_id", expected, category)
        return label

    def _error(self, where: str, field: str, expected: str, found: object) -> InputError:
        return bad_field(self._file, f"{where}: {field}", expected, found)


def _are_numbers(values: Any, count: int) -> bool:
    """Whether `values` is a list of `count` numbers below `MAX_COORDINATE`; NaN is not."""
    return (
        isinstance(values, list)
        and len(values) == count
        and all(type(value) in NUMBER_TYPES and abs(value) < MAX_COORDINATE for value in values)
    )


def _other_coco_ids(vocabulary: Vocabulary) -> frozenset[int]:
    """COCO's ids of objects that the vocabulary lacks; none if it does not use COCO's ids.

    A COCO detector finds all 80 objects, also where a vocabulary has only some of them.
    """
    coco = load_vocabulary("hico-det")
    coco_names = {id_: coco.objects[label] for id_, label in coco.label_by_category_id.items()}
    objects = zip(vocabulary.category_ids, vocabulary.objects, strict=True)
    if any(coco_names.get(id_) != name for id_, name in objects):
        return frozenset()
    return frozenset(coco_names.keys() - set(vocabulary.category_ids))


def load_proposals(
    file: Path, dataset: Dataset, annotations: AnnotationFile, strict: bool
) -> Proposals:
    """Reads a detections file for a part of a dataset.

    Args:
        file: the detections file, in COCO's results format.
        dataset, annotations: the dataset part with the images of the detections.
        strict: refuse boxes that reach outside the image or have no area.

    Raises:
        InputError: the file is missing or wrong.
    """
    folder = dataset.part(annotations.part).images
    images = image_index_by_key(
        annotations.annotations, list_file_names(folder) | annotations.unlabelled
    )
    image_sizes = _image_sizes(dataset, annotations)
    proposals = read_proposals(file, images, image_sizes, dataset.vocabulary, strict)
    _rotate_upright(proposals.rows, dataset, annotations)
    return proposals


def _image_sizes(dataset: Dataset, annotations: AnnotationFile) -> ImageSizes:
    """Sizes from the annotations where possible, else from the image files' headers."""

    def image_sizes(indices: np.ndarray) -> np.ndarray:
        distinct, rows = np.unique(indices, return_inverse=True)
        sizes = np.full((len(distinct), 2), np.inf)
        # Boxes in stored pixels are clipped before their rotation, so they need stored sizes.
        stored = dataset.orientation == STORED
        unknown = []
        for row, index in enumerate(distinct.tolist()):
            annotation = annotations.annotations[index]
            if annotation.size is None or stored:
                unknown.append((row, annotation.image_id))
            else:
                sizes[row] = annotation.size
        headers = dataset.read_headers(annotations.part, [name for _, name in unknown])
        for (row, _), header in zip(unknown, headers, strict=True):
            # Images that cannot be read are recorded as failed later, whatever their boxes.
            if isinstance(header, ImageHeader):
                sizes[row] = header.stored_size if stored else header.size
        return sizes[rows]

    return image_sizes


def _rotate_upright(rows: np.ndarray, dataset: Dataset, annotations: AnnotationFile) -> None:
    """Rotates boxes in stored pixels to the images' EXIF orientation, in place.

    Does nothing for datasets whose boxes are in upright pixels already.
    """
    if dataset.orientation != STORED:
        return
    indices, starts = np.unique(rows["image"], return_index=True)
    names = [annotations.annotations[index].image_id for index in indices.tolist()]
    ends = [*starts[1:].tolist(), len(rows)]
    headers = dataset.read_headers(annotations.part, names)
    for header, start, end in zip(headers, starts.tolist(), ends, strict=True):
        if isinstance(header, ImageHeader):
            boxes = rows["box"][start:end]
            rows["box"][start:end] = boxes_to_upright(boxes, header.orientation, header.stored_size)


def image_index_by_key(
    annotations: Sequence[Annotation], others: Iterable[str]
) -> dict[int | str, int]:
    """Maps file names and numbers of images to indices of `annotations`.

    Numbers are the annotation file's image ids, if it has some, as COCO's files do. Otherwise an
    image's number is the one at the end of its file name: 15 for `HICO_train2015_00000015.jpg`.

    Args:
        annotations: annotations of the images that the teacher is run on.
        others: file names of other images in their folder.

    Returns:
        Indices by file name and number; NOT_ANNOTATED for other images, and AMBIGUOUS_NUMBER for a
        number that several images share.
    """
    index_by_name = {annotation.image_id: index for index, annotation in enumerate(annotations)}
    index_by_key: dict[int | str, int] = dict.fromkeys(others, NOT_ANNOTATED)
    index_by_key.update(index_by_name)
    numbers = [(annotation.coco_image_id, index) for index, annotation in enumerate(annotations)]
    if all(number is None for number, _ in numbers):
        numbers = [(_trailing_number(str(name)), index) for name, index in index_by_key.items()]
    for number, index in numbers:
        if number is not None:
            index_by_key[number] = index if number not in index_by_key else AMBIGUOUS_NUMBER
    return index_by_key


def _trailing_number(name: str) -> int | None:
    digits = TRAILING_DIGITS.search(PurePosixPath(name).stem)
    return int(digits.group()) if digits else None
