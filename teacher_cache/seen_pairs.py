"""Annotated pairs with what training may know of them: by these a teacher's answers are judged."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from pipeline.splits import Split
from pipeline.types import Annotation
from pipeline.vocabulary import Vocabulary
from teacher_cache.format import ANNOTATED, ImageAnswers


@dataclass(frozen=True, eq=False)
class SeenPairs:
    """K annotated pairs of one image that have a seen label and could have had another.

    Attributes:
        answers: all that the teacher says about the image.
        rows: (K,) their rows in it.
        labels: (K, V) bool, their seen labels, at least one each.
        possible: (K, V) bool, the seen actions that go with their objects, at least two each.
    """

    answers: ImageAnswers
    rows: np.ndarray
    labels: np.ndarray
    possible: np.ndarray

    @property
    def object_labels(self) -> np.ndarray:
        """(K,) object indices."""
        return self.answers.pairs.object_labels[self.rows]


def seen_pairs(
    held: Iterable[tuple[Annotation, ImageAnswers]], split: Split, vocabulary: Vocabulary
) -> Iterator[SeenPairs]:
    """The seen pairs of annotated images, image by image; unseen labels change nothing about them.

    Args:
        held: images with all their labels and the answers about them.
        split: what is unseen.
        vocabulary: of both.
    """
    actions = seen_actions(split, vocabulary)
    for annotation, answers in held:
        annotated = np.flatnonzero(answers.pairs.sources == ANNOTATED)
        possible = actions[:, answers.pairs.object_labels[annotated]].T
        labels = pair_labels(annotation, vocabulary) & possible
        kept = labels.any(axis=1) & (possible.sum(axis=1) > 1)
        yield SeenPairs(answers, annotated[kept], labels[kept], possible[kept])


def seen_actions(split: Split, vocabulary: Vocabulary) -> np.ndarray:
    """(V, O) bool: the verb with the object is a seen interaction, and not `no_interaction`."""
    unseen = split.unseen_mask(vocabulary.num_interactions)[vocabulary.interaction_ids]
    seen = vocabulary.valid & ~unseen
    if vocabulary.no_interaction is not None:
        seen[vocabulary.no_interaction] = False
    return seen


def pair_labels(annotation: Annotation, vocabulary: Vocabulary) -> np.ndarray:
    """(P, V) bool: labels of an image's annotated pairs, in the order in which a cache has them."""
    rows: dict[tuple[int, int], int] = {}
    hois = [hoi for hoi in annotation.hois.tolist() if hoi[1] >= 0]
    numbers = [rows.setdefault((human, other), len(rows)) for human, other, _ in hois]
    labels = np.zeros((len(rows), vocabulary.num_verbs), dtype=bool)
    labels[numbers, [verb for _, _, verb in hois]] = True
    return labels
