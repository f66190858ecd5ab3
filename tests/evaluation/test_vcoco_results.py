import json
from dataclasses import asdict

import numpy as np
import pytest

from evaluation.results import (
    METRICS,
    ROLE_AP_WITHOUT_POINT,
    ActionResults,
    build_vcoco_results,
    parse_vcoco_results,
    read_results,
    vcoco_only_results,
    write_results,
    write_vcoco_results,
)
from evaluation.vcoco.average_precision import VcocoScores
from pipeline.annotations.vcoco import VcocoAction
from pipeline.utils.errors import InputError


@pytest.fixture
def scores():
    """An action with a role, one without, and one that nobody does."""
    roles = np.array([[0.25], [np.nan], [np.nan]])
    return VcocoScores(
        (VcocoAction("ride", ("instr",)), VcocoAction("stand", ()), VcocoAction("cut", ("obj",))),
        np.array([0.5, 0.75, np.nan]),
        {1: roles, 2: 2 * roles},
        np.array([4, 2, 0]),
    )


def test_what_nobody_does_is_null(scores):
    results = build_vcoco_results(scores)
    assert results.per_action == {
        "ride": ActionResults(4, 0.5, {"instr": {"scenario_1": 0.25, "scenario_2": 0.5}}),
        "stand": ActionResults(2, 0.75, {}),
        "cut": ActionResults(0, None, {"obj": {"scenario_1": None, "scenario_2": None}}),
    }
    assert list(results.metrics.values()) == [0.625, 0.25, 0.5, 0.25, 0.5]


@pytest.mark.parametrize("write", [write_results, write_vcoco_results])
def test_round_trip(scores, tmp_path, write):
    fields = {"name": "mine", "dataset": "v-coco", "vocabulary": "vcoco", "num_images": 3}
    results = vcoco_only_results(**fields, vcoco=build_vcoco_results(scores))
    write(tmp_path / "results.json", results)
    assert read_results(tmp_path / "results.json") == results
    assert results.metrics == dict.fromkeys(METRICS)


def test_files_without_maker_and_vocabulary(scores, tmp_path):
    value = {
        "name": "old",
        "dataset": "v-coco",
        "num_images": 3,
        **asdict(build_vcoco_results(scores)),
    }
    for name in ROLE_AP_WITHOUT_POINT:
        del value["metrics"][name]
    (tmp_path / "old.json").write_text(json.dumps(value))
    results = read_results(tmp_path / "old.json")
    assert (results.kind, results.vocabulary, results.split) == ("predictions", "vcoco", "full")
    assert results.vcoco.metrics[ROLE_AP_WITHOUT_POINT[0]] is None


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"metrics": None}, "metrics: expected numbers by name"),
        ({"metrics": {}}, "metrics.average_agent_ap: expected a fraction or null"),
        ({"per_action": []}, "per_action: expected numbers by name"),
        ({"per_action": {"ride": 1}}, "per_action.ride: expected numbers by name"),
        ({"per_action": {"ride": {}}}, "per_action.ride.positives: expected a number of people"),
        (
            {"per_action": {"ride": {"positives": 1, "agent_ap": "high"}}},
            "per_action.ride.roles: expected numbers by name",
        ),
        (
            {"per_action": {"ride": {"positives": 1, "agent_ap": "high", "roles": {}}}},
            "per_action.ride.agent_ap: expected a fraction or null, found high",
        ),
        (
            {"per_action": {"ride": {"positives": 1, "agent_ap": 0, "roles": {"obj": {}}}}},
            "per_action.ride.roles.obj.scenario_1: expected a fraction or null",
        ),
    ],
)
def test_wrong_fields_are_named(scores, change, says):
    with pytest.raises(InputError) as error:
        parse_vcoco_results("file", {**asdict(build_vcoco_results(scores)), **change})
    assert str(error.value).startswith(f"file: {says}")
