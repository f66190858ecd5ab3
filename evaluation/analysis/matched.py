"""Detections beside the truth, each judged right or wrong as the evaluation does."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from evaluation.hico.matching import (
    Triplets,
    collect,
    concatenate,
    falling,
    find_hits,
    number_images,
)
from pipeline.types import Annotation, Detections
from pipeline.vocabulary import Vocabulary

Setting = Literal["default", "known_object"]
# So many images are matched at once: their arrays fit into a core's cache.
IMAGES_AT_ONCE = 256
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


@dataclass(frozen=True, eq=False)
class Part:
    """Some images' detections held against their annotations.

    Attributes:
        found, truth: detections and annotated triplets, by image and row.
        hits: (len(found),) bool, which detections are right.
        known: (len(found),) bool, which count in the known-object setting. What it leaves out has
            nothing to hit in its image, so that hits are the same in both settings.
    """

    found: Triplets
    truth: Triplets
    hits: np.ndarray
    known: np.ndarray

    @classmethod
    def of(cls, found: Triplets, truth: Triplets, vocabulary: Vocabulary) -> Part:
        """Holds them against each other."""
        return cls(found, truth, find_hits(found, truth), known_object(found, truth, vocabulary))


@dataclass(frozen=True, eq=False)
class Matches:
    """All detections held against the annotations once, for scores and for a report on them.

    Attributes:
        detections: one for an image at most, in the order of the annotated images.
        parts: of the whole test set, in the same order; at least one.
    """

    detections: Sequence[Detections]
    parts: tuple[Part, ...]

    def judged(self, setting: Setting = "default") -> Judged:
        """The same by falling score, those that count in a setting."""
        found, truth = (
            concatenate([getattr(part, name) for part in self.parts]) for name in ("found", "truth")
        )
        hits, known = (
            np.concatenate([getattr(part, name) for part in self.parts])
            for name in ("hits", "known")
        )
        order = falling(found.scores)
        if setting == "known_object":
            order = order[known[order]]
        return Judged(found.keep(order), truth, hits[order])


def match(
    annotations: Sequence[Annotation], detections: Sequence[Detections], vocabulary: Vocabulary
) -> Matches:
    """Holds detections against annotations.

    Args:
        annotations: one for each image of the test set; images without detections count as missed.
        detections: at most one for each image, in any order.

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
        parts.append(Part.of(found, truth, vocabulary))
    return Matches(ordered, tuple(parts))


def judge(
    annotations: Sequence[Annotation],
    detections: Sequence[Detections],
    vocabulary: Vocabulary,
    setting: Setting = "default",
) -> Judged:
    """Judges detections; see `match`."""
    return match(annotations, detections, vocabulary).judged(setting)


def known_object(found: Triplets, truth: Triplets, vocabulary: Vocabulary) -> np.ndarray:
    """Mask of the detections in images with an annotated interaction of their object."""
    object_of = np.array([label for _, label in vocabulary.interactions], dtype=np.int64)
    stride = vocabulary.num_objects
    present = np.unique(truth.images * stride + object_of[truth.interactions])
    return np.isin(found.images * stride + object_of[found.interactions], present)


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
