"""Precision-recall curves of interactions, and which of them are worth a look."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from evaluation.hico.matching import MatchedDetections

MAX_POINTS, NUM_FIRST_POINTS = 160, 40
# Curves of fewer positives than this are steps of luck.
MIN_POSITIVES = 5


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
    """The curve of one interaction, thinned to a few points where it has many.

    Args:
        num_positives: annotated triplets of the interaction, at least 1.
    """
    tp_mask = matched.tp_mask[matched.detections.interactions == interaction]
    right = np.cumsum(tp_mask)
    recall, precision = right / num_positives, right / np.arange(1, len(tp_mask) + 1)
    if len(tp_mask) > MAX_POINTS:
        # The curve turns at true positives, and most at the first ones; of the others, some evenly.
        turns = np.unique(np.append(np.flatnonzero(tp_mask), len(tp_mask) - 1))
        evenly = np.linspace(0, len(turns) - 1, MAX_POINTS - NUM_FIRST_POINTS).astype(np.int64)
        kept = np.union1d(turns[:NUM_FIRST_POINTS], turns[evenly])
        recall, precision = recall[kept], precision[kept]
    return PrecisionRecallCurve(recall, precision)


def select_interactions(
    average_precision: Sequence[float | None], num_positives: np.ndarray, unseen: Collection[int]
) -> list[tuple[int, str]]:
    """The best, the median and the worst of the unseen interactions, then of the seen ones.

    Where nothing is unseen, the seen ones give six, evenly from the best to the worst.

    Args:
        average_precision: of every interaction, None without ground truth.
        num_positives: (H,) annotated triplets; interactions with few are passed over while
            enough others are there.

    Returns:
        HOI index and its place, such as "best unseen"; none twice.
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
            frequent if len(frequent) >= 3 else members,
            key=lambda index: (-(average_precision[index] or 0.0), index),
        )
        if not pool:
            continue
        number = 3 if groups["unseen"] else 6
        places = np.unique(np.linspace(0, len(pool) - 1, number).round().astype(np.int64))
        for place in places.tolist():
            chosen.append((pool[place], f"{_rank_title(place, len(pool))} {name}"))
    return chosen


def _rank_title(place: int, number: int) -> str:
    if place == 0:
        return "best"
    if place == number - 1:
        return "worst"
    # round() of numpy and of the middle agree to half a place.
    return "median" if abs(place - (number - 1) / 2) <= 0.5 else f"number {place + 1} of {number}"
