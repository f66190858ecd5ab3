"""The HICO-DET protocol: average precision of every interaction, and means over groups of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from evaluation.matching import Triplets, collect, falling, find_hits, number_images
from pipeline.types import Annotation, Detections
from pipeline.vocabulary import Vocabulary

Setting = Literal["default", "known_object"]
# So many images are matched at once: their arrays fit into a core's cache.
IMAGES_AT_ONCE = 256
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

    def mean(self, interactions: Sequence[int] | np.ndarray | None = None) -> float | None:
        """mAP over the given HOI indices (all when None); None where none has ground truth."""
        return _mean(self.average_precision, interactions)

    def groups(self, members: Mapping[str, Sequence[int] | np.ndarray]) -> dict[str, float | None]:
        """mAP of several groups of HOI indices."""
        return {name: self.mean(interactions) for name, interactions in members.items()}

    def verb_means(self, vocabulary: Vocabulary) -> np.ndarray:
        """(V,) mAP over the interactions of each verb, NaN where none has ground truth."""
        verbs = np.array([verb for verb, _ in vocabulary.interactions])
        return self._means(verbs, vocabulary.num_verbs)

    def object_means(self, vocabulary: Vocabulary) -> np.ndarray:
        """(O,) mAP over the interactions with each object, NaN where none has ground truth."""
        labels = np.array([label for _, label in vocabulary.interactions])
        return self._means(labels, vocabulary.num_objects)

    def _means(self, groups: np.ndarray, count: int) -> np.ndarray:
        means = [self.mean(np.flatnonzero(groups == group)) for group in range(count)]
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
    """Scores detections (EoID section 4.1, Chao et al. 2018).

    Args:
        annotations: one for each image of the test set; images without detections count as missed.
        detections: at most one for each image; detections of equal score keep the order of the
            images and of their rows.
        settings: `default` counts every detection; `known_object` only those of interactions whose
            object some annotated interaction of the image has.

    Raises:
        InputError: detections for an image that is not annotated.
    """
    _, images = number_images(annotations, detections)
    # In the order of the annotated images, so ties do not depend on the predictions' order.
    order = np.argsort(images, kind="stable")
    images, ordered = images[order], [detections[row] for row in order]
    parts = []
    for first in range(0, max(len(annotations), 1), IMAGES_AT_ONCE):
        some = annotations[first : first + IMAGES_AT_ONCE]
        low, high = np.searchsorted(images, (first, first + IMAGES_AT_ONCE))
        truth = collect(some, np.arange(first, first + len(some)), vocabulary)
        found = collect(ordered[low:high], images[low:high], vocabulary)
        parts.append(_match(found, truth, vocabulary))
    interactions, scores, hits, known, truths = (
        np.concatenate(column) for column in zip(*parts, strict=True)
    )
    num_positives = np.bincount(truths, minlength=vocabulary.num_interactions)
    order = _by_interaction_and_score(interactions, scores, vocabulary.num_interactions)
    results: dict[Setting, HicoScores] = {}
    for setting in settings:
        counted = order[known[order]] if setting == "known_object" else order
        results[setting] = _scores(interactions[counted], hits[counted], num_positives)
    return results


def _match(
    found: Triplets, truth: Triplets, vocabulary: Vocabulary
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Of the detections of some images interactions, scores, whether they are right and whether
    they count in the known-object setting; and the interactions of the annotations.

    What the known-object setting leaves out has nothing to hit in its image, so the hits are the
    same in both settings.
    """
    hits, known = find_hits(found, truth), known_object(found, truth, vocabulary)
    return found.interactions, found.scores, hits, known, truth.interactions


def _by_interaction_and_score(
    interactions: np.ndarray, scores: np.ndarray, num_interactions: int
) -> np.ndarray:
    """Rows by interaction, then by falling score, then as they stand.

    Two sorts are quicker than one by two keys: small numbers are sorted by their digits.
    """
    order = falling(scores)
    small = np.min_scalar_type(num_interactions)
    return order[np.argsort(interactions[order].astype(small), kind="stable")]


def _scores(interactions: np.ndarray, hits: np.ndarray, num_positives: np.ndarray) -> HicoScores:
    """Scores from sorted rows: by interaction, then by falling score."""
    average_precision = np.full(len(num_positives), np.nan)
    max_recall = np.full(len(num_positives), np.nan)
    bounds = np.searchsorted(interactions, np.arange(len(num_positives) + 1), side="left")
    for interaction in np.flatnonzero(num_positives):
        own = hits[bounds[interaction] : bounds[interaction + 1]]
        average_precision[interaction], max_recall[interaction] = eleven_point_ap(
            own, int(num_positives[interaction])
        )
    return HicoScores(average_precision, max_recall, num_positives)


def eleven_point_ap(hits: np.ndarray, num_positives: int) -> tuple[float, float]:
    """AP as the mean over 11 recall thresholds of the best precision at that recall or more.

    Args:
        hits: (N,) bool, the detections of one interaction by falling score.
        num_positives: annotated triplets, at least 1.

    Returns:
        average precision and the recall of all detections.
    """
    if not len(hits):
        return 0.0, 0.0
    true_positives = np.cumsum(hits)
    recall = true_positives / num_positives
    precision = true_positives / np.arange(1, len(hits) + 1)
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
    found = scores.groups(members)
    if len(unseen):
        found["harmonic_mean"] = harmonic_mean(found["seen"], found["unseen"])
    return {**found, "mean_max_recall": _mean(scores.max_recall, None)}


def harmonic_mean(seen: float | None, unseen: float | None) -> float | None:
    """Of the mAP of seen and unseen interactions, in their unit; None where one is missing."""
    if seen is None or unseen is None:
        return None
    return 2 * seen * unseen / (seen + unseen) if seen + unseen else 0.0


def known_object(found: Triplets, truth: Triplets, vocabulary: Vocabulary) -> np.ndarray:
    """Mask of the detections in images with an annotated interaction of their object."""
    object_of = np.array([label for _, label in vocabulary.interactions], dtype=np.int64)
    stride = vocabulary.num_objects
    present = np.unique(truth.images * stride + object_of[truth.interactions])
    return np.isin(found.images * stride + object_of[found.interactions], present)


def _mean(values: np.ndarray, rows: Sequence[int] | np.ndarray | None) -> float | None:
    chosen = values if rows is None else values[np.asarray(rows, dtype=np.int64)]
    counted = chosen[~np.isnan(chosen)]
    return float(counted.mean()) if len(counted) else None
