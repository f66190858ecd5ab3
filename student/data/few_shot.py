"""A few labels of what a split hides: some annotated pairs of every unseen interaction."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from pipeline.splits import Split
from pipeline.types import Annotation
from pipeline.vocabulary import Vocabulary
from student.utils.seeding import derive_seed

# Keeps the choice of labels apart from what else is drawn from the same seed.
SEED_STREAM = 0x5407

# By place of the image, rows of its labels.
FewShotRows = dict[int, list[int]]


def select_few_shot(
    annotations: Sequence[Annotation], split: Split, vocabulary: Vocabulary, count: int, seed: int
) -> FewShotRows:
    """Chooses labels of unseen interactions that training may see all the same.

    Every interaction draws by itself, so that more of them in a split, or a larger `count`, leave
    the others' choice as it is: the first of ten shots are those of five. A label of a verb
    without object belongs to no interaction and is never drawn.

    Args:
        annotations: all labels of the images that are trained on.
        split: what is unseen.
        vocabulary: of both.
        count: labelled pairs of each unseen interaction; all of them where there are fewer.
        seed: equal seeds choose the same ones.

    Returns:
        The chosen rows of `hois` for every image that has some, in rising order.
    """
    if not count or not split.unseen:
        return {}
    unseen = split.unseen_mask(vocabulary.num_interactions)
    places: dict[int, list[tuple[int, int]]] = {hoi: [] for hoi in split.unseen}
    for image, annotation in enumerate(annotations):
        for row, hoi in enumerate(_interaction_ids(annotation, vocabulary).tolist()):
            if hoi >= 0 and unseen[hoi]:
                places[hoi].append((image, row))
    few_shot_rows: FewShotRows = {}
    for hoi, found in places.items():
        rng = np.random.default_rng(derive_seed(seed, SEED_STREAM, hoi))
        for place in rng.permutation(len(found))[:count].tolist():
            image, row = found[place]
            few_shot_rows.setdefault(image, []).append(row)
    return {image: sorted(few_shot_rows[image]) for image in sorted(few_shot_rows)}


def list_few_shot(
    annotations: Sequence[Annotation], few_shot_rows: FewShotRows, vocabulary: Vocabulary
) -> list[dict[str, Any]]:
    """The chosen labels for people and files: interaction, image and boxes (xyxy, pixels), by
    interaction."""
    listed = []
    for image, rows in few_shot_rows.items():
        annotation = annotations[image]
        hois = _interaction_ids(annotation, vocabulary)
        for row in rows:
            human, thing, _ = annotation.hois[row].tolist()
            entry = {
                "interaction": vocabulary.interaction_name(int(hois[row])),
                "image": annotation.image_id,
                "human_box": annotation.boxes[human].tolist(),
                "object_box": annotation.boxes[thing].tolist(),
            }
            listed.append((int(hois[row]), entry))
    return [entry for _, entry in sorted(listed, key=lambda pair: pair[0])]


def _interaction_ids(annotation: Annotation, vocabulary: Vocabulary) -> np.ndarray:
    """(K,) interaction of every label, -1 for one without object."""
    _, things, verbs = annotation.hois.T
    found = vocabulary.interaction_ids[verbs, annotation.labels[things]]
    return np.where(things >= 0, found, -1)
