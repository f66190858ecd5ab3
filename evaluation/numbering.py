"""Whether a predictions file counts verbs and objects as its vocabulary's annotation files do."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pipeline.errors import InputError
from pipeline.types import Detections
from pipeline.vocabulary import Vocabulary

# Fewer pairs tell nothing about the whole file.
ENOUGH_PAIRS = 20
# A numbering is the right one when so many pairs are interactions under it, and no more than this
# share of them as the file stands.
SURE, DOUBTFUL = 0.9, 0.75


def check_numbering(path: Path, detections: Sequence[Detections], vocabulary: Vocabulary) -> None:
    """Looks at which predicted pairs are interactions of the vocabulary.

    Verbs that are one off are no outlandish numbers, but they hardly ever go with the objects.

    Raises:
        InputError: nearly all pairs would be interactions with the verbs one off, or most have
            their person as object.
    """
    verbs, objects = object_pairs(detections)
    if len(verbs) < ENOUGH_PAIRS:
        return
    swapped = sum(_swapped(item, vocabulary) for item in detections)
    if 2 * swapped > len(verbs):
        raise InputError(
            f"{path}: hoi_prediction: expected a person as subject_id and a thing as object_id,"
            f" found subject and object swapped in {swapped} of {len(verbs)} pairs"
        )
    share = vocabulary.valid[verbs, objects].mean()
    # A file that counts from 0 where 1 was expected was read one too low, and the other way round.
    shifted = verbs + (1 if vocabulary.first_verb else -1)
    inside = (shifted >= 0) & (shifted < vocabulary.num_verbs)
    other = vocabulary.valid[shifted.clip(0, vocabulary.num_verbs - 1), objects] & inside
    first = vocabulary.first_verb
    if other.mean() >= SURE and share <= DOUBTFUL * other.mean():
        raise InputError(
            f"{path}: hoi_prediction.category_id: expected verbs of vocabulary {vocabulary.name}"
            f" counted from {first}, found verbs counted from {1 - first}: so counted"
            f" {100 * other.mean():.0f} % of the pairs are interactions, else {100 * share:.0f} %"
        )


def _swapped(item: Detections, vocabulary: Vocabulary) -> int:
    """How many pairs have a person as object and something else as subject."""
    pairs = item.labels[item.hois[item.hois[:, 1] >= 0, :2]]
    return int(((pairs[:, 0] != vocabulary.person) & (pairs[:, 1] == vocabulary.person)).sum())


def object_pairs(detections: Sequence[Detections]) -> tuple[np.ndarray, np.ndarray]:
    """(P,) verb and object of all pairs that have an object."""
    hois = np.concatenate([np.zeros((0, 3), np.int64), *(item.hois for item in detections)])
    labels = [item.labels[item.hois[:, 1]] for item in detections if len(item.hois)]
    paired = hois[:, 1] >= 0
    return hois[paired, 2], np.concatenate([np.zeros(0, np.int64), *labels])[paired]
