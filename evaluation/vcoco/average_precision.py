"""The V-COCO protocol: average precision of agents, and of agents with the objects of their roles.

Gupta and Malik, Visual Semantic Role Labeling, 2015, and the benchmark's own evaluation. All
comparisons are in single precision, as in the benchmark's code.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from evaluation.hico.average_precision import nanmean
from evaluation.hico.matching import inclusive_iou, join
from evaluation.vcoco.detections import VcocoDetections
from pipeline.annotations.vcoco import UNLABELLED, VcocoGroundTruth

IOU_THRESHOLD = 0.5
SCENARIOS = (1, 2)
# Papers exclude this action from the average role AP, as very few of its objects are annotated.
ACTION_EXCLUDED_BY_PAPERS = "point"


SCENARIO_KEYS = tuple(f"scenario_{scenario}" for scenario in SCENARIOS)
AGENT_AP = "average_agent_ap"
# The mean over all 25 roles, as the benchmark's code prints it, and over the 24 that papers count.
ROLE_AP = tuple(f"average_role_ap_{key}" for key in SCENARIO_KEYS)
ROLE_AP_WITHOUT_POINT = tuple(f"{name}_without_point" for name in ROLE_AP)


@dataclass(frozen=True)
class ActionResults:
    """Scores of one action; fractions, None without positives.

    Attributes:
        positives: number of annotated people who do the action.
        agent_ap: AP of the agents.
        roles: AP by role and scenario (`SCENARIO_KEYS`).
    """

    positives: int
    agent_ap: float | None
    roles: dict[str, dict[str, float | None]]


@dataclass(frozen=True)
class VcocoResults:
    """V-COCO's scores.

    Attributes:
        metrics: averages by name (`AGENT_AP`, `ROLE_AP`, `ROLE_AP_WITHOUT_POINT`), as fractions;
            None where there is no AP. Actions without positives are left out. (The test part of
            V-COCO has positives of every action; the benchmark's code fails on an action without.)
        per_action: scores by the action's name.
    """

    metrics: dict[str, float | None]
    per_action: dict[str, ActionResults]

    @classmethod
    def from_actions(cls, per_action: dict[str, ActionResults]) -> VcocoResults:
        """Computes the averages."""

        def mean(values: Iterable[float | None]) -> float | None:
            return nanmean(np.array(list(values), dtype=np.float64))

        metrics = {AGENT_AP: mean(result.agent_ap for result in per_action.values())}
        for names, excluded in ((ROLE_AP, ""), (ROLE_AP_WITHOUT_POINT, ACTION_EXCLUDED_BY_PAPERS)):
            for name, key in zip(names, SCENARIO_KEYS, strict=True):
                metrics[name] = mean(
                    role[key]
                    for action, result in per_action.items()
                    if action != excluded
                    for role in result.roles.values()
                )
        return cls(metrics, per_action)


@dataclass(frozen=True, eq=False)
class _People:
    """The P annotated people of all images, sorted by image, and after them nobody.

    The last row, which index -1 reads, belongs to no image, does no action and is labelled.

    Attributes:
        images: (P + 1,) int64, index of the image.
        boxes: (P + 1, 4) float32, xyxy, pixels.
        action_labels: (P + 1, A) int8: 1, 0 or `UNLABELLED`.
        role_boxes: (P + 1, A, R, 4) float32, xyxy, pixels.
        has_role: (P + 1, A, R) bool, the role's object is annotated.
    """

    images: np.ndarray
    boxes: np.ndarray
    action_labels: np.ndarray
    role_boxes: np.ndarray
    has_role: np.ndarray


def evaluate_vcoco(ground_truth: VcocoGroundTruth, detections: VcocoDetections) -> VcocoResults:
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
    counted = ~(people.action_labels == UNLABELLED).any(axis=1)[person]
    near = iou >= IOU_THRESHOLD

    per_action = {}
    for index, action in enumerate(ground_truth.actions):
        does = people.action_labels[:, index] == 1
        positives = int(does.sum())
        correct_agent = near & does[person]
        scores = detections.agent_scores(action)
        ranked = _rank(scores, counted)
        agent_ap = _average_precision(ranked, scores, correct_agent, person, positives)
        roles = {}
        for role, name in enumerate(action.roles):
            boxes, scores = detections.role_boxes(action, name)
            ranked = _rank(scores, counted)
            role_iou = inclusive_iou(people.role_boxes[person, index, role], boxes)
            # Without an annotated object, scenario 1 requires an empty box and scenario 2 accepts
            # any.
            correct = [
                correct_agent
                & np.where(
                    people.has_role[person, index, role], role_iou >= IOU_THRESHOLD, without_object
                )
                for without_object in (_is_empty_box(boxes), True)
            ]
            roles[name] = {
                key: _average_precision(ranked, scores, correct_role, person, positives)
                for key, correct_role in zip(SCENARIO_KEYS, correct, strict=True)
            }
        per_action[action.name] = ActionResults(positives, agent_ap, roles)
    return VcocoResults.from_actions(per_action)


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


def _rank(scores: np.ndarray, counted: np.ndarray) -> np.ndarray:
    """The counted rows with a score, by falling score."""
    rows = np.flatnonzero(counted & ~np.isnan(scores))
    return rows[np.argsort(-scores[rows], kind="stable")]


def _average_precision(
    ranked: np.ndarray,
    scores: np.ndarray,
    correct: np.ndarray,
    person: np.ndarray,
    num_positives: int,
) -> float | None:
    """AP of one action or role over the ranked rows; None without positives.

    Each person is matched once, by the correct detection with the best score; among equal scores
    by the last row.
    """
    if not num_positives:
        return None
    correct_rows = ranked[correct[ranked]]
    best = correct_rows[np.lexsort((-correct_rows, -scores[correct_rows]))]
    _, first = np.unique(person[best], return_index=True)
    tp_mask = np.zeros(len(scores), dtype=bool)
    tp_mask[best[first]] = True
    return area_under_envelope(tp_mask[ranked], num_positives)


def _assign_people(
    images: np.ndarray, boxes: np.ndarray, people: _People
) -> tuple[np.ndarray, np.ndarray]:
    """The person of each detection.

    Returns:
        (D,) int64, the person with the largest IoU, the first of equal ones, -1 if the image has
        no person; (D,) float32, that IoU.
    """
    person, best = np.full(len(images), -1, dtype=np.int64), np.zeros(len(images), np.float32)
    for rows, candidates in join(images, people.images):
        iou = inclusive_iou(people.boxes[candidates], boxes[rows])
        order = np.lexsort((-iou, rows))
        found, first = np.unique(rows[order], return_index=True)
        person[found], best[found] = candidates[order[first]], iou[order[first]]
    return person, best


def _collect_people(ground_truth: VcocoGroundTruth) -> _People:
    num_actions = len(ground_truth.actions)
    max_roles = max(len(action.roles) for action in ground_truth.actions)
    parts = []
    for index, image in enumerate(ground_truth.images):
        rows = np.flatnonzero(image.is_person)
        roles = image.role_boxes[rows]
        # Index -1, a role without object, reads the appended box of zeros.
        boxes = np.vstack([image.boxes, np.zeros((1, 4), np.float32)])
        labels = image.action_labels[rows]
        parts.append((np.full(len(rows), index), boxes[rows], labels, boxes[roles], roles >= 0))
    nobody = (
        np.full(1, len(ground_truth.images)),
        np.zeros((1, 4), np.float32),
        np.zeros((1, num_actions), np.int8),
        np.zeros((1, num_actions, max_roles, 4), np.float32),
        np.zeros((1, num_actions, max_roles), bool),
    )
    parts.append(nobody)
    return _People(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def _is_empty_box(boxes: np.ndarray) -> np.ndarray:
    """(D,) bool: boxes that stand for no object, all coordinates 0 or all NaN."""
    return (boxes == 0).all(axis=1) | np.isnan(boxes).all(axis=1)
