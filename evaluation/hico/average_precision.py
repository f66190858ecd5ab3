"""The HICO-DET protocol: average precision of every interaction, and means over groups of them.

EoID section 4.1; Chao et al. 2018.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from evaluation.hico.matching import Matches, Setting, argsort_desc, match_detections
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
        if interactions is None:
            return nanmean(self.average_precision)
        return nanmean(self.average_precision[np.asarray(interactions, dtype=np.int64)])

    def group_means(
        self, members: Mapping[str, Sequence[int] | np.ndarray]
    ) -> dict[str, float | None]:
        """mAP of several groups of HOI indices."""
        return {name: self.mean_ap(interactions) for name, interactions in members.items()}

    def verb_means(self, vocabulary: Vocabulary) -> np.ndarray:
        """(V,) mAP over the interactions of each verb; NaN if none of them has ground truth."""
        verbs = np.array([verb for verb, _ in vocabulary.interactions])
        return self._means(verbs, vocabulary.num_verbs)

    def object_means(self, vocabulary: Vocabulary) -> np.ndarray:
        """(O,) mAP over the interactions of each object; NaN if none of them has ground truth."""
        labels = np.array([label for _, label in vocabulary.interactions])
        return self._means(labels, vocabulary.num_objects)

    def _means(self, groups: np.ndarray, num_groups: int) -> np.ndarray:
        means = [self.mean_ap(np.flatnonzero(groups == group)) for group in range(num_groups)]
        return np.array([np.nan if mean is None else mean for mean in means])


def evaluate(
    annotations: Sequence[Annotation],
    detections: Sequence[Detections],
    vocabulary: Vocabulary,
    setting: Setting = "default",
) -> HicoScores:
    """Scores of detections in one setting; see `compute_scores`."""
    return evaluate_settings(annotations, detections, vocabulary, (setting,))[setting]


def evaluate_settings(
    annotations: Sequence[Annotation],
    detections: Sequence[Detections],
    vocabulary: Vocabulary,
    settings: Sequence[Setting],
) -> dict[Setting, HicoScores]:
    """Scores of detections in several settings; see `compute_scores`."""
    return compute_scores(
        match_detections(annotations, detections, vocabulary), vocabulary, settings
    )


def compute_scores(
    matches: Matches, vocabulary: Vocabulary, settings: Sequence[Setting]
) -> dict[Setting, HicoScores]:
    """Scores of matched detections.

    Args:
        matches: detections of equal score are ranked in the order of images and rows.
        settings: `default` counts every detection; `known_object` counts for each interaction only
            the detections in images that some annotated interaction with its object is in.
    """
    interactions, scores, tp_mask, known, positives = (
        np.concatenate(column)
        for column in zip(
            *(
                (
                    batch.detections.interactions,
                    batch.detections.scores,
                    batch.tp_mask,
                    batch.known_object_mask,
                    batch.ground_truth.interactions,
                )
                for batch in matches.batches
            ),
            strict=True,
        )
    )
    num_positives = np.bincount(positives, minlength=vocabulary.num_interactions)
    order = _argsort_by_interaction_and_score(interactions, scores, vocabulary.num_interactions)
    results: dict[Setting, HicoScores] = {}
    for setting in settings:
        counted = order[known[order]] if setting == "known_object" else order
        results[setting] = _interaction_scores(
            interactions[counted], tp_mask[counted], num_positives
        )
    return results


def _argsort_by_interaction_and_score(
    interactions: np.ndarray, scores: np.ndarray, num_interactions: int
) -> np.ndarray:
    """(N,) indices that sort by interaction, then by falling score; equal rows keep their order.

    Two sorts are faster than one lexsort, as numpy sorts 16-bit integers with a radix sort.
    """
    order = argsort_desc(scores)
    dtype = np.min_scalar_type(num_interactions)
    return order[np.argsort(interactions[order].astype(dtype), kind="stable")]


def _interaction_scores(
    interactions: np.ndarray, tp_mask: np.ndarray, num_positives: np.ndarray
) -> HicoScores:
    """Scores from rows that are sorted by interaction, then by falling score."""
    average_precision = np.full(len(num_positives), np.nan)
    max_recall = np.full(len(num_positives), np.nan)
    bounds = np.searchsorted(interactions, np.arange(len(num_positives) + 1), side="left")
    for interaction in np.flatnonzero(num_positives):
        rows = slice(bounds[interaction], bounds[interaction + 1])
        average_precision[interaction], max_recall[interaction] = eleven_point_ap(
            tp_mask[rows], int(num_positives[interaction])
        )
    return HicoScores(average_precision, max_recall, num_positives)


def eleven_point_ap(tp_mask: np.ndarray, num_positives: int) -> tuple[float, float]:
    """AP as the mean over 11 recall thresholds of the best precision at that recall or above.

    Args:
        tp_mask: (N,) bool, true positives of one interaction by falling score.
        num_positives: number of annotated triplets, at least 1.

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
    reached = np.searchsorted(recall, RECALL_THRESHOLDS, side="left")
    return float(envelope[reached].sum() / len(RECALL_THRESHOLDS)), float(recall[-1])


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
    members = {
        "full": every,
        "seen": np.setdiff1d(every, unseen),
        "unseen": np.asarray(unseen, dtype=np.int64),
        "rare": np.asarray(vocabulary.rare, dtype=np.int64),
        "non_rare": np.setdiff1d(every, vocabulary.rare),
    }
    metrics = scores.group_means(members)
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
