"""What is wrong with wrong detections: kinds of error for human-object pairs.

TIDE (Bolya et al. 2020) sorts the errors of object detectors by what would mend them; the same idea
for triplets. Overlap is min(human IoU, object IoU) with an annotated triplet of the image, in the
benchmark's convention. The first kind that fits, from the top of this list:

* duplicate: the triplet is there, overlap >= 0.5, and a better-scoring detection has it already;
* wrong verb: an annotated pair of this object class with overlap >= 0.5 lacks this verb;
* wrong object: an annotated pair with overlap >= 0.5 has another object class;
* localisation: the triplet is there with overlap of at least 0.1 and less than 0.5;
* wrong pair: an annotated person and an annotated object of this class, each found with IoU >= 0.5,
  that nobody labelled as a pair;
* background: everything else.

Detections with scores near zero cost nothing, and there are many. As in Hoiem et al. 2012, what
counts are the N best-scoring detections of each interaction, N being the number of its annotated
triplets: the errors among these are what keeps average precision down.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from evaluation.hico.matching import (
    IOU_THRESHOLD,
    MatchedDetections,
    hico_iou,
    interaction_verbs_and_objects,
    join,
)
from pipeline.vocabulary import Vocabulary

ERROR_KINDS = (
    "wrong_verb",
    "wrong_object",
    "localisation",
    "duplicate",
    "wrong_pair",
    "background",
)


MIN_IOU = 0.1
CORRECT = -1
WRONG_VERB, WRONG_OBJECT, LOCALISATION, DUPLICATE, WRONG_PAIR, BACKGROUND = range(len(ERROR_KINDS))
ERROR_TITLES = {
    "wrong_verb": "wrong verb",
    "wrong_object": "wrong object",
    "localisation": "localisation",
    "duplicate": "duplicate",
    "wrong_pair": "wrong pair",
    "background": "background",
}
# In the order in which they are tried.
ERROR_DEFINITIONS = {
    "duplicate": "labelled, both boxes overlap it by half, but a better-scoring detection has it",
    "wrong_verb": "both boxes overlap a labelled pair of this object class by half, but the pair"
    " does not have this verb",
    "wrong_object": "both boxes overlap a labelled pair by half, but with another class of object",
    "localisation": "labelled, but one of the boxes overlaps by under half, and both by a tenth",
    "wrong_pair": "the person and the object are labelled, but not with each other",
    "background": "nothing labelled fits",
}


@dataclass(frozen=True)
class ErrorCounts:
    """Errors of one result among some interactions.

    Attributes:
        by_kind: number of errors, in the order of `ERROR_KINDS`.
        num_correct: number of correct detections.
    """

    by_kind: tuple[int, ...]
    num_correct: int

    @property
    def num_wrong(self) -> int:
        return sum(self.by_kind)

    @property
    def shares(self) -> tuple[float, ...]:
        """Shares of the errors, fractions; zeros where nothing is wrong."""
        return tuple(number / max(self.num_wrong, 1) for number in self.by_kind)


def classify_errors(matched: MatchedDetections, vocabulary: Vocabulary) -> np.ndarray:
    """The kind of every detection's error.

    Returns:
        (len(matched.detections),) int64, index into `ERROR_KINDS`, `CORRECT` for right detections.
    """
    wrong = np.flatnonzero(~matched.tp_mask)
    found, ground_truth = matched.detections.keep(wrong), matched.ground_truth
    _, object_of = interaction_verbs_and_objects(vocabulary)
    is_kind = np.zeros((len(ERROR_KINDS), len(wrong)), dtype=bool)
    human_there, object_there = np.zeros((2, len(wrong)), dtype=bool)
    for rows, targets in join(found.images, ground_truth.images):
        human = hico_iou(found.human_boxes[rows], ground_truth.human_boxes[targets])
        other = hico_iou(found.object_boxes[rows], ground_truth.object_boxes[targets])
        overlap = np.minimum(human, other)
        own, labelled = found.interactions[rows], ground_truth.interactions[targets]
        same_object = object_of[own] == object_of[labelled]
        near = overlap >= IOU_THRESHOLD
        is_kind[DUPLICATE, rows[near & (own == labelled)]] = True
        is_kind[WRONG_VERB, rows[near & same_object]] = True
        is_kind[WRONG_OBJECT, rows[near]] = True
        is_kind[LOCALISATION, rows[(overlap >= MIN_IOU) & (own == labelled)]] = True
        human_there[rows[human >= IOU_THRESHOLD]] = True
        object_there[rows[same_object & (other >= IOU_THRESHOLD)]] = True
    is_kind[WRONG_PAIR] = human_there & object_there
    kinds = np.full(len(matched.tp_mask), CORRECT, dtype=np.int64)
    kinds[wrong] = BACKGROUND
    # The first of the list is written last.
    for kind in (WRONG_PAIR, LOCALISATION, WRONG_OBJECT, WRONG_VERB, DUPLICATE):
        kinds[wrong[is_kind[kind]]] = kind
    return kinds


def top_scoring_mask(matched: MatchedDetections, vocabulary: Vocabulary) -> np.ndarray:
    """(len(matched.detections),) bool: among the N best of an interaction with N positives."""
    interactions = matched.detections.interactions
    counts = np.bincount(interactions, minlength=vocabulary.num_interactions)
    order = np.argsort(interactions, kind="stable")
    first = np.cumsum(counts) - counts
    rank = np.empty(len(interactions), dtype=np.int64)
    rank[order] = np.arange(len(interactions)) - first[interactions[order]]
    return rank < matched.num_positives(vocabulary.num_interactions)[interactions]


def count_errors(
    matched: MatchedDetections, kinds: np.ndarray, counted: np.ndarray, interactions: Sequence[int]
) -> ErrorCounts:
    """Errors among the detections of some interactions.

    Args:
        kinds: what `classify_errors` returned.
        counted: (len(matched.detections),) bool, detections to count.
        interactions: HOI indices.
    """
    mine = counted & np.isin(
        matched.detections.interactions, np.asarray(interactions, dtype=np.int64)
    )
    numbers = np.bincount(kinds[mine] + 1, minlength=len(ERROR_KINDS) + 1)
    return ErrorCounts(tuple(int(number) for number in numbers[1:]), int(numbers[0]))
