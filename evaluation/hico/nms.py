"""Pairwise non-maximum suppression of CDN (PNMS): at most one detection of each pair and verb."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from evaluation.hico.matching import inclusive_iou
from pipeline.types import Detections

# The pairs of detections of a batch of this size fit into the cache of a CPU core.
IMAGES_PER_BATCH = 32


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

    Pairs without object are compared by their human boxes alone.

    Returns:
        The same boxes with fewer rows of `hois` and `scores`, by falling score.
    """
    return _suppress([detections], config or NmsConfig())[0]


def batched_pairwise_nms(
    detections: Sequence[Detections], config: NmsConfig | None = None
) -> list[Detections]:
    """`pairwise_nms` of many images; faster than one call for each."""
    config, kept = config or NmsConfig(), []
    for start in range(0, len(detections), IMAGES_PER_BATCH):
        kept += _suppress(detections[start : start + IMAGES_PER_BATCH], config)
    return kept


def _suppress(items: Sequence[Detections], config: NmsConfig) -> list[Detections]:
    orders = [np.argsort(-item.scores, kind="stable") for item in items]
    hois = [item.hois[order] for item, order in zip(items, orders, strict=True)]
    counts = np.array([len(rows) for rows in hois], dtype=np.int64)
    starts = np.cumsum(counts) - counts
    better, worse = _suppressing_pairs(items, hois, *_candidate_pairs(items, hois, counts), config)
    keep_mask = _greedy_keep_mask(better, worse, int(counts.sum()))
    return [
        replace(item, hois=rows[mask], scores=item.scores[order][mask])
        for item, rows, order, mask in zip(
            items, hois, orders, np.split(keep_mask, starts[1:]), strict=True
        )
    ]


def _candidate_pairs(
    items: Sequence[Detections], hois: Sequence[np.ndarray], counts: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of rows (better, worse) of the same image, subject class, object class and verb.

    Rows are numbered across the images, by falling score within each.
    """
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
    # Pair each row with all later rows of its group.
    ends = np.repeat(starts + sizes, sizes)
    num_later = ends - np.arange(len(order)) - 1
    first = np.repeat(np.arange(len(order)), num_later)
    within = np.arange(len(first)) - np.repeat(np.cumsum(num_later) - num_later, num_later)
    return order[first], order[first + 1 + within]


def _suppressing_pairs(
    items: Sequence[Detections],
    hois: Sequence[np.ndarray],
    better: np.ndarray,
    worse: np.ndarray,
    config: NmsConfig,
) -> tuple[np.ndarray, np.ndarray]:
    """The pairs of rows whose better one suppresses the worse one."""
    humans, objects = (
        np.concatenate(
            [item.boxes[rows[:, column]] for item, rows in zip(items, hois, strict=True)]
        ).astype(np.float64)
        for column in (0, 1)
    )
    without_object = np.concatenate([rows[:, 1] < 0 for rows in hois])
    human_term = inclusive_iou(humans[better], humans[worse]) ** config.human_power
    # The object's IoU is at most 1, so the human boxes alone settle most pairs.
    near = human_term > config.threshold
    human_term, better, worse = human_term[near], better[near], worse[near]
    object_iou = inclusive_iou(objects[better], objects[worse])
    object_iou = np.where(without_object[better], 1.0, object_iou)
    suppressed = human_term * object_iou**config.object_power > config.threshold
    return better[suppressed], worse[suppressed]


def _greedy_keep_mask(better: np.ndarray, worse: np.ndarray, count: int) -> np.ndarray:
    """(count,) bool: rows that greedy suppression by falling score keeps.

    A suppressed detection suppresses nothing itself. Each round settles the detections whose
    better ones are all settled, so the number of rounds is the length of the longest chain of
    suppressing pairs.
    """
    suppressed = np.zeros(count, dtype=bool)
    while len(better):
        unsettled = np.zeros(count, dtype=bool)
        unsettled[worse] = True
        kept = ~unsettled[better]
        suppressed[worse[kept]] = True
        remaining = ~suppressed[worse] & ~suppressed[better]
        better, worse = better[remaining], worse[remaining]
    return ~suppressed
