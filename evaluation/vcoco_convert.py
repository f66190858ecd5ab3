"""From detected interactions to V-COCO's official layout."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from evaluation.vcoco_detections import VcocoDetections, shapes
from pipeline.annotations.vcoco_actions import AGENT, VcocoAction
from pipeline.types import Detections
from pipeline.vocabulary import Vocabulary


def to_vcoco(
    detections: Sequence[Detections],
    image_ids: Sequence[int],
    vocabulary: Vocabulary,
    actions: Sequence[VcocoAction],
) -> VcocoDetections:
    """Rewrites detections so that none is lost and none counts twice.

    The layout has room for one object a role, so a person with several candidates for a role gets
    several entries, the best candidate of every role in the first; only the first speaks of the
    agent. A person's score as an agent is the best of the action's verbs. A verb without object
    (box -1) becomes a role with a box of zeros; what is not detected has score NaN.

    Args:
        detections: in a vocabulary with roles.
        image_ids: COCO's numbers of their images.
        vocabulary: of the detections.
        actions: those of the annotations.
    """
    counts = np.array([len(item.boxes) for item in detections], dtype=np.int64)
    first_box = np.cumsum(counts) - counts
    rows = [
        _rows(item, first, vocabulary) for item, first in zip(detections, first_box, strict=True)
    ]
    table = np.concatenate([np.zeros((0, 3), np.int64), *(row for row, _ in rows)])
    scores = np.concatenate([np.zeros(0, np.float32), *(score for _, score in rows)])
    # The last row answers for -1: no object.
    boxes = np.concatenate([*(item.boxes for item in detections), np.zeros((1, 4))])
    boxes = boxes.astype(np.float32)

    order = np.lexsort((-scores, table[:, 2], table[:, 0]))
    table, scores = table[order], scores[order]
    people, objects, verbs = table.T
    rank = _rank(people * vocabulary.num_verbs + verbs)
    depth = int(rank.max(initial=0)) + 1
    keys, entry = np.unique(people * depth + rank, return_inverse=True)
    person_rows = keys // depth
    images = np.repeat(np.asarray(image_ids, dtype=np.int64), counts)

    columns = {
        name: np.full((len(keys), *shape), np.nan, dtype=np.float32)
        for name, shape in shapes(actions).items()
    }
    for verb, action, role in _meanings(vocabulary, actions):
        mine = np.flatnonzero(verbs == verb)
        if role != AGENT:
            found = np.column_stack([boxes[objects[mine]], scores[mine]])
            columns[f"{action}_{role}"][entry[mine]] = found
        best = mine[rank[mine] == 0]
        agents = columns[f"{action}_{AGENT}"]
        # fmax, for a NaN says nothing.
        agents[entry[best]] = np.fmax(agents[entry[best]], scores[best])
    return VcocoDetections(images[person_rows], boxes[person_rows], columns)


def _rows(
    item: Detections, first_box: int, vocabulary: Vocabulary
) -> tuple[np.ndarray, np.ndarray]:
    """(K, 3) person, object (-1 for none) and verb with boxes counted over all images, and (K,)
    scores; subjects that are no person are left out."""
    kept = item.labels[item.hois[:, 0]] == vocabulary.person
    table = item.hois[kept].astype(np.int64)
    table[:, 0] += first_box
    table[:, 1] = np.where(table[:, 1] >= 0, table[:, 1] + first_box, -1)
    return table, item.scores[kept].astype(np.float32)


def _rank(groups: np.ndarray) -> np.ndarray:
    """(K,) place of every row among those of its group, for groups that stand together."""
    if not len(groups):
        return np.zeros(0, dtype=np.int64)
    starts = np.flatnonzero(np.concatenate([[True], groups[1:] != groups[:-1]]))
    lengths = np.diff(np.append(starts, len(groups)))
    return np.arange(len(groups)) - np.repeat(starts, lengths)


def _meanings(vocabulary: Vocabulary, actions: Sequence[VcocoAction]) -> list[tuple[int, str, str]]:
    """(verb, action, role) for every verb that the annotations know; the role is the agent's for
    an action without roles."""
    known = {action.name: {*action.roles, AGENT} for action in actions}
    return [
        (vocabulary.verbs.index(verb), entry["action"], role)
        for entry in vocabulary.roles
        for role, verb in zip(entry["roles"] or [AGENT], entry["verbs"], strict=True)
        if role in known.get(entry["action"], ())
    ]
