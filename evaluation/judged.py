"""Detections beside the truth, each judged right or wrong as the evaluation does."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from evaluation.hico import Setting, known_object
from evaluation.matching import Triplets, collect, find_hits, number_images
from pipeline.types import Annotation, Detections
from pipeline.vocabulary import Vocabulary

# Detections whose neighbours are looked at together; bounds the memory that takes.
CHUNK = 50_000


@dataclass(frozen=True, eq=False)
class Judged:
    """What a model said about a test set, and what was right.

    Attributes:
        found: detections by falling score; equal scores in the order of images and rows.
        truth: annotated triplets.
        hits: (len(found),) bool, which detections are right.
    """

    found: Triplets
    truth: Triplets
    hits: np.ndarray

    def positives(self, num_interactions: int) -> np.ndarray:
        """(H,) int64, annotated triplets of each interaction."""
        return np.bincount(self.truth.interactions, minlength=num_interactions)


def judge(
    annotations: Sequence[Annotation],
    detections: Sequence[Detections],
    vocabulary: Vocabulary,
    setting: Setting = "default",
) -> Judged:
    """Judges detections.

    Raises:
        InputError: detections for an image that is not annotated.
    """
    truth_images, found_images = number_images(annotations, detections)
    truth = collect(annotations, truth_images, vocabulary)
    found = collect(detections, found_images, vocabulary)
    found = found.keep(np.lexsort((found.images, -found.scores)))
    if setting == "known_object":
        found = found.keep(known_object(found, truth, vocabulary))
    return Judged(found, truth, find_hits(found, truth))


def count_interactions(annotations: Sequence[Annotation], vocabulary: Vocabulary) -> np.ndarray:
    """(H,) int64: how often each interaction is labelled."""
    triplets = collect(annotations, np.arange(len(annotations)), vocabulary)
    return np.bincount(triplets.interactions, minlength=vocabulary.num_interactions)


def verbs_and_objects(vocabulary: Vocabulary) -> tuple[np.ndarray, np.ndarray]:
    """(H,) int64 each: verb and object of every interaction."""
    pairs = np.array(vocabulary.interactions, dtype=np.int64).reshape(-1, 2)
    return pairs[:, 0], pairs[:, 1]


def neighbours(keys: np.ndarray, other_keys: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Every pair of rows with equal keys, some thousand of `keys` at a time.

    Args:
        keys, other_keys: (N,) and (M,) whole numbers.

    Yields:
        rows of `keys` in rising order, and the rows of `other_keys` that go with them.
    """
    order = np.argsort(other_keys, kind="stable")
    ordered = other_keys[order]
    for first in range(0, len(keys), CHUNK):
        own = keys[first : first + CHUNK]
        start = np.searchsorted(ordered, own, side="left")
        counts = np.searchsorted(ordered, own, side="right") - start
        rows = np.repeat(np.arange(len(own)), counts)
        within = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
        yield first + rows, order[start[rows] + within]
