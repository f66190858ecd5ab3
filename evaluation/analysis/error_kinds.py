"""Kinds of false positives of human-object pairs, as in `ERROR_DEFINITIONS`.

TIDE (Bolya et al. 2020) classifies the errors of object detectors by the fix that would make them
correct; this is the same for triplets. IoU is min(human IoU, object IoU) with an annotated triplet
of the image, computed as in the benchmark.

A model has many detections with scores near zero, which hardly change its average precision. As in
Hoiem et al. 2012, errors are counted among the N best-scoring detections of each interaction, where
N is the number of its annotated triplets: these are the errors that lower average precision.
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
CORRECT = -1
# Minimum IoU of a localisation error, as in TIDE.
MIN_IOU = 0.1
ERROR_TITLES = {name: name.replace("_", " ") for name in ERROR_KINDS}
# In the order in which the kinds are tried: an error is of the first kind that applies.
ERROR_DEFINITIONS = {
    "duplicate": "the interaction is labelled and both boxes have IoU ≥ 0.5, but a better-scoring"
    " detection matches the same label",
    "wrong_verb": "both boxes have IoU ≥ 0.5 with a labelled pair of this object class, but the"
    " pair does not have this verb",
    "wrong_object": "both boxes have IoU ≥ 0.5 with a labelled pair of another object class",
    "localisation": "the interaction is labelled, but the smaller IoU of the two boxes is between"
    " 0.1 and 0.5",
    "wrong_pair": "the person and the object are labelled, but not as a pair",
    "background": "none of the other kinds applies",
}


@dataclass(frozen=True)
class ErrorCounts:
    """Numbers of errors of one result.

    Attributes:
        by_kind: number of errors of each kind, in the order of `ERROR_KINDS`.
        num_correct: number of true positives.
    """

    by_kind: tuple[int, ...]
    num_correct: int

    @property
    def num_wrong(self) -> int:
        return sum(self.by_kind)

    @property
    def shares(self) -> tuple[float, ...]:
        """Each kind as a fraction of all errors; zeros without errors."""
        return tuple(number / max(self.num_wrong, 1) for number in self.by_kind)


def classify_errors(matched: MatchedDetections, vocabulary: Vocabulary) -> np.ndarray:
    """The kind of error of every detection.

    Returns:
        (len(matched.detections),) int64, index into `ERROR_KINDS`, or `CORRECT`.
    """
    wrong = np.flatnonzero(~matched.tp_mask)
    detections, ground_truth = matched.detections.keep(wrong), matched.ground_truth
    _, object_of = interaction_verbs_and_objects(vocabulary)
    applies = {name: np.zeros(len(wrong), dtype=bool) for name in ERROR_KINDS}
    human_found, object_found = np.zeros((2, len(wrong)), dtype=bool)
    for rows, targets in join(detections.images, ground_truth.images):
        human_iou = hico_iou(detections.human_boxes[rows], ground_truth.human_boxes[targets])
        object_iou = hico_iou(detections.object_boxes[rows], ground_truth.object_boxes[targets])
        iou = np.minimum(human_iou, object_iou)
        predicted, labelled = detections.interactions[rows], ground_truth.interactions[targets]
        same_object = object_of[predicted] == object_of[labelled]
        near = iou >= IOU_THRESHOLD
        applies["duplicate"][rows[near & (predicted == labelled)]] = True
        applies["wrong_verb"][rows[near & same_object]] = True
        applies["wrong_object"][rows[near]] = True
        applies["localisation"][rows[(iou >= MIN_IOU) & (predicted == labelled)]] = True
        human_found[rows[human_iou >= IOU_THRESHOLD]] = True
        object_found[rows[same_object & (object_iou >= IOU_THRESHOLD)]] = True
    applies["wrong_pair"] = human_found & object_found
    applies["background"][:] = True
    kinds = np.full(len(matched.tp_mask), CORRECT, dtype=np.int64)
    kinds[wrong] = np.select(
        [applies[name] for name in ERROR_DEFINITIONS],
        [ERROR_KINDS.index(name) for name in ERROR_DEFINITIONS],
    )
    return kinds


def top_scoring_mask(matched: MatchedDetections, vocabulary: Vocabulary) -> np.ndarray:
    """(len(matched.detections),) bool: the N best-scoring detections of each interaction with N
    positives."""
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
    """Counts the errors among some of the detections.

    Args:
        kinds: from `classify_errors`.
        counted: (len(matched.detections),) bool, detections to count.
        interactions: HOI indices to count.
    """
    rows = counted & np.isin(matched.detections.interactions, list(interactions))
    # The first bin counts `CORRECT`, which is -1.
    numbers = np.bincount(kinds[rows] + 1, minlength=len(ERROR_KINDS) + 1)
    return ErrorCounts(tuple(int(number) for number in numbers[1:]), int(numbers[0]))
