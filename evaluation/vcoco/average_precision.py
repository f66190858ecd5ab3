"""The V-COCO protocol: average precision of agents, and of agents with the objects of their roles.

Gupta and Malik, Visual Semantic Role Labeling, 2015, and the benchmark's own evaluation. All
comparisons are in single precision, as there.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from evaluation.hico.matching import argsort_desc
from evaluation.vcoco.detections import VcocoDetections
from pipeline.annotations.vcoco import UNLABELLED, VcocoAction, VcocoGroundTruth

IOU_THRESHOLD = 0.5
SCENARIOS = (1, 2)
# Papers leave this action out of the average role AP, for it has hardly any annotated objects.
ACTION_EXCLUDED_BY_PAPERS = "point"


@dataclass(frozen=True, eq=False)
class VcocoScores:
    """Average precision of every action; NaN where nobody does it, or where it has no such role.

    Attributes:
        actions: names and roles.
        agent_ap: (A,) float64.
        role_ap: (A, R) float64 by scenario.
        num_positives: (A,) int64, annotated people who do the action.
    """

    actions: tuple[VcocoAction, ...]
    agent_ap: np.ndarray
    role_ap: dict[int, np.ndarray]
    num_positives: np.ndarray

    def metrics(self) -> dict[str, float | None]:
        """The averages of agents and roles, as fractions; None where nothing counts.

        The average role AP is the mean over all 25 roles, as the benchmark's code prints it, and
        `..._without_point` the mean over the 24 roles that papers count. Actions that nobody does
        are left out. (V-COCO's test part has none; the benchmark's code stops there.)
        """
        papers = np.array([action.name != ACTION_EXCLUDED_BY_PAPERS for action in self.actions])
        found = {"average_agent_ap": _nanmean(self.agent_ap)}
        for ending, rows in (("", slice(None)), ("_without_point", papers)):
            for scenario in SCENARIOS:
                name = f"average_role_ap_scenario_{scenario}{ending}"
                found[name] = _nanmean(self.role_ap[scenario][rows])
        return found

    def num_roles(self) -> tuple[int, int]:
        """How many roles count in the average, and how many without point."""
        counted = ~np.isnan(self.role_ap[1])
        papers = [action.name != ACTION_EXCLUDED_BY_PAPERS for action in self.actions]
        return int(counted.sum()), int(counted[papers].sum())


@dataclass(frozen=True, eq=False)
class _GroundTruthPeople:
    """The P people of all images, those of an image in a run.

    Attributes:
        offsets: (N + 1,) people of image i: from offset i up to offset i + 1.
        boxes: (P, 4) float32.
        unlabelled: (P,) bool, nobody said what they do.
        action_labels: (P, A) bool.
        role_boxes: (P, A, R, 4) float32.
        has_role: (P, A, R) bool.
    """

    offsets: np.ndarray
    boxes: np.ndarray
    unlabelled: np.ndarray
    action_labels: np.ndarray
    role_boxes: np.ndarray
    has_role: np.ndarray


def evaluate_vcoco(ground_truth: VcocoGroundTruth, detections: VcocoDetections) -> VcocoScores:
    """Scores detections.

    A detection goes to the person of its image with the largest overlap; it is left out where
    nobody said what that person does, and wrong where the image has no person at all. Among equal
    scores the later detection comes first, as in the benchmark.

    Args:
        ground_truth: the annotations.
        detections: in any order; those of other images do not count, as in the benchmark.
    """
    people = _collect_people(ground_truth)
    place = {image.id: index for index, image in enumerate(ground_truth.images)}
    images = np.array([place.get(n, -1) for n in detections.image_ids.tolist()], dtype=np.int64)
    inside = np.flatnonzero(images >= 0)
    detections, images = detections.keep(inside), images[inside]
    # Among equal scores the benchmark's two sortings put later images first, and earlier rows of
    # an image; a stable sort of rows in that order does the same.
    order = np.argsort(-images, kind="stable")
    detections = detections.keep(order)
    person, overlap = _assign_people(images[order], detections.person_boxes, people)
    counted = (person < 0) | ~people.unlabelled[person]
    near = (person >= 0) & (overlap >= IOU_THRESHOLD)

    most = people.has_role.shape[2]
    num_positives = people.action_labels.sum(axis=0)
    agents = np.full(len(ground_truth.actions), np.nan)
    roles = {scenario: np.full((len(ground_truth.actions), most), np.nan) for scenario in SCENARIOS}
    for index, action in enumerate(ground_truth.actions):
        positives = int(num_positives[index])
        if not positives:
            continue
        right = near & people.action_labels[person, index]
        scores = _rank_rows(detections.agent_scores(action), counted)
        agents[index] = _average_precision(scores, right, person, positives)
        for role, name in enumerate(action.roles):
            boxes, values = detections.role_boxes(action, name)
            scores = _rank_rows(values, counted)
            fits = vcoco_iou(people.role_boxes[person, index, role], boxes) >= IOU_THRESHOLD
            named = people.has_role[person, index, role]
            for scenario in SCENARIOS:
                fine = np.where(named, fits, _is_empty_box(boxes) if scenario == 1 else True)
                roles[scenario][index, role] = _average_precision(
                    scores, right & fine, person, positives
                )
    return VcocoScores(ground_truth.actions, agents, roles, num_positives)


def vcoco_iou(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """IoU row by row in the benchmark's convention: a box's last pixel belongs to it (+1).

    Args:
        first, second: (N, 4) float32 xyxy pixels.

    Returns:
        (N,) float32; NaN where a coordinate is NaN.
    """
    width = np.minimum(first[:, 2], second[:, 2]) - np.maximum(first[:, 0], second[:, 0]) + 1
    height = np.minimum(first[:, 3], second[:, 3]) - np.maximum(first[:, 1], second[:, 1]) + 1
    overlap = np.maximum(width, 0) * np.maximum(height, 0)
    return overlap / (_inclusive_box_area(second) + _inclusive_box_area(first) - overlap)


def area_under_envelope(tp_mask: np.ndarray, num_positives: int) -> float:
    """AP as the area under the precision envelope.

    Args:
        tp_mask: (N,) bool, detections by falling score.
        num_positives: at least 1.
    """
    true_positives = np.cumsum(tp_mask)
    precision = true_positives / np.arange(1, len(tp_mask) + 1)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return float((np.diff(true_positives, prepend=0) / num_positives * envelope).sum())


@dataclass(frozen=True, eq=False)
class _RankedRows:
    """Rows that count, by falling score, and all rows' scores."""

    rows: np.ndarray
    scores: np.ndarray


def _rank_rows(scores: np.ndarray, counted: np.ndarray) -> _RankedRows:
    rows = np.flatnonzero(counted & ~np.isnan(scores))
    return _RankedRows(rows[argsort_desc(scores[rows])], scores)


def _average_precision(
    ranked: _RankedRows, right: np.ndarray, person: np.ndarray, positives: int
) -> float:
    """AP of one action or role; every person is found once, by the best-scoring right detection,
    the last row of its image among equals."""
    candidates = np.flatnonzero(right[ranked.rows])
    rows = ranked.rows[candidates]
    best = np.lexsort((-rows, -ranked.scores[rows]))
    _, first = np.unique(person[rows[best]], return_index=True)
    tp_mask = np.zeros(len(ranked.rows), dtype=bool)
    tp_mask[candidates[best[first]]] = True
    return area_under_envelope(tp_mask, positives)


def _assign_people(
    images: np.ndarray, boxes: np.ndarray, people: _GroundTruthPeople
) -> tuple[np.ndarray, np.ndarray]:
    """(D,) the person with the largest overlap, the first among equals (-1 where the image has
    none), and (D,) that overlap."""
    starts = people.offsets[images]
    counts = people.offsets[images + 1] - starts
    person, best = np.full(len(images), -1, dtype=np.int64), np.zeros(len(images), np.float32)
    asked = np.flatnonzero(counts)
    if not len(asked):
        return person, best
    counts = counts[asked]
    firsts = np.cumsum(counts) - counts
    rows = np.repeat(np.arange(len(asked)), counts)
    within = np.arange(len(rows)) - firsts[rows]
    candidates = starts[asked][rows] + within
    found = vcoco_iou(people.boxes[candidates], boxes[asked][rows])
    best[asked] = np.maximum.reduceat(found, firsts)
    wins = np.flatnonzero(found == best[asked][rows])
    _, first = np.unique(rows[wins], return_index=True)
    person[asked] = candidates[wins[first]]
    return person, best


def _collect_people(ground_truth: VcocoGroundTruth) -> _GroundTruthPeople:
    rows = [np.flatnonzero(image.is_person) for image in ground_truth.images]
    num_actions, most = (
        len(ground_truth.actions),
        max(len(action.roles) for action in ground_truth.actions),
    )
    counts = np.array([len(row) for row in rows], dtype=np.int64)
    does = [image.action_labels[row] for image, row in zip(ground_truth.images, rows, strict=True)]
    roles = [image.role_boxes[row] for image, row in zip(ground_truth.images, rows, strict=True)]
    # The last row answers for -1, no box.
    padded = [
        np.vstack([image.boxes, np.zeros((1, 4), np.float32)]) for image in ground_truth.images
    ]
    boxes = [box[role] for box, role in zip(padded, roles, strict=True)]
    stated = np.concatenate([np.zeros((0, num_actions), np.int8), *does])
    return _GroundTruthPeople(
        offsets=np.concatenate([[0], np.cumsum(counts)]),
        boxes=np.concatenate(
            [np.zeros((0, 4), np.float32)]
            + [image.boxes[row] for image, row in zip(ground_truth.images, rows, strict=True)]
        ),
        unlabelled=(stated == UNLABELLED).any(axis=1),
        action_labels=stated == 1,
        role_boxes=np.concatenate([np.zeros((0, num_actions, most, 4), np.float32), *boxes]),
        has_role=np.concatenate([np.zeros((0, num_actions, most), np.int64), *roles]) >= 0,
    )


def _is_empty_box(boxes: np.ndarray) -> np.ndarray:
    """(D,) bool: a role that is said to have no object, all 0 or all NaN."""
    columns = boxes.T
    nothing, nowhere = columns[0] == 0, np.isnan(columns[0])
    for column in columns[1:]:
        nothing, nowhere = nothing & (column == 0), nowhere & np.isnan(column)
    return nothing | nowhere


def _inclusive_box_area(boxes: np.ndarray) -> np.ndarray:
    return (boxes[:, 2] - boxes[:, 0] + 1) * (boxes[:, 3] - boxes[:, 1] + 1)


def _nanmean(values: np.ndarray) -> float | None:
    counted = values[~np.isnan(values)]
    return float(counted.mean()) if len(counted) else None
