"""The HICO-DET protocol: average precision and precision-recall curves of interactions, and means.

EoID section 4.1; Chao et al. 2018. `evaluation.hico.matching` selects the detections that count in
the known-object setting.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from evaluation.hico.matching import (
    MatchedDetections,
    Matches,
    Setting,
    interaction_verbs_and_objects,
    match_detections,
)
from pipeline.types import Annotation, Detections
from pipeline.vocabulary import Vocabulary

# The floats of the benchmark's code: 0.30000000000000004, for one, is not reached by a recall of
# 3 / 10.
RECALL_THRESHOLDS = np.arange(0, 1.1, 0.1)


@dataclass(frozen=True, eq=False)
class HicoScores:
    """Scores of the H interactions; NaN for interactions without ground truth.

    Attributes:
        average_precision: (H,) float64, 11-point AP.
        max_recall: (H,) float64, recall of all detections together.
        num_positives: (H,) int64, number of annotated triplets.
    """

    average_precision: np.ndarray
    max_recall: np.ndarray
    num_positives: np.ndarray

    def mean_ap(self, interactions: Sequence[int] | np.ndarray | None = None) -> float | None:
        """mAP over the given HOI indices (None: all); None if none of them has ground truth."""
        values = self.average_precision
        return nanmean(values if interactions is None else values[np.array(interactions, int)])

    def verb_means(self, vocabulary: Vocabulary) -> np.ndarray:
        """(V,) mAP over the interactions of each verb; NaN if none of them has ground truth."""
        return self._means(interaction_verbs_and_objects(vocabulary)[0], vocabulary.num_verbs)

    def object_means(self, vocabulary: Vocabulary) -> np.ndarray:
        """(O,) mAP over the interactions of each object; NaN if none of them has ground truth."""
        return self._means(interaction_verbs_and_objects(vocabulary)[1], vocabulary.num_objects)

    def _means(self, groups: np.ndarray, num_groups: int) -> np.ndarray:
        means = [self.mean_ap(np.flatnonzero(groups == group)) for group in range(num_groups)]
        return np.array(means, dtype=np.float64)


def evaluate(
    annotations: Sequence[Annotation],
    detections: Sequence[Detections],
    vocabulary: Vocabulary,
    setting: Setting = "default",
) -> HicoScores:
    """Scores of detections in one setting; see `match_detections` and `compute_scores`."""
    matches = match_detections(annotations, detections, vocabulary)
    return compute_scores(matches, vocabulary, setting)


def compute_scores(
    matches: Matches,
    vocabulary: Vocabulary,
    setting: Setting = "default",
    thresholds: np.ndarray = RECALL_THRESHOLDS,
) -> HicoScores:
    """Scores of matched detections.

    Args:
        matches: detections of equal score are ranked in the order of images and rows.
        setting: `default` counts every detection; `known_object` counts for each interaction only
            the detections in images that some annotated interaction with its object is in.
        thresholds: see `eleven_point_ap`.
    """
    matched = matches.matched_detections(setting)
    num_positives = matched.num_positives(vocabulary.num_interactions)
    # A stable sort, which keeps the falling scores within each interaction.
    order = np.argsort(matched.detections.interactions, kind="stable")
    tp_mask = matched.tp_mask[order]
    bounds = np.searchsorted(
        matched.detections.interactions[order], np.arange(len(num_positives) + 1)
    )
    average_precision, max_recall = np.full((2, len(num_positives)), np.nan)
    for interaction in np.flatnonzero(num_positives):
        average_precision[interaction], max_recall[interaction] = eleven_point_ap(
            tp_mask[bounds[interaction] : bounds[interaction + 1]],
            int(num_positives[interaction]),
            thresholds,
        )
    return HicoScores(average_precision, max_recall, num_positives)


def eleven_point_ap(
    tp_mask: np.ndarray, num_positives: int, thresholds: np.ndarray = RECALL_THRESHOLDS
) -> tuple[float, float]:
    """AP as the mean over 11 recall thresholds of the best precision at that recall or above.

    Args:
        tp_mask: (N,) bool, true positives of one interaction by falling score.
        num_positives: number of annotated triplets, at least 1.
        thresholds: (11,) float64, rising recalls.

    Returns:
        average precision, and the recall of all detections.
    """
    if not len(tp_mask):
        return 0.0, 0.0
    true_positives = np.cumsum(tp_mask)
    recall = true_positives / num_positives
    precision = true_positives / np.arange(1, len(tp_mask) + 1)
    # The appended 0 is the precision at thresholds above the highest recall.
    envelope = np.append(np.maximum.accumulate(precision[::-1])[::-1], 0.0)
    reached = np.searchsorted(recall, thresholds, side="left")
    return float(envelope[reached].sum() / len(thresholds)), float(recall[-1])


def summarize(
    scores: HicoScores, vocabulary: Vocabulary, unseen: Sequence[int] | np.ndarray
) -> dict[str, float | None]:
    """The numbers of a results table, as fractions; None for a group without ground truth.

    Args:
        unseen: HOI indices that the split holds out; empty for full supervision.

    Returns:
        `full`, `seen`, `unseen`, `rare`, `non_rare`, `mean_max_recall`, and if the split holds out
        interactions `harmonic_mean` of seen and unseen.
    """
    every = np.arange(vocabulary.num_interactions)
    groups = {
        "full": every,
        "seen": np.setdiff1d(every, unseen),
        "unseen": unseen,
        "rare": vocabulary.rare,
        "non_rare": np.setdiff1d(every, vocabulary.rare)
        if vocabulary.non_rare is None
        else vocabulary.non_rare,
    }
    metrics = {name: scores.mean_ap(members) for name, members in groups.items()}
    if len(unseen):
        metrics["harmonic_mean"] = harmonic_mean(metrics["seen"], metrics["unseen"])
    return {**metrics, "mean_max_recall": nanmean(scores.max_recall)}


def harmonic_mean(seen: float | None, unseen: float | None) -> float | None:
    """Harmonic mean of the mAP of seen and of unseen interactions; None where one is missing."""
    if seen is None or unseen is None:
        return None
    return 2 * seen * unseen / (seen + unseen) if seen + unseen else 0.0


def nanmean(values: np.ndarray) -> float | None:
    """Mean of the values that are not NaN; None if there are none."""
    counted = values[~np.isnan(values)]
    return float(counted.mean()) if len(counted) else None


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
        average_precision: of every interaction, None where it is not scored.
        num_positives: (H,) annotated triplets; interactions without any are not chosen, those with
            fewer than `MIN_POSITIVES` only if there are not enough others.

    Returns:
        HOI index and rank, such as "best unseen", of each chosen interaction.
    """
    counted = [
        index
        for index, value in enumerate(average_precision)
        if value is not None and num_positives[index]
    ]
    unseen = set(unseen)
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
