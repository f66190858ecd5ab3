import json
from dataclasses import replace

import pytest

from evaluation.hico.average_precision import evaluate
from evaluation.results import (
    METRICS,
    Results,
    read_results,
    results_fields,
    vcoco_only_results,
    write_results,
    write_vcoco_results,
)
from evaluation.vcoco.average_precision import AGENT_AP, ActionResults, VcocoResults
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
    value = json.loads(path.read_text())
    assert {"dataset", "split", "setting", "protocol", "metrics", "per_class"} <= set(value)
    assert set(value["metrics"]) == set(METRICS)
    assert (value["metrics"]["unseen"], value["metrics"]["rare"]) == (1.0, None)
    assert value["per_class"] == {"kick ball": 1.0, "hold ball": 0.0}
    assert (value["predictions"], value["dataset_path"]) == ("predictions.json", "../data")


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("name", None, "name: expected a text"),
        ("protocol", "guess", "protocol: expected one of annotated, detector"),
        ("metrics", {}, "metrics.full: expected a fraction or null"),
        ("per_class", {"kick ball": None}, "per_class.kick ball: expected a number"),
        ("predictions", 3, "predictions: expected a path"),
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


VCOCO_RESULTS = VcocoResults.from_actions(
    {
        "ride": ActionResults(4, 0.5, {"instr": {"scenario_1": 0.25, "scenario_2": 0.5}}),
        "stand": ActionResults(2, 0.75, {}),
        "cut": ActionResults(0, None, {"obj": {"scenario_1": None, "scenario_2": None}}),
    }
)


@pytest.mark.parametrize("write", [write_results, write_vcoco_results])
def test_vcoco_round_trip(tmp_path, write):
    fields = {"name": "mine", "dataset": "v-coco", "vocabulary": "vcoco", "num_images": 3}
    results = vcoco_only_results(**fields, vcoco=VCOCO_RESULTS)
    write(tmp_path / "results.json", results)
    assert read_results(tmp_path / "results.json") == results
    assert results.metrics == dict.fromkeys(METRICS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"metrics": {}}, f"metrics.{AGENT_AP}: expected a fraction or null"),
        (
            {"per_action": {"ride": {"positives": 1, "agent_ap": "high", "roles": {}}}},
            "per_action.ride.agent_ap: expected a number, found high",
        ),
        (
            {"per_action": {"ride": {"positives": 1, "agent_ap": 0, "roles": {"obj": {}}}}},
            "per_action.ride.roles.obj.scenario_",
        ),
    ],
)
def test_wrong_vcoco_fields_are_named(tmp_path, change, message):
    path = tmp_path / "vcoco.json"
    fields = {"name": "mine", "dataset": "v-coco", "vocabulary": "vcoco", "num_images": 3}
    write_vcoco_results(path, vcoco_only_results(**fields, vcoco=VCOCO_RESULTS))
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(InputError) as error:
        read_results(path)
    assert str(error.value).startswith(f"{path}: {message}")
