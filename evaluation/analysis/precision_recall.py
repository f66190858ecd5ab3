"""Precision-recall curves of interactions, and the choice of the interactions to show."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np

from evaluation.hico.matching import MatchedDetections

# Curves with fewer positives have too few steps to compare.
MIN_POSITIVES = 5
# Number of interactions to show of each group, and of all if nothing is unseen.
NUM_PER_GROUP, NUM_WITHOUT_GROUPS = 3, 6


def precision_recall_curve(
    matched: MatchedDetections, interaction: int, num_positives: int
) -> tuple[np.ndarray, np.ndarray]:
    """Precision at every recall that the detections of an interaction reach.

    Args:
        num_positives: number of annotated triplets of the interaction, at least 1.

    Returns:
        (N,) float64 each, recall and precision, by falling score.
    """
    tp_mask = matched.tp_mask[matched.detections.interactions == interaction]
    true_positives = np.cumsum(tp_mask)
    return true_positives / num_positives, true_positives / np.arange(1, len(tp_mask) + 1)


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
    groups = {
        "unseen": [index for index in counted if index in unseen],
        "seen": [index for index in counted if index not in unseen],
    }
    chosen: list[tuple[int, str]] = []
    for name, members in groups.items():
        frequent = [index for index in members if num_positives[index] >= MIN_POSITIVES]
        pool = frequent if len(frequent) >= NUM_PER_GROUP else members
        pool = sorted(pool, key=lambda index: -(average_precision[index] or 0.0))
        number = min(len(pool), NUM_PER_GROUP if groups["unseen"] else NUM_WITHOUT_GROUPS)
        for rank in np.linspace(0, len(pool) - 1, number).round().astype(int).tolist():
            chosen.append((pool[rank], f"{_rank_title(rank, len(pool))} {name}"))
    return chosen


def _rank_title(rank: int, number: int) -> str:
    if rank in (0, number - 1):
        return "worst" if rank else "best"
    # The median of an even number is rounded to one of the two ranks beside it.
    return "median" if abs(rank - (number - 1) / 2) <= 0.5 else f"number {rank + 1} of {number}"
