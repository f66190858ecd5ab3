import json
from dataclasses import replace

import pytest

from evaluation.hico.average_precision import evaluate
from evaluation.results import METRICS, Results, read_results, results_fields, write_results
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
        ("kind", "oracle", "kind: expected one of student, teacher, predictions"),
        ("setting", "known-object", "setting: expected one of default, known_object"),
        ("protocol", "guess", "protocol: expected one of detector, annotated"),
        ("metrics", {}, "metrics.full: expected a fraction or null"),
        ("metrics", {"full": "high"}, "metrics.full: expected a number"),
        ("per_class", {"kick ball": None}, "per_class.kick ball: expected a number"),
        ("unseen", ["kick"], "unseen: expected a list of interaction numbers"),
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
