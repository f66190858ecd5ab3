"""Confusion between verbs: which verbs a model predicts for annotated human-object pairs."""

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
    """Confusion matrix of the verbs of detected pairs.

    Attributes:
        counts: (V, V) float64; rows are labelled, columns predicted verbs. A detected pair whose
            predicted verb is one of its labels counts 1 on the diagonal. Any other counts 1 in
            total, spread evenly over the rows of its labels.
        num_found: number of annotated pairs that are detected.
    """

    counts: np.ndarray
    num_found: int

    @property
    def row_shares(self) -> np.ndarray:
        """(V, V) counts as fractions of their row; zeros in rows without a detected pair."""
        totals = self.counts.sum(axis=1, keepdims=True)
        return np.divide(self.counts, totals, out=np.zeros_like(self.counts), where=totals > 0)

    def most_frequent(self, number: int) -> list[tuple[int, int, float]]:
        """The most frequent confusions: labelled verb, predicted verb, number of pairs."""
        confusions = self.counts.copy()
        np.fill_diagonal(confusions, 0)
        order = np.argsort(-confusions, axis=None, kind="stable")[:number]
        return [
            (*divmod(cell, len(confusions)), float(confusions.flat[cell]))
            for cell in order.tolist()
            if confusions.flat[cell] > 0
        ]


def compute_verb_confusion(matched: MatchedDetections, vocabulary: Vocabulary) -> VerbConfusion:
    """Compares the predicted verb of each annotated pair with its labels.

    A detection is assigned to the annotated pair of its image and object class with the largest
    min(human IoU, object IoU), if that is at least 0.5. The predicted verb of a pair is that of its
    best-scoring detection.
    """
    detections, ground_truth = matched.detections, matched.ground_truth
    verb_of, object_of = interaction_verbs_and_objects(vocabulary)
    # A pair with several verbs has several triplets with the same boxes.
    pairs, first_triplet, pair_of = np.unique(
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
    keys = detections.images * vocabulary.num_objects + object_of[detections.interactions]
    best = np.full(len(pairs), len(detections), dtype=np.int64)
    for rows, targets in join(keys, pairs[:, 0].astype(np.int64)):
        triplets = first_triplet[targets]
        iou = np.minimum(
            hico_iou(detections.human_boxes[rows], ground_truth.human_boxes[triplets]),
            hico_iou(detections.object_boxes[rows], ground_truth.object_boxes[triplets]),
        )
        near = iou >= IOU_THRESHOLD
        rows, targets, iou = rows[near], targets[near], iou[near]
        order = np.lexsort((-iou, rows))
        rows, targets = rows[order], targets[order]
        rows, nearest = np.unique(rows, return_index=True)
        # Detections are sorted by falling score, so the smallest row is the best-scoring one.
        np.minimum.at(best, targets[nearest], rows)

    labels = np.zeros((len(pairs), vocabulary.num_verbs), dtype=bool)
    labels[pair_of, verb_of[ground_truth.interactions]] = True
    found = np.flatnonzero(best < len(detections))
    predicted = verb_of[detections.interactions[best[found]]]
    counts = np.zeros((vocabulary.num_verbs, vocabulary.num_verbs))
    correct = labels[found, predicted]
    np.add.at(counts, (predicted[correct], predicted[correct]), 1)
    pair, verb = np.nonzero(labels[found[~correct]])
    share = 1 / labels[found[~correct]].sum(axis=1)
    np.add.at(counts, (verb, predicted[~correct][pair]), share[pair])
    return VerbConfusion(counts, len(found))
