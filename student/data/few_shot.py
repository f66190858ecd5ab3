"""Few-shot labels: a fixed number of labelled pairs of every unseen interaction."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from pipeline.splits import Split
from pipeline.types import Annotation
from pipeline.vocabulary import Vocabulary
from student.utils.seeding import derive_seed

# Separates this random stream from others with the same seed.
SEED_STREAM = 0x5407

# Rows of `Annotation.hois` by image index.
FewShotRows = dict[int, list[int]]


def select_few_shot(
    annotations: Sequence[Annotation], split: Split, vocabulary: Vocabulary, count: int, seed: int
) -> FewShotRows:
    """Selects labels of unseen interactions that remain in the training set.

    Every interaction has a random order of its own, so that selections are nested: those of five
    shots are among those of ten, and other unseen interactions do not change them. Labels of verbs
    without object belong to no interaction and are never selected.

    Args:
        annotations: annotations of all training images, with the labels of unseen interactions.
        split, vocabulary: of the annotations.
        count: number of labelled pairs of each unseen interaction; all where there are fewer.
        seed: seed of the random orders.

    Returns:
        The selected rows of `hois` in rising order, for every image that has any.
    """
    if not count or not split.unseen:
        return {}
    unseen = split.unseen_mask(vocabulary.num_interactions)
    labels: dict[int, list[tuple[int, int]]] = {hoi: [] for hoi in split.unseen}
    for image, annotation in enumerate(annotations):
        for row, hoi in enumerate(_interaction_ids(annotation, vocabulary).tolist()):
            if hoi >= 0 and unseen[hoi]:
                labels[hoi].append((image, row))
    few_shot_rows: FewShotRows = {}
    for hoi, candidates in labels.items():
        rng = np.random.default_rng(derive_seed(seed, SEED_STREAM, hoi))
        for index in rng.permutation(len(candidates))[:count].tolist():
            image, row = candidates[index]
            few_shot_rows.setdefault(image, []).append(row)
    return {image: sorted(few_shot_rows[image]) for image in sorted(few_shot_rows)}


def list_few_shot(
    annotations: Sequence[Annotation], few_shot_rows: FewShotRows, vocabulary: Vocabulary
) -> list[dict[str, Any]]:
    """Describes the labels that `select_few_shot` selected: names of interaction and image and both
    boxes (xyxy, pixels), sorted by interaction."""
    entries = []
    for image, rows in few_shot_rows.items():
        annotation = annotations[image]
        hois = _interaction_ids(annotation, vocabulary)
        for row in rows:
            human_box, object_box = annotation.boxes[annotation.hois[row, :2]].tolist()
            entry = {
                "interaction": vocabulary.interaction_name(int(hois[row])),
                "image": annotation.image_id,
                "human_box": human_box,
                "object_box": object_box,
            }
            entries.append((int(hois[row]), entry))
    return [entry for _, entry in sorted(entries, key=lambda pair: pair[0])]


def _interaction_ids(annotation: Annotation, vocabulary: Vocabulary) -> np.ndarray:
    """(K,) interaction of every label, -1 for a verb without object."""
    _, object_rows, verbs = annotation.hois.T
    interaction_ids = vocabulary.interaction_ids[verbs, annotation.labels[object_rows]]
    return np.where(object_rows >= 0, interaction_ids, -1)
