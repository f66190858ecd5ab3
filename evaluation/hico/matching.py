"""The HICO-DET protocol: matching detections to annotated triplets, all images at once.

A detection is a true positive when its verb and object class are annotated in the image, both of
its boxes overlap the annotated ones with IoU >= 0.5, and no better-scoring detection has taken the
same annotated triplet (EoID section 4.1; Chao et al. 2018).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Literal

import numpy as np

from pipeline.types import Annotation, Detections
from pipeline.utils.errors import InputError
from pipeline.vocabulary import Vocabulary

# The last one is SWIG-HOI's protocol (`evaluation.swig`).
Setting = Literal["default", "known_object", "swig"]

IOU_THRESHOLD = 0.5
# Number of keys that are joined at a time, which bounds the memory for the pairs.
KEYS_PER_CHUNK = 50_000


@dataclass(frozen=True, eq=False)
class Triplets:
    """Human-verb-object triplets of many images, one row each.

    Attributes:
        images: (N,) int64, index of the image.
        interactions: (N,) int64, HOI index.
        human_boxes, object_boxes: (N, 4) float64, xyxy, pixels.
        scores: (N,) float64; 1 for annotations.
        source_rows: (N,) int64, row among all rows given to `collect_triplets`, before triplets
            outside the vocabulary's interactions were left out.
    """

    images: np.ndarray
    interactions: np.ndarray
    human_boxes: np.ndarray
    object_boxes: np.ndarray
    scores: np.ndarray
    source_rows: np.ndarray

    def __len__(self) -> int:
        return len(self.images)

    def keep(self, rows: np.ndarray) -> Triplets:
        """The rows selected by a mask or by indices."""
        return Triplets(*(getattr(self, field.name)[rows] for field in fields(self)))


@dataclass(frozen=True, eq=False)
class MatchedDetections:
    """Detections of a test set by falling score, matched to the ground truth.

    Attributes:
        detections: N detections; equal scores keep the order of images and rows.
        ground_truth: annotated triplets.
        tp_mask: (N,) bool, true positives.
    """

    detections: Triplets
    ground_truth: Triplets
    tp_mask: np.ndarray

    def num_positives(self, num_interactions: int) -> np.ndarray:
        """(H,) int64, number of annotated triplets of each interaction."""
        return np.bincount(self.ground_truth.interactions, minlength=num_interactions)


@dataclass(frozen=True, eq=False)
class Matches:
    """All detections of a test set, matched once for the scores and for the report.

    Attributes:
        detections: at most one item for each image, in the order of the annotated images.
        matched: their triplets.
        known_object_mask: (N,) bool, detections that count in the known-object setting. The others
            have no ground truth in their image, so the true positives are the same in both
            settings.
    """

    detections: Sequence[Detections]
    matched: MatchedDetections
    known_object_mask: np.ndarray

    def matched_detections(self, setting: Setting = "default") -> MatchedDetections:
        """The detections that count in a setting, by falling score."""
        if setting != "known_object":
            return self.matched
        return MatchedDetections(
            self.matched.detections.keep(self.known_object_mask),
            self.matched.ground_truth,
            self.matched.tp_mask[self.known_object_mask],
        )


def match_detections(
    annotations: Sequence[Annotation], detections: Sequence[Detections], vocabulary: Vocabulary
) -> Matches:
    """Matches the detections of a test set to its annotations.

    Args:
        annotations: one for each image of the test set; all triplets of an image without
            detections are missed.
        detections: at most one item for each image, in any order.

    Raises:
        InputError: there are detections on an image without annotation.
    """
    index_of = {item.image_id: index for index, item in enumerate(annotations)}
    unknown = [item.image_id for item in detections if item.image_id not in index_of]
    if unknown:
        raise InputError(
            f"predictions: expected images that the annotations name, found {len(unknown)} others,"
            f" the first being {unknown[0]}"
        )
    # By annotated image, so that ties do not depend on the order of the predictions.
    ordered = sorted(detections, key=lambda item: index_of[item.image_id])
    images = np.array([index_of[item.image_id] for item in ordered], dtype=np.int64)
    triplets = collect_triplets(ordered, images, vocabulary)
    ground_truth = collect_triplets(annotations, np.arange(len(annotations)), vocabulary)
    tp_mask = match_triplets(triplets, ground_truth)
    order = np.argsort(-triplets.scores, kind="stable")
    matched = MatchedDetections(triplets.keep(order), ground_truth, tp_mask[order])
    known = _known_object_mask(matched.detections, ground_truth, vocabulary)
    return Matches(ordered, matched, known)


def match_and_sort(
    annotations: Sequence[Annotation],
    detections: Sequence[Detections],
    vocabulary: Vocabulary,
    setting: Setting = "default",
) -> MatchedDetections:
    """Matched detections by falling score; see `match_detections`."""
    return match_detections(annotations, detections, vocabulary).matched_detections(setting)


def collect_triplets(
    items: Sequence[Annotation] | Sequence[Detections], images: np.ndarray, vocabulary: Vocabulary
) -> Triplets:
    """The triplets of several images that are interactions of the vocabulary.

    As in the benchmark, all other triplets are left out: pairs that form no interaction, subjects
    that are not a person, verbs without object.

    Args:
        items: annotations or detections.
        images: (len(items),) image indices.
    """
    if not items:
        no_rows, no_boxes = np.zeros(0, dtype=np.int64), np.zeros((0, 4))
        return Triplets(no_rows, no_rows, no_boxes, no_boxes, np.zeros(0), no_rows)
    box_counts = np.array([len(item.boxes) for item in items])
    hoi_counts = np.array([len(item.hois) for item in items])
    boxes = np.concatenate([item.boxes.reshape(-1, 4) for item in items])
    labels = np.concatenate([item.labels for item in items])
    hois = np.concatenate([item.hois.reshape(-1, 3) for item in items])
    scores = np.concatenate(
        [item.scores if isinstance(item, Detections) else np.ones(len(item.hois)) for item in items]
    )
    first_box = np.repeat(np.cumsum(box_counts) - box_counts, hoi_counts)
    humans, objects = hois[:, 0] + first_box, hois[:, 1] + first_box
    interactions = vocabulary.interaction_ids[hois[:, 2], labels[objects]]
    paired = hois[:, 1] >= 0
    known = np.flatnonzero(paired & (interactions >= 0) & (labels[humans] == vocabulary.person))
    return Triplets(
        np.repeat(images, hoi_counts)[known],
        interactions[known],
        boxes[humans[known]].astype(np.float64),
        boxes[objects[known]].astype(np.float64),
        scores[known].astype(np.float64),
        known,
    )


def match_triplets(
    detections: Triplets,
    ground_truth: Triplets,
    box_iou: Callable[[np.ndarray, np.ndarray], np.ndarray] | None = None,
) -> np.ndarray:
    """Mask of the true positives.

    A detection is assigned to the annotated triplet of the same image and interaction with the
    largest min(human IoU, object IoU), the first of equal ones, provided that both IoUs reach 0.5.
    Of the detections assigned to the same annotated triplet, the best-scoring one is the true
    positive, the first of equal ones.

    Args:
        box_iou: row-wise IoU of two (N, 4) arrays of boxes; None for `hico_iou`.

    Returns:
        (len(detections),) bool.
    """
    box_iou = box_iou or hico_iou
    tp_mask = np.zeros(len(detections), dtype=bool)
    if not len(detections):
        return tp_mask
    keys, truth_keys = (
        triplets.images << 32 | triplets.interactions for triplets in (detections, ground_truth)
    )
    assigned = []
    for rows, targets in join(keys, truth_keys):
        iou = box_iou(detections.human_boxes[rows], ground_truth.human_boxes[targets])
        # Most pairs fail by their human boxes, so the IoU of the objects is rarely needed.
        near = iou >= IOU_THRESHOLD
        rows, targets, iou = rows[near], targets[near], iou[near]
        object_iou = box_iou(detections.object_boxes[rows], ground_truth.object_boxes[targets])
        iou = np.minimum(iou, object_iou)
        near = iou >= IOU_THRESHOLD
        rows, targets, iou = rows[near], targets[near], iou[near]
        best = np.lexsort((-iou, rows))
        rows, first = np.unique(rows[best], return_index=True)
        assigned.append((rows, targets[best[first]]))
    rows, targets = (np.concatenate(column) for column in zip(*assigned, strict=True))
    by_score = np.argsort(-detections.scores[rows], kind="stable")
    _, first = np.unique(targets[by_score], return_index=True)
    tp_mask[rows[by_score[first]]] = True
    return tp_mask


def _known_object_mask(
    detections: Triplets, ground_truth: Triplets, vocabulary: Vocabulary
) -> np.ndarray:
    """Mask of the detections whose object class some annotated interaction of the image has."""
    _, object_of = interaction_verbs_and_objects(vocabulary)
    stride = vocabulary.num_objects
    present = np.unique(ground_truth.images * stride + object_of[ground_truth.interactions])
    return np.isin(detections.images * stride + object_of[detections.interactions], present)


def count_interactions(annotations: Sequence[Annotation], vocabulary: Vocabulary) -> np.ndarray:
    """(H,) int64: number of annotated triplets of each interaction."""
    triplets = collect_triplets(annotations, np.arange(len(annotations)), vocabulary)
    return np.bincount(triplets.interactions, minlength=vocabulary.num_interactions)


def interaction_verbs_and_objects(vocabulary: Vocabulary) -> tuple[np.ndarray, np.ndarray]:
    """(H,) int64 each: verb and object of every interaction."""
    pairs = np.array(vocabulary.interactions, dtype=np.int64).reshape(-1, 2)
    return pairs[:, 0], pairs[:, 1]


def hico_iou(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Row-wise IoU as the benchmark computes it: `inclusive_iou`, but 0 for boxes that only touch.

    Args:
        first, second: (N, 4) float64, xyxy, pixels.

    Returns:
        (N,) float64.
    """
    width = np.minimum(first[:, 2], second[:, 2]) - np.maximum(first[:, 0], second[:, 0])
    height = np.minimum(first[:, 3], second[:, 3]) - np.maximum(first[:, 1], second[:, 1])
    return np.where((width <= 0) | (height <= 0), 0.0, inclusive_iou(first, second))


def inclusive_iou(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Row-wise IoU of boxes that include their last pixel, so sides are x2 - x1 + 1.

    Args:
        first, second: (N, 4) floats, xyxy, pixels.

    Returns:
        (N,) of the same type; NaN where a coordinate is NaN.
    """
    width = np.minimum(first[:, 2], second[:, 2]) - np.maximum(first[:, 0], second[:, 0]) + 1
    height = np.minimum(first[:, 3], second[:, 3]) - np.maximum(first[:, 1], second[:, 1]) + 1
    overlap = np.maximum(width, 0) * np.maximum(height, 0)
    first_area, second_area = (
        (boxes[:, 2] - boxes[:, 0] + 1) * (boxes[:, 3] - boxes[:, 1] + 1)
        for boxes in (first, second)
    )
    return overlap / (first_area + second_area - overlap)


def join(keys: np.ndarray, other_keys: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Every pair of rows with equal keys, for `KEYS_PER_CHUNK` of `keys` at a time.

    Args:
        keys, other_keys: (N,) and (M,) integers.

    Yields:
        rows of `keys` in rising order, and the matching rows of `other_keys`.
    """
    order = np.argsort(other_keys, kind="stable")
    sorted_keys = other_keys[order]
    for first in range(0, len(keys), KEYS_PER_CHUNK):
        chunk = keys[first : first + KEYS_PER_CHUNK]
        start = np.searchsorted(sorted_keys, chunk, side="left")
        counts = np.searchsorted(sorted_keys, chunk, side="right") - start
        rows = np.repeat(np.arange(len(chunk)), counts)
        within = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
        yield first + rows, order[start[rows] + within]
