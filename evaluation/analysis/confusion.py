"""Which verb a model says where people labelled another one."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from evaluation.hico.matching import (
    IOU_THRESHOLD,
    MatchedDetections,
    hico_iou,
    interaction_verbs_and_objects,
    join,
)
from pipeline.vocabulary import Vocabulary


@dataclass(frozen=True, eq=False)
class VerbConfusion:
    """What was said about annotated pairs that were found.

    Attributes:
        counts: (V, V) float64, rows: labelled verb, columns: predicted verb. A found pair
            whose predicted verb is one of its labels counts 1 there on the diagonal; otherwise it
            counts 1 in all, spread evenly over the rows of its labels.
        num_found, num_pairs: annotated pairs that were found, and all of them.
    """

    counts: np.ndarray
    num_found: int
    num_pairs: int

    @property
    def row_shares(self) -> np.ndarray:
        """(V, V) rows as fractions of the row; zeros in rows without a found pair."""
        totals = self.counts.sum(axis=1, keepdims=True)
        return np.divide(self.counts, totals, out=np.zeros_like(self.counts), where=totals > 0)

    def most_frequent(self, number: int) -> list[tuple[int, int, float]]:
        """The most frequent confusions: labelled verb, said verb, pairs; most frequent first."""
        off = self.counts.copy()
        np.fill_diagonal(off, 0)
        order = np.argsort(-off, axis=None, kind="stable")[:number]
        rows, columns = np.unravel_index(order, off.shape)
        return [
            (int(row), int(column), float(off[row, column]))
            for row, column in zip(rows, columns, strict=True)
            if off[row, column] > 0
        ]


def compute_verb_confusion(matched: MatchedDetections, vocabulary: Vocabulary) -> VerbConfusion:
    """Compares the verb said about each annotated pair with its labels.

    A detection finds the annotated pair of its image and object class with the largest
    min(human IoU, object IoU), if that is at least 0.5. Of the detections that find a pair, the
    best-scoring one's verb is what the model says about it.
    """
    found, ground_truth = matched.detections, matched.ground_truth
    verb_of, object_of = interaction_verbs_and_objects(vocabulary)
    pairs, first, pair_of = np.unique(
        np.column_stack(
            [
                ground_truth.images * vocabulary.num_objects + object_of[ground_truth.interactions],
                ground_truth.human_boxes,
                ground_truth.object_boxes,
            ]
        ),
        axis=0,
        return_index=True,
        return_inverse=True,
    )
    pair_of = pair_of.reshape(-1)
    keys = found.images * vocabulary.num_objects + object_of[found.interactions]
    best = np.full(len(pairs), len(found), dtype=np.int64)
    for rows, targets in join(keys, pairs[:, 0].astype(np.int64)):
        named = first[targets]
        overlap = np.minimum(
            hico_iou(found.human_boxes[rows], ground_truth.human_boxes[named]),
            hico_iou(found.object_boxes[rows], ground_truth.object_boxes[named]),
        )
        near = overlap >= IOU_THRESHOLD
        rows, targets, overlap = rows[near], targets[near], overlap[near]
        order = np.lexsort((-overlap, rows))
        rows, targets = rows[order], targets[order]
        rows, nearest = np.unique(rows, return_index=True)
        # Detections stand by falling score: the smallest row is the best-scoring one.
        np.minimum.at(best, targets[nearest], rows)

    labels = np.zeros((len(pairs), vocabulary.num_verbs), dtype=bool)
    labels[pair_of, verb_of[ground_truth.interactions]] = True
    there = np.flatnonzero(best < len(found))
    said = verb_of[found.interactions[best[there]]]
    counts = np.zeros((vocabulary.num_verbs, vocabulary.num_verbs))
    right = labels[there, said]
    np.add.at(counts, (said[right], said[right]), 1)
    pair, verb = np.nonzero(labels[there[~right]])
    share = 1 / labels[there[~right]].sum(axis=1)
    np.add.at(counts, (verb, said[~right][pair]), share[pair])
    return VerbConfusion(counts, len(there), len(pairs))
