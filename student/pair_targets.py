"""What an image teaches: seen pairs with labels, candidate pairs with the teacher's answers."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import torch

from pipeline.boxes import box_iou
from pipeline.splits import Split, keep_seen
from pipeline.types import Annotation, Pairs
from pipeline.vocabulary import Vocabulary
from student.targets import Targets

PROTOCOLS = ("detector", "annotated")
ANNOTATED, PROPOSED = 0, 1


@dataclass(frozen=True)
class TargetConfig:
    """Which pairs teach, and how.

    Attributes:
        candidates: "detector" for the frozen detector's proposals, "annotated" for pairs of
            annotated boxes (the published, transductive protocol): all of them where the cache
            holds these, else the labelled pairs whose labels are all unseen.
        distillation: False silences the teacher and changes nothing else.
        overlap: a candidate goes when both its boxes overlap a seen pair of the same object by
            this IoU.
        box_score: least score of the detector's boxes that the dense head learns from.
    """

    candidates: str = "detector"
    distillation: bool = True
    overlap: float = 0.5
    box_score: float = 0.3


def image_targets(
    annotation: Annotation,
    pairs: Pairs,
    probabilities: np.ndarray,
    split: Split,
    vocabulary: Vocabulary,
    config: TargetConfig,
    protocol: str = "detector",
    embeddings: np.ndarray | None = None,
    shown: Collection[int] = (),
    source: int = 0,
) -> Targets:
    """Joins an image's annotation with the teacher's answers under a split: the image's training
    pairs before any transformation, boxes xyxy in pixels, seen pairs first.

    Args:
        annotation: all labels; those of unseen interactions are removed here.
        pairs: the cached pairs of the image.
        probabilities: (P, V) the teacher's answers for `pairs`.
        split: what is unseen, and for which verbs the teacher is asked.
        vocabulary: of annotation and cache.
        config: see `TargetConfig`.
        protocol: what the cache's candidate pairs are made of, boxes of a "detector" or
            "annotated" ones.
        embeddings: (P, D) the teacher's embeddings of the regions of `pairs`, for a student that
            learns from them.
        shown: rows of the annotation's labels that teach although the split hides them.
        source: number of the image's source. One of the main source, 0, is annotated whatever its
            labels; one of a further source is where training may see a label of it. Hidden labels
            do not count, so that nothing follows from their being there.
    """
    seen = keep_seen(annotation, split, vocabulary, shown)
    rows, inverse = _unique_pairs(seen.hois)
    humans = seen.boxes[rows[:, 0]]
    objects, labels = _objects(seen, rows[:, 1], vocabulary.num_objects)
    hard = np.zeros((len(rows), vocabulary.num_verbs), dtype=bool)
    hard[inverse, seen.hois[:, 2]] = True
    asked = split.asked_verbs.astype(np.float32) * config.distillation

    annotated = pairs.sources == ANNOTATED
    known, cached = np.nonzero(_same_pairs(humans, objects, labels, pairs) & annotated)
    soft = np.zeros(hard.shape, dtype=np.float32)
    soft[known] = probabilities[cached] * asked
    soft[hard] = 0

    only_labelled = config.candidates == "annotated" and protocol == "detector"
    wanted = annotated if only_labelled else ~annotated
    overlap = np.minimum(
        box_iou(humans, pairs.human_boxes), box_iou(objects, pairs.object_boxes)
    ) * (labels[:, None] == pairs.object_labels)
    candidates = np.flatnonzero(wanted & ~(overlap >= config.overlap).any(0))
    interactive = np.ones(len(rows), dtype=bool)
    if vocabulary.no_interaction is not None:
        interactive = ~hard[:, vocabulary.no_interaction]
    boxes, box_labels = _detected_boxes(pairs, vocabulary.person, config.box_score)
    count = len(candidates)
    width = 0 if embeddings is None else embeddings.shape[1]
    looks = np.zeros((len(rows) + count, width), dtype=np.float16)
    if embeddings is not None:
        looks[known] = embeddings[cached]
        looks[len(rows) :] = embeddings[candidates]
    values = {
        "human_boxes": np.concatenate([humans, pairs.human_boxes[candidates]]),
        "object_boxes": np.concatenate([objects, pairs.object_boxes[candidates]]),
        "object_labels": np.concatenate([labels, pairs.object_labels[candidates]]),
        "hard": np.concatenate([hard, np.zeros((count, hard.shape[1]), dtype=bool)]),
        "soft": np.concatenate([soft, (probabilities[candidates] * asked).astype(np.float32)]),
        "seen": np.arange(len(rows) + count) < len(rows),
        "interactive": np.concatenate([interactive, np.ones(count, dtype=bool)]),
        "embeddings": looks,
        "annotated": np.array([source == 0 or len(rows) > 0]),
        "source": np.array([source]),
        "detected_boxes": boxes,
        "detected_labels": box_labels,
        "detected_images": np.zeros_like(box_labels),
    }
    return Targets(**{name: torch.from_numpy(value) for name, value in values.items()})


def _unique_pairs(hois: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(K, 3) labels -> (P, 2) pairs (human row, object row) and (K,) the pair of each label."""
    rows, inverse = np.unique(hois[:, :2], axis=0, return_inverse=True)
    return rows.reshape(-1, 2), inverse.reshape(-1)


def _objects(
    annotation: Annotation, rows: np.ndarray, no_object: int
) -> tuple[np.ndarray, np.ndarray]:
    """(P, 4) boxes and (P,) labels of object rows; a verb without object (row -1) has an all-zero
    box and the label `no_object`: it teaches the query that no object goes with the person."""
    objectless = rows < 0
    boxes = np.where(objectless[:, None], np.float32(0), annotation.boxes[rows])
    return boxes, np.where(objectless, no_object, annotation.labels[rows])


def _same_pairs(
    humans: np.ndarray, objects: np.ndarray, labels: np.ndarray, pairs: Pairs
) -> np.ndarray:
    """(N, P) bool: annotated pair n is cached pair p, up to rounding of the boxes."""
    near = [
        np.abs(mine[:, None] - cached[None]).max(-1, initial=0) < 0.01
        for mine, cached in ((humans, pairs.human_boxes), (objects, pairs.object_boxes))
    ]
    return near[0] & near[1] & (labels[:, None] == pairs.object_labels)


def _detected_boxes(pairs: Pairs, person: int, score: float) -> tuple[np.ndarray, np.ndarray]:
    """The detector's own boxes, each once: people and objects that proposed pairs are made of."""
    proposed = pairs.sources == PROPOSED
    human = proposed & (pairs.human_scores >= score)
    thing = proposed & (pairs.object_scores >= score) & (pairs.object_labels != person)
    boxes = np.concatenate([pairs.human_boxes[human], pairs.object_boxes[thing]])
    labels = np.concatenate([np.full(human.sum(), person), pairs.object_labels[thing]])
    table = np.unique(np.column_stack([boxes, labels]), axis=0).reshape(-1, 5)
    return table[:, :4].astype(np.float32), table[:, 4].astype(np.int64)
