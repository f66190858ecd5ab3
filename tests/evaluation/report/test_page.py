import json
from dataclasses import replace
from importlib import resources

import pytest

from evaluation.analysis.comparison import compare
from evaluation.report.page import build_headline, build_score_tables, find_published_results
from evaluation.results import METRICS, SettingScores, vcoco_only_results
from evaluation.vcoco.average_precision import AGENT_AP, ROLE_AP, VcocoResults
from pipeline.vocabulary import load_vocabulary


def headline(toy, *results):
    return build_headline(compare(results, toy))


def test_headline_with_control(toy, distilled, make):
    first, more = headline(toy, distilled, make(0.021, distillation=False))
    result = "70.1 mAP on carry, kick and push without any label of them"
    assert first == f"{result}; 2.1 without distillation."
    assert more == "On seen interactions it has 55.0, without distillation 50.0."
    first, _ = headline(toy, distilled, make(0.75, distillation=False))
    assert first.endswith("without distillation: distillation did not help here.")
    first, more = headline(toy, distilled)
    assert first == f"{result}." and "a run without distillation" in more


@pytest.mark.parametrize(("name", "split"), [("swig-hoi", "swig"), ("hico-det", "uo")])
def test_headline_of_single_unseen_interactions(name, split, distilled):
    """These splits have a few verbs that are unseen as a whole among their unseen interactions."""
    vocabulary = load_vocabulary(name)
    unseen = tuple(vocabulary.splits[split]["unseen"])
    result = replace(distilled, vocabulary=name, split=split, training_split=split, unseen=unseen)
    comparison = compare([result], vocabulary)
    assert comparison.unseen_verbs
    first, _ = build_headline(comparison)
    expected = f"{len(unseen):,} unseen interactions"
    assert first == f"70.1 mAP on {expected} without any label of them."


def test_headline_with_everything(toy, distilled, make):
    control = make(0.021, distillation=False)
    all_labels = make(0.81, distillation=False, training_split="full")
    teacher = make(0.475, kind="teacher", distillation=None)
    _, more = headline(toy, teacher, all_labels, control, distilled)
    assert "the same student reaches 81.0: distillation closes 86 % of the gap." in more
    assert "It is better than its teacher, which has 47.5." in more


def test_headline_without_a_distilled_run(toy, distilled, make):
    first, _ = headline(toy, make(0.021, distillation=False))
    assert first == "Unseen mAP: No distillation 2.1."
    full = replace(distilled, split="full", unseen=(), training_split="full", distillation=False)
    assert headline(toy, full)[0] == "Full mAP: Student 40.0."


def test_headline_without_unseen_labels(toy, distilled):
    """A small test part need not have labels of unseen interactions, or any."""
    seen_only = replace(distilled, metrics={**distilled.metrics, "unseen": None})
    first, more = headline(toy, seen_only)
    assert first == "Full mAP: Distilled 40.0." and "unseen" in more
    unlabelled = replace(distilled, metrics=dict.fromkeys(METRICS), per_class={})
    first, more = headline(toy, unlabelled)
    assert "no test image has labels" in first and not more


@pytest.fixture
def vcoco():
    """Results with V-COCO's scores only."""
    scores = VcocoResults({AGENT_AP: 0.5, ROLE_AP[0]: 0.3, ROLE_AP[1]: None}, {})
    fields = {"name": "mine", "dataset": "toy", "vocabulary": "toy", "num_images": 3}
    return vcoco_only_results(**fields, vcoco=scores)


@pytest.fixture
def hico(vcoco):
    """Results with HICO-DET's scores only."""
    return replace(
        vcoco,
        name="theirs",
        metrics={**dict.fromkeys(METRICS), "full": 0.8},
        per_class={"ride": 0.8},
        known_object=SettingScores({"full": 0.9}, {}, {}, {}, {}),
        vcoco=None,
    )


def rows(table):
    return [(row.kind, row.title, row.values) for row in table.rows if row.kind != "group"]


def test_scores_of_vcoco(toy, vcoco):
    (table,) = build_score_tables(compare([vcoco], toy), ())
    assert list(table.columns.values()) == ["Role AP, scenario 1", "Agent AP"]
    assert rows(table) == [("entry", "mine", [0.3, 0.5])]
    first, more = headline(toy, vcoco)
    assert first == "Role AP 30.0 in scenario 1 and - in scenario 2: mine."
    assert more == "Agent AP 50.0."


def test_entries_are_in_every_table_with_their_numbers(toy, vcoco, hico):
    published = {"name": "P", "metrics": {"full": 40}, "source": "a", "conditions": "b"}
    first, second = build_score_tables(compare([vcoco, hico], toy), (published,))
    assert [row.title for row in first.rows] == ["mine"]
    assert rows(second) == [
        ("entry", "theirs", [0.8]),
        ("entry", "theirs", [0.9]),
        ("published", "P", [0.4]),
    ]
    assert [row.kind for row in second.rows].count("group") == 2


def test_runs_below_their_mean(toy, hico):
    student = {"kind": "student", "training_split": "full", "known_object": None}
    runs = [
        replace(hico, **student, seed=seed, metrics={**hico.metrics, "full": full})
        for seed, full in ((1, 0.8), (2, 0.6))
    ]
    (table,) = build_score_tables(compare(runs, toy), ())
    assert rows(table) == [
        ("entry", "Student", [0.7]),
        ("run", "seed 1", [0.8]),
        ("run", "seed 2", [0.6]),
    ]
    assert table.rows[0].note.endswith("mean of 2 runs")


@pytest.fixture
def of_hico_det(distilled):
    return replace(distilled, dataset="hico-det", vocabulary="hico-det", num_images=9546)


@pytest.mark.parametrize(
    ("split", "name", "unseen", "seen", "full"),
    [
        ("ua", "EoID", 23.04, 30.46, 29.22),
        ("uo", "Best later method", 48.7, None, None),
    ],
)
def test_published_results(of_hico_det, split, name, unseen, seen, full):
    first, *_ = find_published_results(of_hico_det, split)
    numbers = {"unseen": unseen, "seen": seen, "full": full}
    assert first["metrics"] == {key: value for key, value in numbers.items() if value is not None}
    assert first["name"] == name and first["conditions"]
    assert ("arXiv:2204.03541" in first["source"]) == (name == "EoID")


def test_nothing_published_for_other_datasets_and_settings(distilled, of_hico_det):
    for result in (
        distilled,
        replace(of_hico_det, dataset="mine"),
        replace(of_hico_det, setting="known_object"),
    ):
        assert find_published_results(result, "ua") == []
    assert find_published_results(of_hico_det, "full") == []


def test_another_number_of_images_is_stated(of_hico_det):
    (found,) = find_published_results(replace(of_hico_det, num_images=500), "ua")
    assert found["conditions"].endswith("all 9,546 test images instead of 500")


def test_published_splits_are_those_of_the_vocabulary():
    text = (resources.files("evaluation.report") / "published.json").read_text(encoding="utf-8")
    for entry in json.loads(text)["results"]:
        assert set(entry["splits"]) <= set(load_vocabulary(entry["dataset"]).splits)
        assert set(entry["metrics"]) <= {"full", "seen", "unseen"}
        assert all(1 < value < 100 for value in entry["metrics"].values())
