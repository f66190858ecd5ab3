"""Proposals: detections of another program in COCO's results format, which replace the detector."""

from __future__ import annotations

import re
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated

import numpy as np
from msgspec import Meta, Struct

from pipeline.annotations.base import XywhBox
from pipeline.annotations.box_format import XYWH, BoxFormatCheck
from pipeline.annotations.load import AnnotationFile
from pipeline.boxes import boxes_to_upright, clip_boxes
from pipeline.datasets.dataset import Dataset, list_file_names
from pipeline.datasets.layouts import STORED
from pipeline.images import ImageHeader
from pipeline.types import Annotation
from pipeline.utils.errors import bad_field
from pipeline.utils.files import iter_json, sha256_of_file
from pipeline.utils.schema import convert
from pipeline.utils.text import count_noun
from pipeline.vocabulary import Vocabulary, load_vocabulary
from teacher_cache.detectors.pairing import ObjectBoxes

# One detection: index of its image in the annotation file, xyxy box in pixels, object index, score.
PROPOSAL_DTYPE = np.dtype([("image", "<i4"), ("box", "<f4", 4), ("label", "<i2"), ("score", "<f4")])
# Pixels; results files contain rounded numbers, so smaller distances are not counted as outside.
EDGE_TOLERANCE = 0.01
# Issues that are counted and reported, in this order.
OUTSIDE_IMAGE = "boxes over the image's edge (clipped)"
EMPTY_BOX = "boxes without area (dropped)"
UNANNOTATED_IMAGE = "detections of images outside the annotated part (left out)"
UNKNOWN_OBJECT = "detections of COCO objects that the vocabulary does not have (left out)"

# Values of `image_index_by_key` for keys that do not mean one annotated image.
UNKNOWN_IMAGE, NOT_ANNOTATED, AMBIGUOUS_NUMBER = -1, -2, -3
EXPECTED_IMAGES = {
    UNKNOWN_IMAGE: "the file name or the number of an image of the dataset",
    AMBIGUOUS_NUMBER: "a file name, because several images have this number",
}
TRAILING_DIGITS = re.compile(r"\d+$")

# (N,) indices of images -> (N, 2) widths and heights, infinity where unknown.
ImageSizes = Callable[[np.ndarray], np.ndarray]


class _Entry(Struct):
    """An entry of a detections file."""

    image_id: int | str
    category_id: int
    bbox: XywhBox
    score: Annotated[float, Meta(ge=0, le=1)]


@dataclass(frozen=True, eq=False)
class Proposals:
    """Content of a detections file for `num_images` images: `PROPOSAL_DTYPE` rows, grouped by
    image, and its SHA-256."""

    rows: np.ndarray
    num_images: int
    digest: str
    issue_counts: Counter[str]

    def by_image(self) -> Iterator[ObjectBoxes]:
        """The boxes of each image, in the annotation file's order."""
        ends = np.searchsorted(
            self.rows["image"], np.arange(self.num_images), side="right"
        ).tolist()
        for first, end in zip([0, *ends[:-1]], ends, strict=True):
            rows = self.rows[first:end]
            yield ObjectBoxes(rows["box"], rows["label"].astype(np.int64), rows["score"])

    def summary(self, file: Path) -> str:
        """One line with the number of detections, and of those that were clipped or dropped."""
        num_with_detections = len(np.unique(self.rows["image"]))
        kinds = (OUTSIDE_IMAGE, EMPTY_BOX, UNANNOTATED_IMAGE, UNKNOWN_OBJECT)
        issues = [
            count_noun(self.issue_counts[kind], kind) for kind in kinds if self.issue_counts[kind]
        ]
        total = count_noun(len(self.rows), "detections")
        total += f" in {num_with_detections} of {self.num_images} images"
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
    labels, other_coco_ids = vocabulary.label_by_category_id, _other_coco_ids(vocabulary)
    issue_counts: Counter[str] = Counter()
    # A packed array: as Python objects, ten million detections would take gigabytes.
    numbers = array("d")
    for number, value in enumerate(iter_json(file)):
        where = f"entry {number}"
        entry = convert(value, _Entry, file, where)
        index, label = images.get(entry.image_id, UNKNOWN_IMAGE), labels.get(entry.category_id)
        if index in EXPECTED_IMAGES:
            raise bad_field(file, f"{where}.image_id", EXPECTED_IMAGES[index], entry.image_id)
        if label is None and entry.category_id not in other_coco_ids:
            ids = vocabulary.category_ids
            expected = f"an object id of {vocabulary.name} (from {min(ids)} to {max(ids)})"
            raise bad_field(file, f"{where}.category_id", expected, entry.category_id)
        if min(entry.bbox[2:]) < 0:
            raise bad_field(file, f"{where}.bbox", f"{XYWH} with sides >= 0", list(entry.bbox))
        if index == NOT_ANNOTATED:
            issue_counts[UNANNOTATED_IMAGE] += 1
        elif label is None:
            issue_counts[UNKNOWN_OBJECT] += 1
        else:
            numbers.extend((number, index, label, *entry.bbox, entry.score))
    table = np.array(numbers).reshape(-1, 8)
    images_of_rows, boxes = table[:, 1].astype(np.int32), table[:, 3:7].copy()
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
        box = table[first, 3:7].round(3).tolist()
        raise bad_field(file, f"entry {table[first, 0]:.0f}.bbox", expected, box)
    issue_counts[OUTSIDE_IMAGE] = int((is_outside & ~is_empty).sum())
    issue_counts[EMPTY_BOX] = int(is_empty.sum())
    rows = np.zeros(len(table), PROPOSAL_DTYPE)
    rows["image"], rows["box"] = images_of_rows, clipped
    rows["label"], rows["score"] = table[:, 2], table[:, 7]
    rows = rows[~is_empty]
    order = np.argsort(rows["image"], kind="stable")
    num_images = 1 + max(images.values(), default=-1)
    return Proposals(rows[order], num_images, sha256_of_file(file), issue_counts)


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
    """Reads a detections file for a part of a dataset, see `read_proposals`."""
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

    Returns:
        Indices by file name and number; NOT_ANNOTATED for `others`, images in their folder, and
        AMBIGUOUS_NUMBER for a number that several images share.
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
