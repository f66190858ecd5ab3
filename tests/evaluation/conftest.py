"""Small annotations and detections in the toy vocabulary, and runs on a small toy dataset."""

import json

import numpy as np
import pytest

from evaluation.hico.average_precision import evaluate
from evaluation.predictions import write_predictions
from evaluation.report.write import write_report
from evaluation.results import METRICS, Results, results_fields, write_results
from pipeline.datasets.dataset import open_dataset
from pipeline.splits import load_split
from pipeline.toy.generate import write_toy
from pipeline.types import Detections


@pytest.fixture(scope="session")
def runs(tmp_path_factory, toy):
    """Folders of a small toy dataset and of runs on it, by name, each with `results.json`."""
    root = tmp_path_factory.mktemp("runs")
    write_toy(root / "toy", train=8, test=24, seed=1, workers=1)
    truth = open_dataset(root / "toy").load("test").annotations
    unseen = load_split(toy, "ua").unseen
    rng = np.random.default_rng(0)
    student = {"kind": "student", "training_split": "ua", "seed": 0, "protocol": "detector"}
    for name, skill, fields in (
        ("distilled", 0.8, {**student, "distillation": True}),
        ("control", 0.1, {**student, "distillation": False}),
        ("ceiling", 0.95, {**student, "distillation": False, "training_split": "full"}),
        ("teacher", 0.6, {"kind": "teacher", "extra": {"teacher_accuracy": 0.968}}),
    ):
        folder = root / name
        folder.mkdir()
        found = [_guess(item, skill, unseen, toy, rng) for item in truth]
        write_predictions(folder / "predictions.json", found, toy)
        if fields["kind"] == "student":
            _write_log(folder / "metrics.jsonl", rng)
        results = Results(
            name=name,
            dataset="toy",
            split="ua",
            setting="default",
            num_images=len(truth),
            dataset_path=root / "toy",
            predictions=folder / "predictions.json",
            metrics_log=folder / "metrics.jsonl",
            **fields,
            **results_fields(evaluate(truth, found, toy), toy, unseen),
        )
        write_results(folder / "results.json", results)
    return root


@pytest.fixture(scope="session")
def report(runs, tmp_path_factory):
    """The page of a report on all runs."""
    out = tmp_path_factory.mktemp("report") / "report.html"
    names = ("teacher", "ceiling", "control", "distilled")
    write_report([runs / name / "results.json" for name in names], out)
    return out


@pytest.fixture
def make(toy):
    """Results whose unseen and seen AP are the same for every interaction."""

    def build(unseen_ap, seen_ap=0.5, *, split="ua", **fields):
        held_back = load_split(toy, split).unseen
        per_class = {
            toy.interaction_name(index): unseen_ap if index in held_back else seen_ap
            for index in range(toy.num_interactions)
        }
        metrics = dict.fromkeys(METRICS, 0.4)
        metrics |= {"unseen": unseen_ap if held_back else None, "seen": seen_ap}
        values = {
            "name": "run",
            "kind": "student",
            "dataset": "toy",
            "vocabulary": "toy",
            "setting": "default",
            "num_images": 10,
            "training_split": split,
            "distillation": True,
        }
        return Results(
            **{**values, **fields},
            split=split,
            unseen=held_back,
            metrics=metrics,
            per_class=per_class,
        )

    return build


@pytest.fixture
def distilled(make):
    """Results of a distilled run on split `ua`."""
    return make(0.7012, 0.55)


def _guess(annotation, skill, unseen, vocabulary, rng):
    """Finds every pair; names an unseen action only where skill and luck allow."""
    hois = annotation.hois.copy()
    for row in hois:
        label = annotation.labels[row[1]]
        known = vocabulary.interaction_ids[row[2], label] not in unseen
        if not known and rng.random() > skill:
            row[2] = rng.choice(np.flatnonzero(vocabulary.valid[:, label]))
    scores = rng.uniform(0.3, 0.9, len(hois)).astype(np.float32)
    return Detections(annotation.image_id, annotation.boxes, annotation.labels, hois, scores)


def _write_log(path, rng):
    lines = [
        {"step": step, "lr": 1e-3, "loss": 5.0 / step, "losses": {"object": rng.random()}}
        for step in range(1, 80)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
