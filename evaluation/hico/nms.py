"""Pairwise non-maximum suppression of CDN (PNMS): at most one detection of each pair and verb."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from evaluation.hico.matching import inclusive_iou, join
from pipeline.types import Detections


@dataclass(frozen=True)
class NmsConfig:
    """When a detection suppresses a lower-scoring one of the same object class and verb.

    It does where IoU_human^human_power * IoU_object^object_power > threshold.
    """

    human_power: float = 1.0
    object_power: float = 0.5
    threshold: float = 0.7


def pairwise_nms(detections: Detections, config: NmsConfig | None = None) -> Detections:
    """Removes detections that a better-scoring one of the same object class and verb suppresses.

    A suppressed detection suppresses nothing itself. Pairs without object are compared by their
    human boxes alone.

    Returns:
        The same boxes with fewer rows of `hois` and `scores`, by falling score.
    """
    config = config or NmsConfig()
    order = np.argsort(-detections.scores, kind="stable")
    hois, boxes = detections.hois[order], detections.boxes.astype(np.float64)
    humans, objects, verbs = hois.T
    object_labels = np.where(objects >= 0, detections.labels[objects], -1)
    classes = detections.labels[humans] << 40 | (object_labels + 1) << 20 | verbs
    keep = np.ones(len(hois), dtype=bool)
    for better, worse in join(classes, classes):
        later = worse > better
        better, worse = better[later], worse[later]
        overlap = inclusive_iou(boxes[humans[better]], boxes[humans[worse]]) ** config.human_power
        # Pairs without object have index -1, for both the same box, whose IoU is 1.
        object_iou = inclusive_iou(boxes[objects[better]], boxes[objects[worse]])
        overlap *= object_iou**config.object_power
        suppressed = overlap > config.threshold
        for kept, other in zip(better[suppressed], worse[suppressed], strict=True):
            if keep[kept]:
                keep[other] = False
    return replace(detections, hois=hois[keep], scores=detections.scores[order][keep])
