"""Detections matched to the ground truth, each with its true-positive flag."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from evaluation.hico.matching import (
    Triplets,
    argsort_desc,
    collect_triplets,
    concatenate_triplets,
    index_images,
    match_triplets,
)
from pipeline.types import Annotation, Detections
from pipeline.vocabulary import Vocabulary

Setting = Literal["default", "known_object"]
# So many images are matched at once: their arrays fit into a core's cache.
IMAGES_PER_BATCH = 256
# Rows of one side that are joined at a time; bounds the memory that this takes.
ROWS_PER_CHUNK = 50_000


@dataclass(frozen=True, eq=False)
class MatchedDetections:
    """What a model said about a test set, and what was right.

    Attributes:
        detections: detections by falling score; equal scores in the order of images and rows.
        ground_truth: annotated triplets.
        tp_mask: (len(detections),) bool, which detections are right.
    """

    detections: Triplets
    ground_truth: Triplets
    tp_mask: np.ndarray

    def num_positives(self, num_interactions: int) -> np.ndarray:
        """(H,) int64, annotated triplets of each interaction."""
        return np.bincount(self.ground_truth.interactions, minlength=num_interactions)


@dataclass(frozen=True, eq=False)
class MatchedBatch:
    """Some images' detections held against their annotations.

    Attributes:
        detections, ground_truth: detections and annotated triplets, by image and row.
        tp_mask: (len(detections),) bool, which detections are right.
        known_object_mask: (len(detections),) bool, which count in the known-object setting.
            What it leaves out has no ground truth in its image, so that true positives are the
            same in both settings.
    """

    detections: Triplets
    ground_truth: Triplets
    tp_mask: np.ndarray
    known_object_mask: np.ndarray

    @classmethod
    def from_triplets(
        cls, detections: Triplets, ground_truth: Triplets, vocabulary: Vocabulary
    ) -> MatchedBatch:
        """Matches detections to the ground truth."""
        return cls(
            detections,
            ground_truth,
            match_triplets(detections, ground_truth),
            known_object_mask(detections, ground_truth, vocabulary),
        )


@dataclass(frozen=True, eq=False)
class Matches:
    """All detections held against the annotations once, for scores and for a report on them.

    Attributes:
        detections: one for an image at most, in the order of the annotated images.
        batches: of the whole test set, in the same order; at least one.
    """

    detections: Sequence[Detections]
    batches: tuple[MatchedBatch, ...]

    def matched_detections(self, setting: Setting = "default") -> MatchedDetections:
        """The same by falling score, those that count in a setting."""
        detections, ground_truth = (
            concatenate_triplets([getattr(part, name) for part in self.batches])
            for name in ("detections", "ground_truth")
        )
        tp_mask, known = (
            np.concatenate([getattr(part, name) for part in self.batches])
            for name in ("tp_mask", "known_object_mask")
        )
        order = argsort_desc(detections.scores)
        if setting == "known_object":
            order = order[known[order]]
        return MatchedDetections(detections.keep(order), ground_truth, tp_mask[order])


def match_detections(
    annotations: Sequence[Annotation], detections: Sequence[Detections], vocabulary: Vocabulary
) -> Matches:
    """Holds detections against annotations.

    Args:
        annotations: one for each image of the test set; images without detections count as missed.
        detections: at most one for each image, in any order.

    Raises:
        InputError: detections for an image that is not annotated.
    """
    _, images = index_images(annotations, detections)
    # In the order of the annotated images, so ties do not depend on the predictions' order.
    order = np.argsort(images, kind="stable")
    images, ordered = images[order], [detections[row] for row in order]
    parts = []
    for first in range(0, max(len(annotations), 1), IMAGES_PER_BATCH):
        some = annotations[first : first + IMAGES_PER_BATCH]
        low, high = np.searchsorted(images, (first, first + IMAGES_PER_BATCH))
        ground_truth = collect_triplets(some, np.arange(first, first + len(some)), vocabulary)
        triplets = collect_triplets(ordered[low:high], images[low:high], vocabulary)
        parts.append(MatchedBatch.from_triplets(triplets, ground_truth, vocabulary))
    return Matches(ordered, tuple(parts))


def match_and_sort(
    annotations: Sequence[Annotation],
    detections: Sequence[Detections],
    vocabulary: Vocabulary,
    setting: Setting = "default",
) -> MatchedDetections:
    """Matched detections, best-scoring first; see `match_detections`."""
    return match_detections(annotations, detections, vocabulary).matched_detections(setting)


def known_object_mask(
    detections: Triplets, ground_truth: Triplets, vocabulary: Vocabulary
) -> np.ndarray:
    """Mask of the detections in images with an annotated interaction of their object."""
    object_of = np.array([label for _, label in vocabulary.interactions], dtype=np.int64)
    stride = vocabulary.num_objects
    present = np.unique(ground_truth.images * stride + object_of[ground_truth.interactions])
    return np.isin(detections.images * stride + object_of[detections.interactions], present)


def count_interactions(annotations: Sequence[Annotation], vocabulary: Vocabulary) -> np.ndarray:
    """(H,) int64: how often each interaction is labelled."""
    triplets = collect_triplets(annotations, np.arange(len(annotations)), vocabulary)
    return np.bincount(triplets.interactions, minlength=vocabulary.num_interactions)


def interaction_verbs_and_objects(vocabulary: Vocabulary) -> tuple[np.ndarray, np.ndarray]:
    """(H,) int64 each: verb and object of every interaction."""
    pairs = np.array(vocabulary.interactions, dtype=np.int64).reshape(-1, 2)
    return pairs[:, 0], pairs[:, 1]


def join(keys: np.ndarray, other_keys: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Every pair of rows with equal keys, some thousand of `keys` at a time.

    Args:
        keys, other_keys: (N,) and (M,) whole numbers.

    Yields:
        rows of `keys` in rising order, and the rows of `other_keys` that go with them.
    """
    order = np.argsort(other_keys, kind="stable")
    ordered = other_keys[order]
    for first in range(0, len(keys), ROWS_PER_CHUNK):
        own = keys[first : first + ROWS_PER_CHUNK]
        start = np.searchsorted(ordered, own, side="left")
        counts = np.searchsorted(ordered, own, side="right") - start
        rows = np.repeat(np.arange(len(own)), counts)
        within = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
        yield first + rows, order[start[rows] + within]
