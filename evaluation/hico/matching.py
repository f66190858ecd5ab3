"""Which detections are right: HICO-DET's matching, for all images at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np

from pipeline.types import Annotation, Detections
from pipeline.utils.errors import InputError
from pipeline.vocabulary import Vocabulary

IOU_THRESHOLD = 0.5


@dataclass(frozen=True, eq=False)
class Triplets:
    """Human-action-object triplets of many images, one row each.

    Attributes:
        images: (N,) int64, number of the image.
        interactions: (N,) int64, HOI index.
        human_boxes, object_boxes: (N, 4) float64, xyxy, pixels.
        scores: (N,) float64; 1 for annotations.
        source_rows: (N,) int64, row among all rows given to `collect_triplets`, before
            triplets outside the vocabulary's interactions were left out.
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
        """The rows picked by a mask or by indices."""
        return Triplets(
            self.images[rows],
            self.interactions[rows],
            self.human_boxes[rows],
            self.object_boxes[rows],
            self.scores[rows],
            self.source_rows[rows],
        )


def concatenate_triplets(parts: Sequence[Triplets]) -> Triplets:
    """The triplets of several calls of `collect_triplets`, one call's behind the other's."""
    names = [entry.name for entry in fields(Triplets)]
    return Triplets(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))


def index_images(
    annotations: Sequence[Annotation], detections: Sequence[Detections]
) -> tuple[np.ndarray, np.ndarray]:
    """One number for each image, shared by its annotation and its detections.

    Returns:
        image numbers of the annotations and of the detections, int64.

    Raises:
        InputError: detections for an image that nobody annotated.
    """
    number = {item.image_id: index for index, item in enumerate(annotations)}
    unknown = [item.image_id for item in detections if item.image_id not in number]
    if unknown:
        raise InputError(
            f"predictions: expected images that the annotations name, found {len(unknown)} others,"
            f" the first being {unknown[0]}"
        )
    own = np.array([number[item.image_id] for item in annotations], dtype=np.int64)
    return own, np.array([number[item.image_id] for item in detections], dtype=np.int64)


def collect_triplets(
    items: Sequence[Annotation] | Sequence[Detections], images: np.ndarray, vocabulary: Vocabulary
) -> Triplets:
    """All triplets of the vocabulary's interactions; others (wrong pairs, subjects that are no
    person, verbs without object) are left out, as the benchmark does.

    Args:
        items: annotations or detections.
        images: (len(items),) image numbers.
    """
    if not items:
        nothing, no_boxes = np.zeros(0, dtype=np.int64), np.zeros((0, 4))
        return Triplets(nothing, nothing, no_boxes, no_boxes, np.zeros(0), nothing)
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


def argsort_desc(scores: np.ndarray) -> np.ndarray:
    """(N,) rows by falling score, equal ones as they stand; quicker than a stable sort."""
    order = np.argsort(-scores)
    tied = np.concatenate([[False], scores[order][1:] == scores[order][:-1]])
    if tied.any():
        run = np.cumsum(~tied)
        tied[:-1] |= tied[1:]
        rows = order[tied]
        order[tied] = rows[np.lexsort((rows, run[tied]))]
    return order


def hico_iou(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """IoU row by row in the benchmark's convention: a box's last pixel belongs to it (+1), boxes
    that only touch do not overlap.

    Args:
        first, second: (N, 4) float64, xyxy, pixels.

    Returns:
        (N,) float64.
    """
    width = np.minimum(first[:, 2], second[:, 2]) - np.maximum(first[:, 0], second[:, 0])
    height = np.minimum(first[:, 3], second[:, 3]) - np.maximum(first[:, 1], second[:, 1])
    overlap = (width + 1) * (height + 1)
    union = inclusive_box_area(first) + inclusive_box_area(second) - overlap
    touching = (width <= 0) | (height <= 0)
    return np.where(touching, 0.0, overlap / np.where(touching, 1.0, union))


def inclusive_box_area(boxes: np.ndarray) -> np.ndarray:
    """(N,) areas of (N, 4) xyxy boxes in pixels, the last pixel included."""
    return (boxes[:, 2] - boxes[:, 0] + 1) * (boxes[:, 3] - boxes[:, 1] + 1)


def match_triplets(detections: Triplets, ground_truth: Triplets) -> np.ndarray:
    """Marks the detections that are right.

    A detection goes to the annotated triplet of the same image and interaction with the largest
    min(human IoU, object IoU) (the first among equals), if both reach 0.5. Of the detections that
    go to the same annotated triplet the best-scoring one is right (the first among equals), all
    others are wrong.

    Args:
        detections: detections.
        ground_truth: annotations.

    Returns:
        (len(detections),) bool.
    """
    tp_mask = np.zeros(len(detections), dtype=bool)
    if not len(detections) or not len(ground_truth):
        return tp_mask
    stride = 1 + max(int(detections.interactions.max()), int(ground_truth.interactions.max()))
    truth_keys = ground_truth.images * stride + ground_truth.interactions
    truth_order = np.argsort(truth_keys, kind="stable")
    keys, starts, sizes = np.unique(truth_keys[truth_order], return_index=True, return_counts=True)
    found_keys = detections.images * stride + detections.interactions
    place = np.searchsorted(keys, found_keys).clip(max=len(keys) - 1)
    asked = np.flatnonzero(keys[place] == found_keys)
    start, counts = starts[place[asked]], sizes[place[asked]]

    # One row for each detection and annotated triplet of its image and interaction.
    which = np.repeat(np.arange(len(asked)), counts)
    within = np.arange(len(which)) - np.repeat(np.cumsum(counts) - counts, counts)
    rows, targets = asked[which], truth_order[start[which] + within]
    quality = hico_iou(detections.human_boxes[rows], ground_truth.human_boxes[targets])
    # The people settle most rows.
    near = np.flatnonzero(quality >= IOU_THRESHOLD)
    rows, targets, quality = rows[near], targets[near], quality[near]
    object_iou = hico_iou(detections.object_boxes[rows], ground_truth.object_boxes[targets])
    quality = np.minimum(quality, object_iou)
    near = np.flatnonzero(quality >= IOU_THRESHOLD)
    rows, targets = _best_targets(rows[near], targets[near], quality[near])

    # Written in rising order of the scores, so the best detection of a triplet stays.
    rising = argsort_desc(detections.scores[rows])[::-1]
    winners = np.full(len(ground_truth), -1, dtype=np.int64)
    winners[targets[rising]] = rows[rising]
    tp_mask[winners[winners >= 0]] = True
    return tp_mask


def _best_targets(
    rows: np.ndarray, targets: np.ndarray, quality: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Each row once, with the target of the highest quality, the first among equals.

    Args:
        rows: (N,) in rising order.
        targets, quality: (N,).
    """
    if not len(rows):
        return rows, targets
    starts = np.flatnonzero(np.concatenate([[True], rows[1:] != rows[:-1]]))
    sizes = np.diff(np.append(starts, len(rows)))
    wins = np.flatnonzero(quality == np.repeat(np.maximum.reduceat(quality, starts), sizes))
    first = np.concatenate([[True], rows[wins][1:] != rows[wins][:-1]])
    return rows[wins[first]], targets[wins[first]]
