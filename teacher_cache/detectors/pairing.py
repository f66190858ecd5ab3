"""Forms the human-object pairs that the teacher scores, from detected or annotated boxes."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np

from pipeline.types import Annotation, Pairs
from pipeline.vocabulary import Vocabulary
from teacher_cache.reader.format import ANNOTATED, PROPOSED
from teacher_cache.reader.soft_targets import objects_with_actions


@dataclass(frozen=True)
class PairingConfig:
    """Which boxes form pairs.

    Attributes:
        person_threshold, object_threshold: lowest score of a person and of an object.
        max_people, max_objects: largest number of each per image, in order of their scores; None
            for no limit.
    """

    person_threshold: float = 0.2
    object_threshold: float = 0.2
    max_people: int | None = 15
    max_objects: int | None = 15


# The published protocol pairs all annotated boxes.
UNRESTRICTED_PAIRING = PairingConfig(0.0, 0.0, None, None)


@dataclass(frozen=True, eq=False)
class ObjectBoxes:
    """Detected or annotated boxes of one image.

    Attributes:
        boxes: (N, 4) float32, xyxy, pixels of the image.
        labels: (N,) int64 object indices.
        scores: (N,) float32; 1 for annotated boxes.
    """

    boxes: np.ndarray
    labels: np.ndarray
    scores: np.ndarray


def form_pairs(detections: ObjectBoxes, vocabulary: Vocabulary, config: PairingConfig) -> Pairs:
    """Pairs every person with every other box; other persons count as objects too.

    Boxes whose object forms no interaction are left out. Pairs are sorted by descending score of
    the person, then of the object.
    """
    # Ties are broken by label and box, so that the result does not depend on the boxes' order.
    order = np.lexsort((*detections.boxes.T[::-1], detections.labels, -detections.scores))
    scores, labels = detections.scores[order], detections.labels[order]
    is_person = (labels == vocabulary.person) & (scores >= config.person_threshold)
    people = order[is_person][: config.max_people]
    is_object = objects_with_actions(vocabulary)[labels] & (scores >= config.object_threshold)
    objects = order[is_object][: config.max_objects]
    humans = np.repeat(people, len(objects))
    others = np.tile(objects, len(people))
    humans, others = humans[humans != others], others[humans != others]
    return Pairs(
        human_boxes=detections.boxes[humans],
        object_boxes=detections.boxes[others],
        object_labels=detections.labels[others],
        human_scores=detections.scores[humans],
        object_scores=detections.scores[others],
        sources=np.full(len(humans), PROPOSED, dtype=np.uint8),
    )


def annotated_pairs(annotation: Annotation) -> Pairs:
    """The distinct annotated pairs of an image, in the order of their first labels.

    Labels without an object (some verbs of V-COCO) form no pair.
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
    """All annotated boxes of an image, including those without an interaction."""
    scores = np.ones(len(annotation.labels), dtype=np.float32)
    return ObjectBoxes(annotation.boxes, annotation.labels, scores)


def concatenate_pairs(first: Pairs, second: Pairs) -> Pairs:
    """The rows of `first`, then those of `second`."""
    names = [field.name for field in fields(Pairs)]
    return Pairs(
        **{name: np.concatenate([getattr(first, name), getattr(second, name)]) for name in names}
    )


def pair_labels(annotation: Annotation, vocabulary: Vocabulary) -> np.ndarray:
    """(P, V) bool: verb labels of an image's annotated pairs, in the order of `annotated_pairs`."""
    row_by_pair: dict[tuple[int, int], int] = {}
    hois = [hoi for hoi in annotation.hois.tolist() if hoi[1] >= 0]
    rows = [row_by_pair.setdefault((human, other), len(row_by_pair)) for human, other, _ in hois]
    labels = np.zeros((len(row_by_pair), vocabulary.num_verbs), dtype=bool)
    labels[rows, [verb for _, _, verb in hois]] = True
    return labels
