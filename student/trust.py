"""How far the teacher is trusted, by what training may know of its answers."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from pipeline.splits import Split
from pipeline.types import Annotation
from pipeline.vocabulary import Vocabulary
from teacher_cache.format import ImageAnswers
from teacher_cache.seen_pairs import seen_pairs

# An object with so many seen pairs is believed half by them, half by the mean over all objects.
SHRINKAGE = 20.0


def object_trust(
    held: Iterable[tuple[Annotation, ImageAnswers]],
    split: Split,
    vocabulary: Vocabulary,
    shrinkage: float = SHRINKAGE,
) -> np.ndarray:
    """How often the teacher is right about each object, as seen labels tell.

    An annotated pair counts when it has a seen label and its object has another seen action: the
    teacher is right when its likeliest seen action is a label. Each object's accuracy is drawn
    towards that of all pairs, and is the latter where an object has none: unseen labels and unseen
    objects change nothing.

    Args:
        held: training images with their labels and the teacher's answers.
        split: what is unseen.
        vocabulary: O objects.
        shrinkage: pairs that the mean over all objects counts for.

    Returns:
        (O + 1,) float32 in [0, 1]; the last entry, for pairs without object, and all of them where
        nothing can be judged, is 1.
    """
    right, asked = np.zeros((2, vocabulary.num_objects))
    for pairs in seen_pairs(held, split, vocabulary):
        answers = np.where(pairs.possible, pairs.answers.probabilities[pairs.rows], -1)
        best = answers.argmax(axis=1)
        is_right = pairs.labels[np.arange(len(best)), best]
        right += np.bincount(pairs.object_labels, is_right, vocabulary.num_objects)
        asked += np.bincount(pairs.object_labels, minlength=vocabulary.num_objects)
    trust = np.ones(vocabulary.num_objects + 1, dtype=np.float32)
    if asked.sum():
        mean = right.sum() / asked.sum()
        trust[:-1] = (right + shrinkage * mean) / (asked + shrinkage)
    return trust
