import json
from dataclasses import replace

import numpy as np
import pytest

from evaluation.hico.matching import inclusive_iou
from evaluation.vcoco.average_precision import (
    AGENT_AP,
    ROLE_AP,
    ROLE_AP_WITHOUT_POINT,
    ActionResults,
    VcocoResults,
    area_under_envelope,
    evaluate_vcoco,
)
from evaluation.vcoco.detections import VcocoDetections, read_detections, score_fields
from pipeline.annotations.base import ParseContext
from pipeline.annotations.vcoco import find_vcoco_files, read_vcoco
from pipeline.vocabulary import load_vocabulary

PERSON, BALL = 1, 37
NONE = [0.0, 0.0, 0.0, 0.0]
IMAGE = {
    "boxes": [
        (PERSON, [0, 0, 40, 80]),
        (PERSON, [60, 0, 40, 80]),
        (PERSON, [120, 0, 40, 80]),
        (BALL, [10, 90, 30, 30]),
    ],
    "does": {(0, "kick"): (3,), (1, "kick"): (None,), (0, "stand"): ()},
    "unlabelled": {2},
}
FIRST = [0, 0, 39, 79]


@pytest.fixture
def make_ground_truth(tmp_path, write_vcoco):
    def read(images):
        files = find_vcoco_files(write_vcoco(tmp_path, images))
        return read_vcoco(files, ParseContext(files.actions, load_vocabulary("vcoco")))

    return read


def found(truth, *rows):
    """`found(truth, (image id, person box, {"kick_agent": 0.9, "kick_obj": [...]}), ...)`; what a
    row leaves out is NaN."""
    columns = {
        name: np.full((len(rows), *field.shape), np.nan, dtype=np.float32)
        for name, field in score_fields(truth.actions).items()
    }
    for index, (_, _, values) in enumerate(rows):
        for name, value in values.items():
            columns[name][index] = value
    return VcocoDetections(
        np.array([row[0] for row in rows], dtype=np.int64),
        np.array([row[1] for row in rows], dtype=np.float32).reshape(-1, 4),
        columns,
    )


def ap(truth, detections, action="kick"):
    """Agent AP and role AP of both scenarios of an action; agent AP alone of one without roles."""
    result = evaluate_vcoco(truth, detections).per_action[action]
    return [result.agent_ap, *(value for role in result.roles.values() for value in role.values())]


@pytest.mark.parametrize(
    ("hits", "positives", "expected"),
    [([], 2, 0), ([0, 0], 1, 0), ([1, 1], 2, 1), ([0, 1], 1, 0.5), ([1, 0, 1], 4, 1 / 4 + 1 / 6)],
)
def test_area_under_envelope(hits, positives, expected):
    assert area_under_envelope(np.array(hits, dtype=bool), positives) == pytest.approx(expected)


def test_no_detections(make_ground_truth):
    truth = make_ground_truth([IMAGE])
    scores = evaluate_vcoco(truth, found(truth))
    assert scores.per_action["kick"].roles == {"obj": {"scenario_1": 0, "scenario_2": 0}}
    assert scores.per_action["stand"] == ActionResults(1, 0, {})
    # There are no positives of reading.
    nothing = {"scenario_1": None, "scenario_2": None}
    assert scores.per_action["read"] == ActionResults(0, None, {"obj": nothing})
    assert scores.metrics == dict.fromkeys((AGENT_AP, *ROLE_AP, *ROLE_AP_WITHOUT_POINT), 0)


def test_averages_leave_out_actions_without_positives_and_point():
    def roles(first, second):
        return {"obj": {"scenario_1": first, "scenario_2": second}}

    actions = {
        "ride": ActionResults(4, 0.5, roles(0.25, 0.5)),
        "stand": ActionResults(2, 0.75, {}),
        "cut": ActionResults(0, None, roles(None, None)),
        "point": ActionResults(1, 0.25, roles(0.75, 1.0)),
    }
    metrics = VcocoResults.from_actions(actions).metrics
    assert list(metrics) == [AGENT_AP, *ROLE_AP, *ROLE_AP_WITHOUT_POINT]
    assert list(metrics.values()) == [0.5, 0.5, 0.75, 0.25, 0.5]


def test_images_without_people_and_detections_there(make_ground_truth):
    """The benchmark fails on an image without people; here a detection on it is wrong."""
    small = {"boxes": [(PERSON, [0, 0, 1, 1])]}
    truth = make_ground_truth([IMAGE, small])
    right = (10, FIRST, {"stand_agent": 0.5})
    wrong = (20, FIRST, {"stand_agent": 0.9})
    assert len(truth.images[1].boxes) == 0
    assert ap(truth, found(truth, wrong, right), "stand") == [0.5]
    scores = evaluate_vcoco(replace(truth, images=truth.images[1:]), found(truth, wrong, right))
    assert scores.per_action["stand"] == ActionResults(0, None, {})
    assert set(scores.metrics.values()) == {None}


def test_detections_on_other_images_do_not_count(make_ground_truth):
    truth = make_ground_truth([IMAGE])
    rows = [(image, FIRST, {"stand_agent": score}) for image, score in ((10, 0.5), (77, 0.9))]
    assert ap(truth, found(truth, *rows), "stand") == [1]
    assert ap(truth, found(truth, rows[1]), "stand") == [0]


def plain_loop(truth, detections, action, role, scenario):
    """The benchmark as a plain loop over images and detections."""
    index = [item.name for item in truth.actions].index(action)
    outcomes, positives = [], 0
    for image in truth.images:
        people = np.flatnonzero(image.is_person)
        positives += int((image.action_labels[people, index] == 1).sum())
        taken = set()
        mine = np.flatnonzero(detections.image_ids == image.id)
        if role is None:
            scores = detections.columns[f"{action}_agent"][mine]
        else:
            scores = detections.columns[f"{action}_{truth.actions[index].roles[role]}"][mine][:, 4]
        for place in np.argsort(scores, kind="stable")[::-1]:
            row = mine[place]
            if np.isnan(scores[place]):
                continue
            box = detections.person_boxes[row]
            over = inclusive_iou(image.boxes[people], np.tile(box, (len(people), 1)))
            person = people[over.argmax()]
            if image.action_labels[person, index] < 0:
                continue
            right = image.action_labels[person, index] == 1 and over.max() >= 0.5
            if role is not None:
                column = detections.columns[f"{action}_{truth.actions[index].roles[role]}"]
                guess, target = column[row, :4], image.role_boxes[person, index, role]
                if target >= 0:
                    right &= bool(inclusive_iou(image.boxes[[target]], guess[None])[0] >= 0.5)
                elif scenario == 1:
                    right &= bool((guess == 0).all() or np.isnan(guess).all())
            outcomes.append((scores[place], bool(right) and person not in taken))
            if right:
                taken.add(person)
    order = np.argsort([score for score, _ in outcomes], kind="stable")[::-1]
    hits = np.array([hit for _, hit in outcomes], dtype=bool)[order]
    recall = np.concatenate([[0], np.cumsum(hits) / positives, [1]])
    precision = np.concatenate([[0], np.cumsum(hits) / np.arange(1, len(hits) + 1), [0]])
    envelope = [precision[place:].max() for place in range(len(precision))]
    return sum((recall[i] - recall[i - 1]) * envelope[i] for i in range(1, len(recall)))


@pytest.mark.parametrize("seed", range(2))
def test_agrees_with_a_plain_loop(make_ground_truth, seed):
    """Crowded images, jittered boxes, equal scores, missing roles, unlabelled people."""
    rng = np.random.default_rng(seed)
    images = []
    for _ in range(15):
        people = [(PERSON, [*rng.uniform(0, 60, 2), *rng.uniform(30, 60, 2)]) for _ in range(4)]
        balls = [(BALL, [*rng.uniform(0, 100, 2), 25, 25]) for _ in range(2)]
        does = {
            (row, "kick"): (int(rng.integers(4, 6)) if rng.random() < 0.7 else None,)
            for row in range(4)
            if rng.random() < 0.6
        }
        images.append({"boxes": people + balls, "does": does, "unlabelled": {3}})
    truth = make_ground_truth(images)
    rows = []
    for image in truth.images:
        for _ in range(12):
            person = image.boxes[rng.integers(0, 4)] + rng.normal(0, 6, 4)
            ball = image.boxes[rng.integers(4, 6)] + rng.normal(0, 3, 4)
            guess = (ball, ball, NONE, [np.nan] * 4)[rng.integers(0, 4)]
            score = np.nan if rng.random() < 0.1 else rng.integers(0, 6) / 6
            values = {"kick_obj": [*guess, score], "kick_agent": rng.integers(0, 6) / 6}
            rows.append((image.id, person, values))
    detections = found(truth, *rows)
    expected = [
        plain_loop(truth, detections, "kick", *which) for which in ((None, 1), (0, 1), (0, 2))
    ]
    assert ap(truth, detections) == pytest.approx(expected, abs=1e-12)
    assert 0 < expected[1] < expected[2] < 1
    # The order of the images does not matter.
    order = np.argsort(-detections.image_ids, kind="stable")
    assert ap(truth, detections.keep(order)) == pytest.approx(expected, abs=1e-12)


@pytest.mark.golden("vcoco_metrics_*.json")
def test_golden_vcoco(golden_file):
    folder, name = golden_file.parent, golden_file.stem.removeprefix("vcoco_metrics_")
    expected = json.loads(golden_file.read_text())
    files = find_vcoco_files(
        folder / f"vcoco_annotations_{name}.json",
        folder / f"vcoco_instances_{name}.json",
        folder / f"vcoco_{name}.ids",
    )
    truth = read_vcoco(files, ParseContext(files.actions, load_vocabulary("vcoco")))
    detections = read_detections(folder / f"vcoco_detections_{name}.json", truth.actions)
    scores = evaluate_vcoco(truth, detections)
    results = [scores.per_action[action.name] for action in truth.actions]
    agents = np.array([result.agent_ap for result in results], dtype=float)
    wanted = np.array(expected.pop("agent_ap"), dtype=float)
    assert agents == pytest.approx(wanted, abs=1e-5, nan_ok=True)
    averages = {AGENT_AP: expected.pop("average_agent_ap")}
    for scenario, name, papers in zip((1, 2), ROLE_AP, ROLE_AP_WITHOUT_POINT, strict=True):
        part = expected.pop(f"scenario_{scenario}")
        wanted = np.array(part.pop("role_ap"), dtype=float)
        roles = np.full(wanted.shape, np.nan)
        for row, result in enumerate(results):
            values = [role[f"scenario_{scenario}"] for role in result.roles.values()]
            roles[row, : len(values)] = values
        assert roles == pytest.approx(wanted, abs=1e-5, nan_ok=True)
        averages[name] = part.pop("average_role_ap")
        counted = [action.name != "point" for action in truth.actions]
        averages[papers] = np.nanmean(wanted[counted])
        assert not part
    assert scores.metrics == pytest.approx(averages, abs=1e-5)
    assert not expected
