"""Pairwise non-maximum suppression: one detection for each pair and action."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from evaluation.hico.matching import inclusive_box_area
from pipeline.types import Detections

# So many images are looked at together: their pairs of detections fit into a core's cache.
IMAGES_PER_BATCH = 32


@dataclass(frozen=True)
class NmsConfig:
    """When a detection covers another one: IoU_human^human_power * IoU_object^object_power >
    threshold (CDN, PNMS)."""

    human_power: float = 1.0
    object_power: float = 0.5
    threshold: float = 0.7


def pairwise_nms(detections: Detections, config: NmsConfig | None = None) -> Detections:
    """Drops detections that a better one of the same object and verb covers.

    Pairs without object are compared by their people alone.

    Returns:
        The same boxes with fewer rows of `hois` and `scores`, by falling score.
    """
    return _suppress([detections], config or NmsConfig())[0]


def batched_pairwise_nms(
    detections: Sequence[Detections], config: NmsConfig | None = None
) -> list[Detections]:
    """`pairwise_nms` of many images, quickly."""
    config, kept = config or NmsConfig(), []
    for start in range(0, len(detections), IMAGES_PER_BATCH):
        kept += _suppress(detections[start : start + IMAGES_PER_BATCH], config)
    return kept


def _suppress(items: Sequence[Detections], config: NmsConfig) -> list[Detections]:
    orders = [np.argsort(-item.scores, kind="stable") for item in items]
    hois = [item.hois[order] for item, order in zip(items, orders, strict=True)]
    counts = np.array([len(rows) for rows in hois], dtype=np.int64)
    firsts = np.cumsum(counts) - counts
    better, worse = _suppressing_pairs(items, hois, *_candidate_pairs(items, hois, counts), config)
    kept = _greedy_keep_mask(better, worse, int(counts.sum()))
    return [
        replace(item, hois=rows[mine], scores=item.scores[order][mine])
        for item, rows, order, mine in zip(
            items, hois, orders, np.split(kept, firsts[1:]), strict=True
        )
    ]


def _candidate_pairs(
    items: Sequence[Detections], hois: Sequence[np.ndarray], counts: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Rows (better, worse) of all pairs of detections of equal image, subject, object and verb;
    rows count through the images, by falling score within each."""
    labels = [
        np.column_stack(
            [
                item.labels[rows[:, 0]],
                np.where(rows[:, 1] >= 0, item.labels[rows[:, 1]], -1),
                rows[:, 2],
            ]
        )
        for item, rows in zip(items, hois, strict=True)
    ]
    table = np.concatenate(labels)
    images = np.repeat(np.arange(len(items)), counts)
    order = np.lexsort((*table.T, images))
    same = (table[order][1:] == table[order][:-1]).all(axis=1)
    same &= images[order][1:] == images[order][:-1]
    starts = np.flatnonzero(np.concatenate([[True], ~same])) if len(order) else order
    sizes = np.diff(np.append(starts, len(order)))
    # Each row with all later rows of its group.
    ends = np.repeat(starts + sizes, sizes)
    later = ends - np.arange(len(order)) - 1
    first = np.repeat(np.arange(len(order)), later)
    within = np.arange(len(first)) - np.repeat(np.cumsum(later) - later, later)
    return order[first], order[first + 1 + within]


def _suppressing_pairs(
    items: Sequence[Detections],
    hois: Sequence[np.ndarray],
    better: np.ndarray,
    worse: np.ndarray,
    config: NmsConfig,
) -> tuple[np.ndarray, np.ndarray]:
    """The pairs of rows of which the better one covers the worse."""
    people, objects = (
        np.concatenate(
            [item.boxes[rows[:, column]] for item, rows in zip(items, hois, strict=True)]
        ).astype(np.float64)
        for column in (0, 1)
    )
    alone = np.concatenate([rows[:, 1] < 0 for rows in hois])
    human = _iou(people, better, worse) ** config.human_power
    # No IoU of objects exceeds 1, so most pairs are settled by their people.
    near = human > config.threshold
    human, better, worse = human[near], better[near], worse[near]
    object_ = np.where(alone[better], 1.0, _iou(objects, better, worse))
    covers = human * object_**config.object_power > config.threshold
    return better[covers], worse[covers]


def _greedy_keep_mask(better: np.ndarray, worse: np.ndarray, count: int) -> np.ndarray:
    """(count,) bool: what greedy suppression by falling score leaves.

    A dropped detection drops nothing itself. Every round settles the detections whose better ones
    are all settled, so there are as many rounds as the longest chain of coverings has links.
    """
    dropped = np.zeros(count, dtype=bool)
    while len(better):
        open_rows = np.zeros(count, dtype=bool)
        open_rows[worse] = True
        kept = ~open_rows[better]
        dropped[worse[kept]] = True
        left = ~dropped[worse] & ~dropped[better]
        better, worse = better[left], worse[left]
    return ~dropped


def _iou(boxes: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """(M,) IoU of pairs of rows, +1 pixel; unlike the evaluation's, touching boxes overlap a
    little."""
    x1, y1, x2, y2 = np.ascontiguousarray(boxes.T)
    area = inclusive_box_area(boxes)
    width = np.minimum(x2[first], x2[second]) - np.maximum(x1[first], x1[second]) + 1
    height = np.minimum(y2[first], y2[second]) - np.maximum(y1[first], y1[second]) + 1
    overlap = np.maximum(width, 0) * np.maximum(height, 0)
    return overlap / (area[first] + area[second] - overlap)
