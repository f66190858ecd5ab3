import json
from dataclasses import asdict, replace

import numpy as np
import pytest

from evaluation.hico.average_precision import evaluate
from evaluation.results import (
    METRICS,
    ROLE_AP_WITHOUT_POINT,
    ActionResults,
    Results,
    build_vcoco_results,
    read_results,
    results_fields,
    vcoco_only_results,
    write_results,
    write_vcoco_results,
)
from evaluation.vcoco.average_precision import VcocoScores
from pipeline.annotations.vcoco import VcocoAction
from pipeline.splits import load_split
from pipeline.utils.errors import InputError


@pytest.fixture
def results(tmp_path, toy, annotate, detect):
    annotations = [annotate("a.jpg", ("kick", "ball"), ("hold", "ball"))]
    scores = evaluate(annotations, [detect("a.jpg", ("kick", "ball", 0.9))], toy)
    return Results(
        name="a run",
        kind="student",
        dataset="toy",
        split="ua",
        setting="default",
        num_images=1,
        protocol="detector",
        training_split="ua",
        distillation=True,
        seed=3,
        dataset_path=tmp_path / "data",
        predictions=tmp_path / "run" / "predictions.json",
        extra={"accuracy": 0.5},
        **results_fields(scores, toy, load_split(toy, "ua").unseen),
    )


def test_round_trip(tmp_path, results):
    path = tmp_path / "run" / "results.json"
    write_results(path, results)
    found = read_results(path)
    assert found.predictions.resolve() == results.predictions
    assert found.dataset_path.resolve() == results.dataset_path
    same = {"predictions": results.predictions, "dataset_path": results.dataset_path}
    assert replace(found, **same) == results


def test_file_holds_the_contract_and_relative_paths(tmp_path, results):
    path = tmp_path / "run" / "results.json"
    write_results(path, results)
    value = json.loads(path.read_text())
    assert {"dataset", "split", "setting", "protocol", "metrics", "per_class"} <= set(value)
    assert set(value["metrics"]) == set(METRICS)
    assert value["metrics"]["unseen"] == 1.0
    assert value["metrics"]["rare"] is None
    assert value["per_class"] == {"kick ball": 1.0, "hold ball": 0.0}
    assert value["predictions"] == "predictions.json"
    assert value["dataset_path"] == "../data"


def test_interaction_names_are_distinct(toy):
    names = {toy.interaction_name(index) for index in range(toy.num_interactions)}
    assert len(names) == toy.num_interactions


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("name", None, "name: expected a text"),
        ("kind", "oracle", "kind: expected one of predictions, student, teacher"),
        ("setting", "known-object", "setting: expected one of default, known_object"),
        ("protocol", "guess", "protocol: expected one of annotated, detector"),
        ("metrics", {}, "metrics.full: expected a fraction or null"),
        ("metrics", {"full": "high"}, "metrics.full: expected a number"),
        ("per_class", {"kick ball": None}, "per_class.kick ball: expected a number"),
        ("unseen", ["kick"], "unseen[0]: expected a whole number"),
        ("seed", "one", "seed: expected a whole number"),
        ("num_images", None, "num_images: expected a whole number"),
    ],
)
def test_wrong_fields_are_named(tmp_path, results, field, value, expected):
    path = tmp_path / "results.json"
    write_results(path, results)
    path.write_text(json.dumps({**json.loads(path.read_text()), field: value}))
    with pytest.raises(InputError) as error:
        read_results(path)
    assert str(error.value).startswith(f"{path}: {expected}")


@pytest.mark.parametrize("text", ["", "[]", '{"name": '])
def test_wrong_files(tmp_path, text):
    path = tmp_path / "results.json"
    path.write_text(text)
    with pytest.raises(InputError, match=r"results\.json"):
        read_results(path)


@pytest.fixture
def vcoco_scores():
    """An action with a role, one without roles, and one without positives."""
    roles = np.array([[0.25], [np.nan], [np.nan]])
    return VcocoScores(
        (VcocoAction("ride", ("instr",)), VcocoAction("stand", ()), VcocoAction("cut", ("obj",))),
        np.array([0.5, 0.75, np.nan]),
        {1: roles, 2: 2 * roles},
        np.array([4, 2, 0]),
    )


def test_actions_without_positives_are_null(vcoco_scores):
    results = build_vcoco_results(vcoco_scores)
    assert results.per_action == {
        "ride": ActionResults(4, 0.5, {"instr": {"scenario_1": 0.25, "scenario_2": 0.5}}),
        "stand": ActionResults(2, 0.75, {}),
        "cut": ActionResults(0, None, {"obj": {"scenario_1": None, "scenario_2": None}}),
    }
    assert list(results.metrics.values()) == [0.625, 0.25, 0.5, 0.25, 0.5]


@pytest.mark.parametrize("write", [write_results, write_vcoco_results])
def test_vcoco_round_trip(vcoco_scores, tmp_path, write):
    fields = {"name": "mine", "dataset": "v-coco", "vocabulary": "vcoco", "num_images": 3}
    results = vcoco_only_results(**fields, vcoco=build_vcoco_results(vcoco_scores))
    write(tmp_path / "results.json", results)
    assert read_results(tmp_path / "results.json") == results
    assert results.metrics == dict.fromkeys(METRICS)


def test_vcoco_files_of_earlier_versions(vcoco_scores, tmp_path):
    value = {
        "name": "old",
        "dataset": "v-coco",
        "num_images": 3,
        **asdict(build_vcoco_results(vcoco_scores)),
    }
    for name in ROLE_AP_WITHOUT_POINT:
        del value["metrics"][name]
    (tmp_path / "old.json").write_text(json.dumps(value))
    results = read_results(tmp_path / "old.json")
    assert (results.kind, results.vocabulary, results.split) == ("predictions", "vcoco", "full")
    assert results.vcoco.metrics[ROLE_AP_WITHOUT_POINT[0]] is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"metrics": {}}, "metrics.average_agent_ap: expected a fraction or null"),
        ({"per_action": []}, "per_action: expected an object"),
        ({"per_action": {"ride": {}}}, "per_action.ride.positives: expected a whole number"),
        (
            {"per_action": {"ride": {"positives": 1, "agent_ap": "high", "roles": {}}}},
            "per_action.ride.agent_ap: expected a number, found high",
        ),
        (
            {"per_action": {"ride": {"positives": 1, "agent_ap": 0, "roles": {"obj": {}}}}},
            "per_action.ride.roles.obj.scenario_1: expected a fraction or null",
        ),
    ],
)
@pytest.mark.parametrize("prefix", ["", "vcoco."])
def test_wrong_vcoco_fields_are_named(tmp_path, results, vcoco_scores, change, message, prefix):
    path = tmp_path / "results.json"
    write_results(path, results)
    value = {**asdict(build_vcoco_results(vcoco_scores)), **change}
    path.write_text(
        json.dumps(json.loads(path.read_text()) | ({"vcoco": value} if prefix else value))
    )
    with pytest.raises(InputError) as error:
        read_results(path)
    assert str(error.value).startswith(f"{path}: {prefix}{message}")
