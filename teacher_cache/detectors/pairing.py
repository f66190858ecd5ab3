"""Forms the human-object pairs that the teacher scores."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipeline.types import Annotation, Pairs
from pipeline.vocabulary import Vocabulary
from teacher_cache.reader.format import ANNOTATED, PROPOSED
from teacher_cache.reader.soft_targets import objects_with_actions


@dataclass(frozen=True)
class PairingConfig:
    """Which of a detector's boxes form pairs.

    Attributes:
        person_threshold, object_threshold: lowest score of a person and of the other partner.
        max_people, max_objects: at most so many of each per image, the best ones; None takes all.
    """

    person_threshold: float = 0.2
    object_threshold: float = 0.2
    max_people: int | None = 15
    max_objects: int | None = 15


# The published protocol pairs whatever people annotated.
UNRESTRICTED_PAIRING = PairingConfig(0.0, 0.0, None, None)


@dataclass(frozen=True, eq=False)
class ObjectBoxes:
    """What a detector, or the people who annotated, found in one image.

    Attributes:
        boxes: (N, 4) float32, xyxy, pixels of the image.
        labels: (N,) int64 object indices.
        scores: (N,) float32; 1 for annotated boxes.
    """

    boxes: np.ndarray
    labels: np.ndarray
    scores: np.ndarray


def form_pairs(found: ObjectBoxes, vocabulary: Vocabulary, config: PairingConfig) -> Pairs:
    """Every person with every other detection, people as objects too.

    Detections whose label forms no interaction are left out. Pairs stand in falling order of the
    person's score, then of the object's. Equal scores go by label and box, whatever the order in
    which they were found.
    """
    order = np.lexsort((*found.boxes.T[::-1], found.labels, -found.scores))
    scores, labels = found.scores[order], found.labels[order]
    is_person = (labels == vocabulary.person) & (scores >= config.person_threshold)
    people = order[is_person][: config.max_people]
    is_object = objects_with_actions(vocabulary)[labels] & (scores >= config.object_threshold)
    objects = order[is_object][: config.max_objects]
    human = np.repeat(people, len(objects))
    other = np.tile(objects, len(people))
    human, other = human[human != other], other[human != other]
    return Pairs(
        human_boxes=found.boxes[human],
        object_boxes=found.boxes[other],
        object_labels=found.labels[other],
        human_scores=found.scores[human],
        object_scores=found.scores[other],
        sources=np.full(len(human), PROPOSED, dtype=np.uint8),
    )


def annotated_pairs(annotation: Annotation) -> Pairs:
    """The distinct pairs that people annotated, in the order of their first label.

    Verbs without object form no pair, for there is no object.
    """
    distinct = dict.fromkeys(
        (human, other) for human, other, _ in annotation.hois.tolist() if other >= 0
    )
    rows = np.array(list(distinct), dtype=np.int64).reshape(-1, 2)
    return Pairs(
        human_boxes=annotation.boxes[rows[:, 0]],
        object_boxes=annotation.boxes[rows[:, 1]],
        object_labels=annotation.labels[rows[:, 1]],
        human_scores=np.ones(len(rows), dtype=np.float32),
        object_scores=np.ones(len(rows), dtype=np.float32),
        sources=np.full(len(rows), ANNOTATED, dtype=np.uint8),
    )


def annotated_boxes(annotation: Annotation) -> ObjectBoxes:
    """All boxes that people drew, those without label too."""
    scores = np.ones(len(annotation.labels), dtype=np.float32)
    return ObjectBoxes(annotation.boxes, annotation.labels, scores)


def concatenate_pairs(first: Pairs, second: Pairs) -> Pairs:
    """The rows of `first`, then those of `second`."""
    return Pairs(
        human_boxes=np.concatenate([first.human_boxes, second.human_boxes]),
        object_boxes=np.concatenate([first.object_boxes, second.object_boxes]),
        object_labels=np.concatenate([first.object_labels, second.object_labels]),
        human_scores=np.concatenate([first.human_scores, second.human_scores]),
        object_scores=np.concatenate([first.object_scores, second.object_scores]),
        sources=np.concatenate([first.sources, second.sources]),
    )


def pair_labels(annotation: Annotation, vocabulary: Vocabulary) -> np.ndarray:
    """(P, V) bool: labels of an image's annotated pairs, in the order of `annotated_pairs`."""
    rows: dict[tuple[int, int], int] = {}
    hois = [hoi for hoi in annotation.hois.tolist() if hoi[1] >= 0]
    numbers = [rows.setdefault((human, other), len(rows)) for human, other, _ in hois]
    labels = np.zeros((len(rows), vocabulary.num_verbs), dtype=bool)
    labels[numbers, [verb for _, _, verb in hois]] = True
    return labels
