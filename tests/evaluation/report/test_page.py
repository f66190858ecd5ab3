from dataclasses import replace

import pytest

from evaluation.analysis.comparison import compare
from evaluation.report.page import build_headline
from evaluation.results import METRICS, Results
from pipeline.splits import load_split


@pytest.fixture
def run(toy):
    unseen = load_split(toy, "ua").unseen
    metrics = {**dict.fromkeys(METRICS, 0.4), "seen": 0.55, "unseen": 0.7012}
    return Results(
        name="run",
        kind="student",
        dataset="toy",
        vocabulary="toy",
        split="ua",
        unseen=unseen,
        setting="default",
        metrics=metrics,
        per_class={toy.interaction_name(index): 0.7 for index in unseen},
        num_images=10,
        training_split="ua",
        distillation=True,
    )


def scored(run, unseen, seen=0.5, **fields):
    return replace(run, metrics={**run.metrics, "unseen": unseen, "seen": seen}, **fields)


def test_with_control(toy, run):
    first, more = build_headline(compare([run, scored(run, 0.021, distillation=False)], toy))
    assert first == (
        "70.1 mAP on carry, kick and push without any label of them; 2.1 without distillation."
    )
    assert more == "On seen interactions it has 55.0, without distillation 50.0."


def test_with_everything(toy, run):
    control = scored(run, 0.021, distillation=False)
    ceiling = scored(run, 0.81, distillation=False, training_split="full")
    teacher = scored(run, 0.475, kind="teacher", distillation=None)
    _, more = build_headline(compare([teacher, ceiling, control, run], toy))
    assert "the same student reaches 81.0: distillation closes 86 % of the gap." in more
    assert "It is better than its teacher, which has 47.5." in more


def test_says_when_it_did_not_help(toy, run):
    control = scored(run, 0.75, distillation=False)
    first, _ = build_headline(compare([run, control], toy))
    assert first.endswith("without distillation: distillation did not help here.")


def test_says_that_the_control_is_missing(toy, run):
    first, more = build_headline(compare([run], toy))
    assert first == "70.1 mAP on carry, kick and push without any label of them."
    assert "a run without distillation" in more


def test_without_a_distilled_run(toy, run):
    first, _ = build_headline(compare([scored(run, 0.021, distillation=False)], toy))
    assert first == "Unseen mAP: No distillation 2.1."


def test_full_supervision(toy, run):
    full = replace(run, split="full", unseen=(), training_split="full", distillation=False)
    assert build_headline(compare([full], toy))[0] == "Full mAP: Student 40.0."
