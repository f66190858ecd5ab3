"""The V-COCO protocol: average precision of agents, and of agents with the objects of their roles.

Gupta and Malik, Visual Semantic Role Labeling, 2015, and the benchmark's own evaluation. All
comparisons are in single precision, as in the benchmark's code.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from evaluation.hico.average_precision import nanmean
from evaluation.hico.matching import argsort_desc, inclusive_iou
from evaluation.vcoco.detections import VcocoDetections
from pipeline.annotations.vcoco import UNLABELLED, VcocoAction, VcocoGroundTruth

IOU_THRESHOLD = 0.5
SCENARIOS = (1, 2)
# Papers exclude this action from the average role AP, as very few of its objects are annotated.
ACTION_EXCLUDED_BY_PAPERS = "point"


@dataclass(frozen=True, eq=False)
class VcocoScores:
    """Average precision of the A actions; NaN where an action has no positives or no such role.

    Attributes:
        actions: names and roles.
        agent_ap: (A,) float64.
        role_ap: (A, R) float64 by scenario; R is the largest number of roles of an action.
        num_positives: (A,) int64, number of annotated people who do the action.
    """

    actions: tuple[VcocoAction, ...]
    agent_ap: np.ndarray
    role_ap: dict[int, np.ndarray]
    num_positives: np.ndarray

    def metrics(self) -> dict[str, float | None]:
        """The averages over agents and over roles, as fractions; None where there is no AP.

        The average role AP is the mean over all 25 roles, as the benchmark's code prints it, and
        `..._without_point` the mean over the 24 roles that papers count. Actions without positives
        are left out. (The test part of V-COCO has positives of every action; the benchmark's code
        fails on an action without.)
        """
        in_papers = np.array([action.name != ACTION_EXCLUDED_BY_PAPERS for action in self.actions])
        metrics = {"average_agent_ap": nanmean(self.agent_ap)}
        for suffix, rows in (("", slice(None)), ("_without_point", in_papers)):
            for scenario in SCENARIOS:
                name = f"average_role_ap_scenario_{scenario}{suffix}"
                metrics[name] = nanmean(self.role_ap[scenario][rows])
        return metrics

    def num_roles(self) -> tuple[int, int]:
        """Number of roles in the average, and in the average without point."""
        counted = ~np.isnan(self.role_ap[1])
        in_papers = [action.name != ACTION_EXCLUDED_BY_PAPERS for action in self.actions]
        return int(counted.sum()), int(counted[in_papers].sum())


@dataclass(frozen=True, eq=False)
class _GroundTruthPeople:
    """The P annotated people of all images, sorted by image.

    Attributes:
        offsets: (N + 1,) the people of image i are rows offsets[i] to offsets[i + 1] - 1.
        boxes: (P, 4) float32, xyxy, pixels.
        unlabelled: (P,) bool, people whose actions are not labelled.
        action_labels: (P, A) bool.
        role_boxes: (P, A, R, 4) float32, xyxy, pixels.
        has_role: (P, A, R) bool, the role's object is annotated.
    """

    offsets: np.ndarray
    boxes: np.ndarray
    unlabelled: np.ndarray
    action_labels: np.ndarray
    role_boxes: np.ndarray
    has_role: np.ndarray


def evaluate_vcoco(ground_truth: VcocoGroundTruth, detections: VcocoDetections) -> VcocoScores:
    """Scores of V-COCO detections.

    A detection is assigned to the person of its image with the largest IoU. It is ignored if the
    actions of that person are not labelled, and a false positive if the image has no person. Among
    equal scores the later detection ranks first, as in the benchmark.

    Args:
        ground_truth: the annotations.
        detections: in any order; those on images outside the ground truth are ignored, as in the
            benchmark.
    """
    people = _collect_people(ground_truth)
    index_of = {image.id: index for index, image in enumerate(ground_truth.images)}
    images = np.array([index_of.get(n, -1) for n in detections.image_ids.tolist()], dtype=np.int64)
    listed = np.flatnonzero(images >= 0)
    detections, images = detections.keep(listed), images[listed]
    # The benchmark sorts twice, which ranks detections of equal score by falling image, then by
    # rising row. A stable sort of rows in that order gives the same ranking.
    order = np.argsort(-images, kind="stable")
    detections = detections.keep(order)
    person, iou = _assign_people(images[order], detections.person_boxes, people)
    counted = (person < 0) | ~people.unlabelled[person]
    near = (person >= 0) & (iou >= IOU_THRESHOLD)

    num_positives = people.action_labels.sum(axis=0)
    agent_ap = np.full(len(ground_truth.actions), np.nan)
    shape = people.has_role.shape[1:]
    role_ap = {scenario: np.full(shape, np.nan) for scenario in SCENARIOS}
    for index, action in enumerate(ground_truth.actions):
        positives = int(num_positives[index])
        if not positives:
            continue
        correct_agent = near & people.action_labels[person, index]
        ranked = _rank_rows(detections.agent_scores(action), counted)
        agent_ap[index] = _average_precision(ranked, correct_agent, person, positives)
        for role, name in enumerate(action.roles):
            boxes, scores = detections.role_boxes(action, name)
            ranked = _rank_rows(scores, counted)
            role_iou = inclusive_iou(people.role_boxes[person, index, role], boxes)
            has_role = people.has_role[person, index, role]
            for scenario in SCENARIOS:
                # Without an annotated object, scenario 1 requires an empty box and scenario 2
                # accepts any.
                without_object = _is_empty_box(boxes) if scenario == 1 else True
                correct_role = np.where(has_role, role_iou >= IOU_THRESHOLD, without_object)
                role_ap[scenario][index, role] = _average_precision(
                    ranked, correct_agent & correct_role, person, positives
                )
    return VcocoScores(ground_truth.actions, agent_ap, role_ap, num_positives)


def area_under_envelope(tp_mask: np.ndarray, num_positives: int) -> float:
    """AP as the area under the envelope of the precision-recall curve.

    Args:
        tp_mask: (N,) bool, true positives by falling score.
        num_positives: at least 1.
    """
    true_positives = np.cumsum(tp_mask)
    precision = true_positives / np.arange(1, len(tp_mask) + 1)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return float((np.diff(true_positives, prepend=0) / num_positives * envelope).sum())


@dataclass(frozen=True, eq=False)
class _RankedRows:
    """The rows that count, by falling score, and the scores of all rows."""

    rows: np.ndarray
    scores: np.ndarray


def _rank_rows(scores: np.ndarray, counted: np.ndarray) -> _RankedRows:
    rows = np.flatnonzero(counted & ~np.isnan(scores))
    return _RankedRows(rows[argsort_desc(scores[rows])], scores)


def _average_precision(
    ranked: _RankedRows, correct: np.ndarray, person: np.ndarray, num_positives: int
) -> float:
    """AP of one action or role.

    Each person is matched once, by the correct detection with the best score; among equal scores
    by the last row.
    """
    candidates = np.flatnonzero(correct[ranked.rows])
    rows = ranked.rows[candidates]
    best = np.lexsort((-rows, -ranked.scores[rows]))
    _, first = np.unique(person[rows[best]], return_index=True)
    tp_mask = np.zeros(len(ranked.rows), dtype=bool)
    tp_mask[candidates[best[first]]] = True
    return area_under_envelope(tp_mask, num_positives)


def _assign_people(
    images: np.ndarray, boxes: np.ndarray, people: _GroundTruthPeople
) -> tuple[np.ndarray, np.ndarray]:
    """The person of each detection.

    Returns:
        (D,) int64, the person with the largest IoU, the first of equal ones, -1 if the image has
        no person; (D,) float32, that IoU.
    """
    starts = people.offsets[images]
    counts = people.offsets[images + 1] - starts
    person, best = np.full(len(images), -1, dtype=np.int64), np.zeros(len(images), np.float32)
    with_people = np.flatnonzero(counts)
    if not len(with_people):
        return person, best
    counts = counts[with_people]
    firsts = np.cumsum(counts) - counts
    rows = np.repeat(np.arange(len(with_people)), counts)
    within = np.arange(len(rows)) - firsts[rows]
    candidates = starts[with_people][rows] + within
    iou = inclusive_iou(people.boxes[candidates], boxes[with_people][rows])
    best[with_people] = np.maximum.reduceat(iou, firsts)
    largest = np.flatnonzero(iou == best[with_people][rows])
    _, first = np.unique(rows[largest], return_index=True)
    person[with_people] = candidates[largest[first]]
    return person, best


def _collect_people(ground_truth: VcocoGroundTruth) -> _GroundTruthPeople:
    images = ground_truth.images
    person_rows = [np.flatnonzero(image.is_person) for image in images]
    num_actions = len(ground_truth.actions)
    max_roles = max(len(action.roles) for action in ground_truth.actions)
    labels = [image.action_labels[row] for image, row in zip(images, person_rows, strict=True)]
    roles = [image.role_boxes[row] for image, row in zip(images, person_rows, strict=True)]
    # Index -1, a role without object, reads the appended box of zeros.
    padded = [np.vstack([image.boxes, np.zeros((1, 4), np.float32)]) for image in images]
    role_boxes = [boxes[role] for boxes, role in zip(padded, roles, strict=True)]
    action_labels = np.concatenate([np.zeros((0, num_actions), np.int8), *labels])
    counts = [len(row) for row in person_rows]
    return _GroundTruthPeople(
        offsets=np.concatenate([[0], np.cumsum(counts, dtype=np.int64)]),
        boxes=np.concatenate(
            [np.zeros((0, 4), np.float32)]
            + [image.boxes[row] for image, row in zip(images, person_rows, strict=True)]
        ),
        unlabelled=(action_labels == UNLABELLED).any(axis=1),
        action_labels=action_labels == 1,
        role_boxes=np.concatenate(
            [np.zeros((0, num_actions, max_roles, 4), np.float32), *role_boxes]
        ),
        has_role=np.concatenate([np.zeros((0, num_actions, max_roles), np.int64), *roles]) >= 0,
    )


def _is_empty_box(boxes: np.ndarray) -> np.ndarray:
    """(D,) bool: boxes that stand for no object, all coordinates 0 or all NaN."""
    return (boxes == 0).all(axis=1) | np.isnan(boxes).all(axis=1)
