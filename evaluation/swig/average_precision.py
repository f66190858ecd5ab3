"""The SWIG-HOI protocol: matching, and average precision of the evaluated interactions.

Wang et al., Discovering Human Interactions with Large-Vocabulary Objects, ICCV 2021, as the code of
THID and later projects computes it. Unlike HICO-DET's: boxes exclude their last pixel, at most
`MAX_DETECTIONS` detections of an interaction count, recall thresholds are i / 10, detections on
images outside the annotations are wrong, and an interaction without annotated pair has AP 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from evaluation.hico.average_precision import HicoScores, compute_scores
from evaluation.hico.matching import (
    MatchedDetections,
    Matches,
    Triplets,
    collect_triplets,
    match_triplets,
)
from pipeline.annotations.swig import SwigImage
from pipeline.boxes import box_area
from pipeline.types import Detections
from pipeline.utils.text import count_noun
from pipeline.vocabulary import Vocabulary

MAX_DETECTIONS = 19999
# Unlike those of HICO-DET's code, 0.3 is the float next to 3 / 10.
RECALL_THRESHOLDS = np.arange(11) / 10


def evaluate_swig(
    images: Sequence[SwigImage], detections: Sequence[Detections], vocabulary: Vocabulary
) -> HicoScores:
    """Scores of detections; see `match_swig` and `compute_swig_scores`."""
    return compute_swig_scores(match_swig(images, detections, vocabulary), vocabulary)


def match_swig(
    images: Sequence[SwigImage], detections: Sequence[Detections], vocabulary: Vocabulary
) -> Matches:
    """Matches the detections of evaluated interactions to the labels.

    A detection is assigned to the pair of its image and interaction with the largest
    min(human IoU, object IoU), even if a better-scoring detection has taken that pair.

    Args:
        images: ground truth, with or without labels.
        detections: at most one item for each image, named by its file; among equal scores of an
            interaction, their order counts as it does in the benchmark's code.
    """
    index_of = {image.name: index for index, image in enumerate(images)}
    indices = [index_of.setdefault(item.image_id, len(index_of)) for item in detections]
    triplets = collect_triplets(detections, np.array(indices, dtype=np.int64), vocabulary)
    counted = np.flatnonzero(_evaluated_mask(vocabulary)[triplets.interactions])
    by_class = counted[np.argsort(triplets.interactions[counted], kind="stable")]
    first = np.flatnonzero(np.diff(triplets.interactions[by_class], prepend=-1))
    # The order of equal scores is that of NumPy's default sort, reversed, as in the benchmark.
    ranked = np.concatenate(
        [
            rows[np.argsort(triplets.scores[rows])[::-1][:MAX_DETECTIONS]]
            for rows in np.split(by_class, first[1:])
        ]
    )
    ranked = ranked[np.argsort(-triplets.scores[ranked], kind="stable")]
    triplets, ground_truth = triplets.keep(ranked), _collect_labels(images)
    tp_mask = match_triplets(triplets, ground_truth, swig_iou)
    matched = MatchedDetections(triplets, ground_truth, tp_mask)
    return Matches(detections, matched, np.ones(len(triplets), dtype=bool))


def compute_swig_scores(matches: Matches, vocabulary: Vocabulary) -> HicoScores:
    """Scores of the evaluated interactions, NaN for all others.

    The AP of interactions without detections or without labels is 0. The largest recall of those
    without labels is NaN.
    """
    scores = compute_scores(matches, vocabulary, "swig", RECALL_THRESHOLDS)
    evaluated = _evaluated_mask(vocabulary)
    return replace(
        scores,
        average_precision=np.where(evaluated, np.nan_to_num(scores.average_precision), np.nan),
        max_recall=np.where(evaluated, scores.max_recall, np.nan),
    )


def describe_unlabelled(images: Sequence[SwigImage], vocabulary: Vocabulary) -> str:
    """A sentence on the evaluated interactions without labels in the images; "" if none."""
    unlabelled = _evaluated_mask(vocabulary)
    for image in images:
        unlabelled[image.interactions] = False
    if not (count := int(unlabelled.sum())):
        return ""
    nouns = count_noun(count, "scored interactions")
    have, their = ("has", "its") if count == 1 else ("have", "their")
    return (
        f"{nouns} {have} no labels in these images: {their} AP is 0 and counts in the means, by"
        " SWIG-HOI's protocol"
    )


def _evaluated_mask(vocabulary: Vocabulary) -> np.ndarray:
    """(H,) bool: the benchmark scores the interaction."""
    mask = np.full(vocabulary.num_interactions, vocabulary.evaluated is None)
    mask[list(vocabulary.evaluated or ())] = True
    return mask


def _collect_labels(images: Sequence[SwigImage]) -> Triplets:
    counts = [len(image.interactions) for image in images]
    pairs = np.concatenate([image.boxes[image.pairs] for image in images])
    interactions = np.concatenate([image.interactions for image in images])
    return Triplets(
        np.repeat(np.arange(len(images)), counts),
        interactions,
        pairs[:, 0],
        pairs[:, 1],
        np.ones(len(interactions)),
        np.arange(len(interactions)),
    )


def swig_iou(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Row-wise IoU of boxes without their last pixel; 0 for boxes without area.

    Args:
        first, second: (N, 4) float64, xyxy, pixels.

    Returns:
        (N,) float64.
    """
    corners = [np.maximum(first[:, :2], second[:, :2]), np.minimum(first[:, 2:], second[:, 2:])]
    overlap = box_area(np.concatenate(corners, axis=1))
    union = box_area(first) + box_area(second) - overlap
    return np.divide(overlap, union, out=np.zeros_like(overlap), where=overlap > 0)
