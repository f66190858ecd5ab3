"""Detections of another program, in COCO's results form, in the place of a detector's."""

from __future__ import annotations

import re
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from pipeline.annotations.box_format import XYWH, BoxFormatCheck
from pipeline.annotations.load import AnnotationFile
from pipeline.boxes import boxes_to_upright, clip_boxes
from pipeline.datasets.dataset import STORED, Dataset, list_file_names
from pipeline.images import ImageHeader
from pipeline.types import Annotation
from pipeline.utils.errors import InputError, bad_field
from pipeline.utils.files import atomic_write, iter_json, sha256_of_file, sha256_of_json
from pipeline.vocabulary import Vocabulary, load_vocabulary
from teacher_cache.detectors.pairing import ObjectBoxes

# One detection: its image's place in the annotation file, box xyxy in pixels, 0-based object.
PROPOSAL_DTYPE = np.dtype([("image", "<i4"), ("box", "<f4", 4), ("label", "<i2"), ("score", "<f4")])
REQUIRED_FIELDS = ("image_id", "category_id", "bbox", "score")
NUMBER_TYPES = (int, float)
MAX_COORDINATE = 1e9
# Results round their numbers; what reaches less than this over an edge is not counted.
EDGE_TOLERANCE = 0.01
# What people are told, in this order.
OUTSIDE_IMAGE = "boxes over the image's edge (clipped)"
EMPTY_BOX = "boxes without area (dropped)"
UNANNOTATED_IMAGE = "detections of images that are not annotated (left out)"
UNKNOWN_OBJECT = "detections of COCO objects that the vocabulary does not have (left out)"

# (N,) places of images -> (N, 2) widths and heights, infinity where unknown.
ImageSizes = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True, eq=False)
class Proposals:
    """A detections file, read.

    Attributes:
        rows: (K,) `PROPOSAL_DTYPE`s, by image in the annotation file's order.
        digest: SHA-256 of the file.
        issue_counts: how often each kind of oddity was met.
        stored_rows: where the rows are kept for other processes.
    """

    rows: np.ndarray
    digest: str
    issue_counts: Counter[str]
    stored_rows: Path | None = None

    def by_image(self, num_images: int) -> Iterator[ObjectBoxes]:
        """The boxes of every image, in the annotation file's order."""
        ends = np.searchsorted(self.rows["image"], np.arange(num_images), side="right").tolist()
        for first, end in zip([0, *ends[:-1]], ends, strict=True):
            rows = self.rows[first:end]
            yield ObjectBoxes(rows["box"], rows["label"].astype(np.int64), rows["score"])

    def summary(self, file: Path, num_images: int) -> str:
        """For people: what was found, and what was clipped or dropped."""
        there = len(np.unique(self.rows["image"]))
        kinds = (OUTSIDE_IMAGE, EMPTY_BOX, UNANNOTATED_IMAGE, UNKNOWN_OBJECT)
        counts = [f"{self.issue_counts[kind]} {kind}" for kind in kinds if self.issue_counts[kind]]
        found = f"{len(self.rows)} detections in {there} of {num_images} images"
        return f"{file}: {', '.join([found, *counts])}"


def read_proposals(
    file: Path,
    images: dict[int | str, int],
    image_sizes: ImageSizes,
    vocabulary: Vocabulary,
    strict: bool = False,
) -> Proposals:
    """Reads a list of `{"image_id", "category_id", "bbox": [x, y, width, height], "score"}`.

    Args:
        file: the JSON file; it may be large.
        images: see `image_index_by_key`.
        image_sizes: the images' sizes, to clip boxes.
        vocabulary: its object ids are the category ids.
        strict: refuse boxes over the edge and without area.

    Raises:
        InputError: an entry is wrong; names it by its number, counted from 0.
    """
    parser = _EntryParser(file, images, vocabulary)
    places, labels, numbers, entries = array("i"), array("h"), array("d"), array("q")
    for entry, value in enumerate(iter_json(file)):
        row = parser.parse(value, f"entry {entry}")
        if row is not None:
            places.append(row[0])
            labels.append(row[1])
            numbers.extend(row[2])
            entries.append(entry)
    values = np.frombuffer(numbers, np.float64).reshape(-1, 5) if numbers else np.zeros((0, 5))
    boxes, image = values[:, :4].copy(), np.array(places, dtype=np.int32)
    sizes = image_sizes(image)
    form = BoxFormatCheck(XYWH)
    form.add(boxes, sizes)
    # Detectors predict over the edge; such boxes are clipped and counted.
    form.check(file, "bbox", scale=False)
    boxes[:, 2:] += boxes[:, :2]
    clipped = clip_boxes(boxes, sizes)
    over = (np.abs(clipped - boxes) > EDGE_TOLERANCE).any(axis=1)
    # In the type that is kept: what is a sliver in doubles may be nothing in floats.
    clipped = clipped.astype(np.float32)
    empty = (clipped[:, 2:] <= clipped[:, :2]).any(axis=1)
    if strict and (over | empty).any():
        worst = int(np.flatnonzero(over | empty)[0])
        expected = "a box with area inside the image"
        found = [round(number, 3) for number in values[worst, :4].tolist()]
        raise bad_field(file, f"entry {entries[worst]}: bbox", expected, found)
    parser.issue_counts.update(
        {OUTSIDE_IMAGE: int((over & ~empty).sum()), EMPTY_BOX: int(empty.sum())}
    )
    rows = np.zeros(len(image), PROPOSAL_DTYPE)
    rows["image"], rows["box"] = image, clipped
    rows["label"], rows["score"] = np.array(labels, dtype=np.int16), values[:, 4]
    rows = rows[~empty]
    order = np.argsort(rows["image"], kind="stable")
    return Proposals(rows[order], sha256_of_file(file), parser.issue_counts)


class _EntryParser:
    """Checks entries one by one."""

    def __init__(self, file: Path, images: dict[int | str, int], vocabulary: Vocabulary) -> None:
        self._file, self._images, self._vocabulary = file, images, vocabulary
        self._labels = vocabulary.label_by_category_id
        self._foreign = _other_coco_ids(vocabulary)
        self.issue_counts: Counter[str] = Counter()

    def parse(self, entry: Any, where: str) -> tuple[int, int, list[float]] | None:
        """Image, object, and x, y, width, height and score; None for what is left out.

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
        place = self._image_index(entry["image_id"], where)
        label = self._label(entry["category_id"], where)
        box, score = entry["bbox"], entry["score"]
        if not _are_numbers(box, 4):
            expected = "four finite numbers [x, y, width, height]"
            raise self._error(where, "bbox", expected, box)
        if box[2] < 0 or box[3] < 0:
            raise self._error(where, "bbox", "[x, y, width, height], sides from 0 on", box)
        if not _are_numbers([score], 1) or not 0 <= score <= 1:
            raise self._error(where, "score", "a number from 0 to 1", score)
        if place == NOT_ANNOTATED or label is None:
            self.issue_counts[UNANNOTATED_IMAGE if place == NOT_ANNOTATED else UNKNOWN_OBJECT] += 1
            return None
        return place, label, [*box, score]

    def _image_index(self, image: Any, where: str) -> int:
        is_key = type(image) in (int, str)
        place = self._images.get(image, UNKNOWN_IMAGE) if is_key else UNKNOWN_IMAGE
        if place == AMBIGUOUS_NUMBER:
            expected = "a file name, for several images have this number"
            raise self._error(where, "image_id", expected, image)
        if place == UNKNOWN_IMAGE:
            expected = "the file name or the number of an image of the dataset"
            raise self._error(where, "image_id", expected, image)
        return place

    def _label(self, category: Any, where: str) -> int | None:
        label = self._labels.get(category) if type(category) is int else None
        if label is None and (type(category) is not int or category not in self._foreign):
            ids = self._vocabulary.category_ids
            expected = f"an object id of {self._vocabulary.name} (from {min(ids)} to {max(ids)})"
            raise self._error(where, "category_id", expected, category)
        return label

    def _error(self, where: str, field: str, expected: str, found: object) -> InputError:
        return bad_field(self._file, f"{where}: {field}", expected, found)


def _are_numbers(values: Any, count: int) -> bool:
    """Whether this is a list of so many finite numbers of a size that pixels have."""
    return (
        isinstance(values, list)
        and len(values) == count
        and all(type(value) in NUMBER_TYPES and abs(value) < MAX_COORDINATE for value in values)
    )


def _other_coco_ids(vocabulary: Vocabulary) -> frozenset[int]:
    """COCO's ids that mean nothing here; none where the vocabulary has a numbering of its own.

    A COCO detector finds all 80 objects also where a vocabulary takes a few of them.
    """
    coco = load_vocabulary("hico-det")
    names = {number: coco.objects[label] for number, label in coco.label_by_category_id.items()}
    own = zip(vocabulary.category_ids, vocabulary.objects, strict=True)
    if any(names.get(number) != name for number, name in own):
        return frozenset()
    return frozenset(names.keys() - set(vocabulary.category_ids))


@dataclass(frozen=True)
class ProposalsConfig:
    """Where detections come from.

    Attributes:
        file: in COCO's results form.
        folder: the cache, where the rows are kept.
    """

    file: Path
    folder: Path


def load_proposals(
    config: ProposalsConfig, dataset: Dataset, annotations: AnnotationFile, strict: bool
) -> Proposals:
    """The rows that another process left, or the file's own.

    Args:
        config: where.
        dataset, annotations: what the detections are about.
        strict: refuse boxes over the edge and without area.

    Raises:
        InputError: the file is missing or wrong.
    """
    if not config.file.is_file():
        raise InputError(f"{config.file}: no such file")
    digest = sha256_of_file(config.file)
    # What the rows follow from. Strict builds do not take what a lenient one clipped.
    about = [digest, dataset.vocabulary.digest(), annotations.digest, annotations.part, strict]
    stored_rows = config.folder / f"proposals-{sha256_of_json(about)[:16]}.npy"
    try:
        rows = np.load(stored_rows, mmap_mode="r", allow_pickle=False)
    except (EOFError, OSError, ValueError):
        rows = None
    if rows is not None and rows.dtype == PROPOSAL_DTYPE:
        return Proposals(rows, digest, Counter(), stored_rows)
    folder = dataset.part(annotations.part).images
    images = image_index_by_key(
        annotations.annotations, list_file_names(folder) | annotations.unlabelled
    )
    image_sizes = _image_sizes(dataset, annotations)
    read = read_proposals(config.file, images, image_sizes, dataset.vocabulary, strict)
    _rotate_upright(read.rows, dataset, annotations)
    return replace(read, stored_rows=stored_rows)


def store_proposals(proposals: Proposals) -> None:
    """Leaves rows where `load_proposals` of other processes finds them."""
    assert proposals.stored_rows is not None
    if not proposals.stored_rows.is_file():
        with atomic_write(proposals.stored_rows) as temporary, open(temporary, "wb") as file:
            np.save(file, proposals.rows)


def remove_stored_proposals(proposals: Proposals) -> None:
    """Removes the rows; a finished cache does not need them."""
    assert proposals.stored_rows is not None
    proposals.stored_rows.unlink(missing_ok=True)


def _image_sizes(dataset: Dataset, annotations: AnnotationFile) -> ImageSizes:
    """Sizes as annotated, or as the pictures' headers say."""

    def image_sizes(places: np.ndarray) -> np.ndarray:
        distinct, rows = np.unique(places, return_inverse=True)
        sizes = np.full((len(distinct), 2), np.inf)
        stored = dataset.orientation == STORED
        asked = []
        for row, place in enumerate(distinct.tolist()):
            annotation = annotations.annotations[place]
            if annotation.size is None or stored:
                asked.append((row, annotation.image_id))
            else:
                sizes[row] = annotation.size
        headers = dataset.read_headers(annotations.part, [name for _, name in asked])
        for (row, _), header in zip(asked, headers, strict=True):
            # An image that cannot be read will be listed as failed, whatever its boxes.
            if isinstance(header, ImageHeader):
                sizes[row] = header.stored_size if stored else header.size
        return sizes[rows]

    return image_sizes


def _rotate_upright(rows: np.ndarray, dataset: Dataset, annotations: AnnotationFile) -> None:
    """Turns the boxes of rows upright, in place, where the dataset's files count stored pixels."""
    if dataset.orientation != STORED:
        return
    places, starts = np.unique(rows["image"], return_index=True)
    names = [annotations.annotations[place].image_id for place in places.tolist()]
    ends = [*starts[1:].tolist(), len(rows)]
    headers = dataset.read_headers(annotations.part, names)
    for header, start, end in zip(headers, starts.tolist(), ends, strict=True):
        if isinstance(header, ImageHeader):
            boxes = rows["box"][start:end]
            rows["box"][start:end] = boxes_to_upright(boxes, header.orientation, header.stored_size)


# What an image key that is no annotated image stands for.
UNKNOWN_IMAGE, NOT_ANNOTATED, AMBIGUOUS_NUMBER = -1, -2, -3
TRAILING_DIGITS = re.compile(r"\d+$")


def image_index_by_key(
    annotations: Sequence[Annotation], others: Iterable[str]
) -> dict[int | str, int]:
    """The place among `annotations` for every name and number that means one of them.

    Numbers are the annotation file's own where it has some, as COCO's files do. Elsewhere an
    image's number is the one that its file name ends with: 15 for `HICO_train2015_00000015.jpg`.

    Args:
        annotations: of the images that the teacher is run on.
        others: file names of images that lie beside them; NOT_ANNOTATED.

    Returns:
        Places by file name and by number; AMBIGUOUS for a number that several images share.
    """
    places = {annotation.image_id: place for place, annotation in enumerate(annotations)}
    keys: dict[int | str, int] = dict.fromkeys(others, NOT_ANNOTATED)
    keys.update(places)
    numbers = [(annotation.coco_image_id, place) for place, annotation in enumerate(annotations)]
    if all(number is None for number, _ in numbers):
        numbers = [(_trailing_number(str(name)), place) for name, place in keys.items()]
    for number, place in numbers:
        if number is not None:
            keys[number] = place if number not in keys else AMBIGUOUS_NUMBER
    return keys


def _trailing_number(name: str) -> int | None:
    digits = TRAILING_DIGITS.search(PurePosixPath(name).stem)
    return int(digits.group()) if digits else None
