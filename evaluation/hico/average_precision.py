"""The HICO-DET protocol: average precision of every interaction, and means over groups of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from evaluation.analysis.matched import Matches, Setting, match_detections
from evaluation.hico.matching import argsort_desc
from pipeline.types import Annotation, Detections
from pipeline.vocabulary import Vocabulary

# The benchmark's thresholds as floats, 0.30000000000000004 included; they decide ties.
RECALL_THRESHOLDS = np.arange(0, 1.1, 0.1)


@dataclass(frozen=True, eq=False)
class HicoScores:
    """Scores of every interaction; NaN where the annotations have none of it.

    Attributes:
        average_precision: (H,) float64, 11-point AP.
        max_recall: (H,) float64, recall of all detections together.
        num_positives: (H,) int64, annotated triplets.
    """

    average_precision: np.ndarray
    max_recall: np.ndarray
    num_positives: np.ndarray

    def mean_ap(self, interactions: Sequence[int] | np.ndarray | None = None) -> float | None:
        """mAP over the given HOI indices (all when None); None where none has ground truth."""
        return _nanmean(self.average_precision, interactions)

    def group_means(
        self, members: Mapping[str, Sequence[int] | np.ndarray]
    ) -> dict[str, float | None]:
        """mAP of several groups of HOI indices."""
        return {name: self.mean_ap(interactions) for name, interactions in members.items()}

    def verb_means(self, vocabulary: Vocabulary) -> np.ndarray:
        """(V,) mAP over the interactions of each verb, NaN where none has ground truth."""
        verbs = np.array([verb for verb, _ in vocabulary.interactions])
        return self._means(verbs, vocabulary.num_verbs)

    def object_means(self, vocabulary: Vocabulary) -> np.ndarray:
        """(O,) mAP over the interactions with each object, NaN where none has ground truth."""
        labels = np.array([label for _, label in vocabulary.interactions])
        return self._means(labels, vocabulary.num_objects)

    def _means(self, groups: np.ndarray, count: int) -> np.ndarray:
        means = [self.mean_ap(np.flatnonzero(groups == group)) for group in range(count)]
        return np.array([np.nan if mean is None else mean for mean in means])


def evaluate(
    annotations: Sequence[Annotation],
    detections: Sequence[Detections],
    vocabulary: Vocabulary,
    setting: Setting = "default",
) -> HicoScores:
    """Scores detections in one setting; see `evaluate_settings`."""
    return evaluate_settings(annotations, detections, vocabulary, (setting,))[setting]


def evaluate_settings(
    annotations: Sequence[Annotation],
    detections: Sequence[Detections],
    vocabulary: Vocabulary,
    settings: Sequence[Setting],
) -> dict[Setting, HicoScores]:
    """Scores detections (EoID section 4.1, Chao et al. 2018); see `compute_scores`."""
    return compute_scores(
        match_detections(annotations, detections, vocabulary), vocabulary, settings
    )


def compute_scores(
    matches: Matches, vocabulary: Vocabulary, settings: Sequence[Setting]
) -> dict[Setting, HicoScores]:
    """Scores of detections that were held against the annotations.

    Args:
        matches: detections of equal score keep the order of the images and of their rows.
        settings: `default` counts every detection; `known_object` only those of interactions whose
            object some annotated interaction of the image has.
    """
    interactions, scores, tp_mask, known, truths = (
        np.concatenate(column)
        for column in zip(
            *(
                (
                    one.detections.interactions,
                    one.detections.scores,
                    one.tp_mask,
                    one.known_object_mask,
                    one.ground_truth.interactions,
                )
                for one in matches.batches
            ),
            strict=True,
        )
    )
    num_positives = np.bincount(truths, minlength=vocabulary.num_interactions)
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
    """Rows by interaction, then by falling score, then as they stand.

    Two sorts are quicker than one by two keys: small numbers are sorted by their digits.
    """
    order = argsort_desc(scores)
    small = np.min_scalar_type(num_interactions)
    return order[np.argsort(interactions[order].astype(small), kind="stable")]


def _interaction_scores(
    interactions: np.ndarray, tp_mask: np.ndarray, num_positives: np.ndarray
) -> HicoScores:
    """Scores from sorted rows: by interaction, then by falling score."""
    average_precision = np.full(len(num_positives), np.nan)
    max_recall = np.full(len(num_positives), np.nan)
    bounds = np.searchsorted(interactions, np.arange(len(num_positives) + 1), side="left")
    for interaction in np.flatnonzero(num_positives):
        own = tp_mask[bounds[interaction] : bounds[interaction + 1]]
        average_precision[interaction], max_recall[interaction] = eleven_point_ap(
            own, int(num_positives[interaction])
        )
    return HicoScores(average_precision, max_recall, num_positives)


def eleven_point_ap(tp_mask: np.ndarray, num_positives: int) -> tuple[float, float]:
    """AP as the mean over 11 recall thresholds of the best precision at that recall or more.

    Args:
        tp_mask: (N,) bool, the detections of one interaction by falling score.
        num_positives: annotated triplets, at least 1.

    Returns:
        average precision and the recall of all detections.
    """
    if not len(tp_mask):
        return 0.0, 0.0
    true_positives = np.cumsum(tp_mask)
    recall = true_positives / num_positives
    precision = true_positives / np.arange(1, len(tp_mask) + 1)
    envelope = np.append(np.maximum.accumulate(precision[::-1])[::-1], 0.0)
    reached = np.searchsorted(recall, RECALL_THRESHOLDS, side="left")
    return float(envelope[reached].sum() / len(RECALL_THRESHOLDS)), float(recall[-1])


def summarize(
    scores: HicoScores, vocabulary: Vocabulary, unseen: Sequence[int] | np.ndarray
) -> dict[str, float | None]:
    """The numbers of a results table, as fractions; None for a group without ground truth.

    Args:
        unseen: HOI indices the split held back; empty for full supervision.

    Returns:
        `full`, `seen`, `unseen`, `rare`, `non_rare`, `mean_max_recall`, and where the split holds
        something back `harmonic_mean` of seen and unseen.
    """
    everything = np.arange(vocabulary.num_interactions)
    members = {
        "full": everything,
        "seen": np.setdiff1d(everything, unseen),
        "unseen": np.asarray(unseen, dtype=np.int64),
        "rare": np.asarray(vocabulary.rare, dtype=np.int64),
        "non_rare": np.setdiff1d(everything, vocabulary.rare),
    }
    found = scores.group_means(members)
    if len(unseen):
        found["harmonic_mean"] = harmonic_mean(found["seen"], found["unseen"])
    return {**found, "mean_max_recall": _nanmean(scores.max_recall, None)}


def harmonic_mean(seen: float | None, unseen: float | None) -> float | None:
    """Of the mAP of seen and unseen interactions, in their unit; None where one is missing."""
    if seen is None or unseen is None:
        return None
    return 2 * seen * unseen / (seen + unseen) if seen + unseen else 0.0


def _nanmean(values: np.ndarray, rows: Sequence[int] | np.ndarray | None) -> float | None:
    chosen = values if rows is None else values[np.asarray(rows, dtype=np.int64)]
    counted = chosen[~np.isnan(chosen)]
    return float(counted.mean()) if len(counted) else None
