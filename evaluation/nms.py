"""Pairwise non-maximum suppression: one detection for each pair and action."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from evaluation.matching import benchmark_area
from pipeline.types import Detections

HUMAN_POWER = 1.0
OBJECT_POWER = 0.5
THRESHOLD = 0.7


def pairwise_nms(
    detections: Detections,
    human_power: float = HUMAN_POWER,
    object_power: float = OBJECT_POWER,
    threshold: float = THRESHOLD,
) -> Detections:
    """Drops a detection when a better one of the same object and verb covers nearly the same pair:
    IoU_human^human_power * IoU_object^object_power > threshold (CDN, PNMS).

    Returns:
        The same boxes with fewer rows of `hois` and `scores`, by falling score.
    """
    hois, labels = detections.hois, detections.labels
    order = np.argsort(-detections.scores, kind="stable")
    hois = hois[order]
    kinds = labels[hois[:, 0]], labels[hois[:, 1]], hois[:, 2]
    ends = [int(column.max(initial=0)) + 1 for column in kinds]
    kind = (kinds[0] * ends[1] + kinds[1]) * ends[2] + kinds[2]
    better, worse = np.nonzero(np.triu(kind[:, None] == kind[None], k=1))

    boxes = detections.boxes.astype(np.float64)
    human = _iou(boxes[hois[better, 0]], boxes[hois[worse, 0]])
    object_ = _iou(boxes[hois[better, 1]], boxes[hois[worse, 1]])
    covers = human**human_power * object_**object_power > threshold
    better, worse = better[covers], worse[covers]

    kept = np.ones(len(hois), dtype=bool)
    for row in np.unique(better):
        if kept[row]:
            kept[worse[better == row]] = False
    return replace(detections, hois=hois[kept], scores=detections.scores[order][kept])


def _iou(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """(N,) IoU row by row, +1 pixel; unlike the evaluation's, touching boxes overlap a little."""
    corner = np.maximum(first[:, :2], second[:, :2])
    far = np.minimum(first[:, 2:], second[:, 2:])
    sides = np.maximum(far - corner + 1, 0)
    overlap = sides[:, 0] * sides[:, 1]
    return overlap / (benchmark_area(first) + benchmark_area(second) - overlap)
