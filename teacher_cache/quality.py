"""Measures teacher and detector on annotated pairs: how often they are right."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.boxes import box_iou
from pipeline.types import Annotation, Detections, Pairs
from pipeline.vocabulary import Vocabulary
from teacher_cache.format import ImageAnswers
from teacher_cache.pairing import ANNOTATED, PROPOSED, pair_labels
from teacher_cache.reader import TeacherCache

MAX_TRIPLETS = 100
LEAST_IOU = 0.5
# An image's annotation and the answers about it.
Held = tuple[Annotation, ImageAnswers]


@dataclass(frozen=True, eq=False)
class HeldImages:
    """The annotated images that a cache has answers about, read anew every time.

    Attributes:
        cache: the answers.
        annotations: of all images.
    """

    cache: TeacherCache
    annotations: Sequence[Annotation]

    def __iter__(self) -> Iterator[Held]:
        for annotation in self.annotations:
            if annotation.image_id in self.cache:
                yield annotation, self.cache[annotation.image_id]


def to_detections(
    image_id: str, answers: ImageAnswers, vocabulary: Vocabulary, source: int = PROPOSED
) -> Detections:
    """The teacher as a detector: probability x person's score x object's score, the best 100.

    Args:
        image_id: of the image.
        answers: its pairs and probabilities.
        vocabulary: of the cache.
        source: which pairs count, annotated or proposed ones.
    """
    chosen = answers.pairs.sources == source
    weights = answers.pairs.human_scores * answers.pairs.object_scores * chosen
    scores = answers.probabilities * weights[:, None]
    order = np.argsort(-scores, axis=None, kind="stable")[:MAX_TRIPLETS]
    order = order[scores.ravel()[order] > 0]
    pair, verb = np.unravel_index(order, scores.shape)
    people = np.full(len(pair), vocabulary.person, dtype=np.int64)
    ends = np.concatenate([answers.pairs.human_boxes[pair], answers.pairs.object_boxes[pair]])
    labels = np.concatenate([people, answers.pairs.object_labels[pair]])
    rows, numbers = np.unique(np.column_stack([ends, labels]), axis=0, return_inverse=True)
    human, other = numbers.reshape(2, -1)
    return Detections(
        image_id=image_id,
        boxes=rows[:, :4].astype(np.float32),
        labels=rows[:, 4].astype(np.int64),
        hois=np.stack([human, other, verb], axis=1),
        scores=scores.ravel()[order].astype(np.float32),
    )


def action_accuracy(held: Iterable[Held], vocabulary: Vocabulary) -> tuple[float, np.ndarray]:
    """How often the teacher's best action of an annotated pair is one of the pair's labels.

    Pairs labelled `no_interaction` are left out.

    Returns:
        The share of pairs, and (V,) the share of those that have the verb's label; NaN where
        there are none.
    """
    right, asked = np.zeros((2, vocabulary.num_verbs))
    num_right = num_asked = 0
    for annotation, answers in held:
        labels = pair_labels(annotation, vocabulary)
        best = answers.probabilities[answers.pairs.sources == ANNOTATED].argmax(axis=1)
        is_right = labels[np.arange(len(labels)), best]
        if vocabulary.no_interaction is not None:
            counted = ~labels[:, vocabulary.no_interaction]
            labels, is_right = labels[counted], is_right[counted]
        num_right, num_asked = num_right + int(is_right.sum()), num_asked + len(labels)
        right += labels[is_right].sum(axis=0)
        asked += labels.sum(axis=0)
    per_verb = np.divide(right, asked, out=np.full(len(asked), np.nan), where=asked > 0)
    return num_right / num_asked if num_asked else np.nan, per_verb


def box_recall(held: Iterable[Held], vocabulary: Vocabulary) -> dict[str, float]:
    """Shares of annotated boxes and pairs that the detector found at IoU >= 0.5.

    Returns:
        `person` and `object` (of the right class): boxes of annotated pairs; `pair`: annotated
        pairs both of whose boxes some proposed pair finds. NaN where there are none.
    """
    found: dict[str, list[bool]] = {"person": [], "object": [], "pair": []}
    for _, answers in held:
        pairs = answers.pairs
        truth = np.flatnonzero(pairs.sources == ANNOTATED)
        human, other = _overlaps(pairs)
        _, people = np.unique(pairs.human_boxes[truth], axis=0, return_index=True)
        things = np.column_stack([pairs.object_boxes[truth], pairs.object_labels[truth]])
        _, objects = np.unique(things, axis=0, return_index=True)
        objects = objects[pairs.object_labels[truth][objects] != vocabulary.person]
        found["person"].extend(np.any(human[people], axis=1))
        found["object"].extend(np.any(other[objects], axis=1))
        found["pair"].extend(np.any(human & other, axis=1))
    return {name: float(np.mean(hits)) if hits else np.nan for name, hits in found.items()}


def pair_recall(held: Iterable[Held], vocabulary: Vocabulary) -> tuple[np.ndarray, np.ndarray]:
    """How many annotated pairs have a verb's label, and which share of them is proposed.

    Returns:
        (V,) int64, and (V,) float64: pairs both of whose boxes some proposed pair finds at
        IoU >= 0.5; NaN where there are none.
    """
    labelled, found = np.zeros((2, vocabulary.num_verbs), dtype=np.int64)
    for annotation, answers in held:
        labels = pair_labels(annotation, vocabulary)
        human, other = _overlaps(answers.pairs)
        labelled += labels.sum(axis=0)
        found += labels[np.any(human & other, axis=1)].sum(axis=0)
    shares = np.full(len(labelled), np.nan)
    return labelled, np.divide(found, labelled, out=shares, where=labelled > 0)


def _overlaps(pairs: Pairs) -> tuple[np.ndarray, np.ndarray]:
    """(A, P) bool, twice: the P proposed pairs' people and objects that find those of the A
    annotated pairs, objects of the right class."""
    truth = np.flatnonzero(pairs.sources == ANNOTATED)
    proposed = np.flatnonzero(pairs.sources == PROPOSED)
    human = box_iou(pairs.human_boxes[truth], pairs.human_boxes[proposed]) >= LEAST_IOU
    other = box_iou(pairs.object_boxes[truth], pairs.object_boxes[proposed]) >= LEAST_IOU
    return human, other & (pairs.object_labels[truth][:, None] == pairs.object_labels[proposed])
