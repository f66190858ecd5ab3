"""Precision-recall curves of interactions, and the choice of the interactions to show."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from evaluation.hico.matching import MatchedDetections

# Maximum number of points of a curve, and of the first ones that are always kept.
MAX_POINTS, NUM_FIRST_POINTS = 160, 40
# Curves with fewer positives have too few steps to compare.
MIN_POSITIVES = 5
# Number of interactions to show of each group, and of all if nothing is unseen.
NUM_PER_GROUP, NUM_WITHOUT_GROUPS = 3, 6


@dataclass(frozen=True, eq=False)
class PrecisionRecallCurve:
    """Precision at every recall that the detections of an interaction reach.

    Attributes:
        recall, precision: (N,) float64, by falling score.
    """

    recall: np.ndarray
    precision: np.ndarray


def precision_recall_curve(
    matched: MatchedDetections, interaction: int, num_positives: int
) -> PrecisionRecallCurve:
    """The curve of one interaction, with at most `MAX_POINTS` points.

    Args:
        num_positives: number of annotated triplets of the interaction, at least 1.
    """
    tp_mask = matched.tp_mask[matched.detections.interactions == interaction]
    true_positives = np.cumsum(tp_mask)
    recall = true_positives / num_positives
    precision = true_positives / np.arange(1, len(tp_mask) + 1)
    if len(tp_mask) > MAX_POINTS:
        # The direction of the curve changes at true positives, most at the first ones: these are
        # kept, and an even selection of the others.
        turns = np.unique(np.append(np.flatnonzero(tp_mask), len(tp_mask) - 1))
        evenly = np.linspace(0, len(turns) - 1, MAX_POINTS - NUM_FIRST_POINTS).astype(np.int64)
        kept = np.union1d(turns[:NUM_FIRST_POINTS], turns[evenly])
        recall, precision = recall[kept], precision[kept]
    return PrecisionRecallCurve(recall, precision)


def select_interactions(
    average_precision: Sequence[float | None], num_positives: np.ndarray, unseen: Collection[int]
) -> list[tuple[int, str]]:
    """The best, the median and the worst of the unseen interactions, then of the seen ones.

    If nothing is unseen, six interactions are spread evenly from the best to the worst.

    Args:
        average_precision: of every interaction, None without ground truth.
        num_positives: (H,) annotated triplets; interactions with fewer than `MIN_POSITIVES` are
            chosen only if there are not enough others.

    Returns:
        HOI index and rank, such as "best unseen", of each chosen interaction.
    """
    counted = [index for index, value in enumerate(average_precision) if value is not None]
    chosen: list[tuple[int, str]] = []
    groups = {
        "unseen": [index for index in counted if index in unseen],
        "seen": [index for index in counted if index not in unseen],
    }
    for name, members in groups.items():
        frequent = [index for index in members if num_positives[index] >= MIN_POSITIVES]
        pool = sorted(
            frequent if len(frequent) >= NUM_PER_GROUP else members,
            key=lambda index: (-(average_precision[index] or 0.0), index),
        )
        if not pool:
            continue
        number = NUM_PER_GROUP if groups["unseen"] else NUM_WITHOUT_GROUPS
        ranks = np.unique(np.linspace(0, len(pool) - 1, number).round().astype(np.int64))
        for rank in ranks.tolist():
            chosen.append((pool[rank], f"{_rank_title(rank, len(pool))} {name}"))
    return chosen


def _rank_title(rank: int, number: int) -> str:
    if rank == 0:
        return "best"
    if rank == number - 1:
        return "worst"
    # The median of an even number is rounded to one of the two ranks beside it.
    return "median" if abs(rank - (number - 1) / 2) <= 0.5 else f"number {rank + 1} of {number}"
