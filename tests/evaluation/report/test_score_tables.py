import json
from dataclasses import replace
from importlib import resources

import pytest

from evaluation.analysis.comparison import compare
from evaluation.report.page import PublishedResult, build_score_tables, find_published_results
from evaluation.results import (
    AGENT_AP,
    METRICS,
    ROLE_AP,
    Results,
    SettingScores,
    VcocoResults,
    vcoco_only_results,
)
from pipeline.vocabulary import load_vocabulary

NUMBERS = VcocoResults({AGENT_AP: 0.5, ROLE_AP[0]: 0.3, ROLE_AP[1]: None}, {})


@pytest.fixture
def alone():
    return vcoco_only_results(
        name="mine", dataset="toy", vocabulary="toy", num_images=3, vcoco=NUMBERS
    )


@pytest.fixture
def detailed(alone):
    known = SettingScores({"full": 0.9}, {}, {}, {}, {})
    metrics = {**dict.fromkeys(METRICS), "full": 0.8}
    return replace(
        alone,
        name="theirs",
        metrics=metrics,
        per_class={"ride": 0.8},
        known_object=known,
        vcoco=None,
    )


def kinds(table):
    return [(row.kind, row.title, row.cells) for row in table.rows]


def test_only_vcocos_numbers(alone, toy):
    (table,) = build_score_tables(compare([alone], toy), ())
    assert list(table.columns.values()) == ["Role AP, scenario 1", "Agent AP"]
    assert kinds(table) == [("entry", "mine", ("30.0", "50.0"))]


def test_entries_are_in_every_table_with_their_numbers(alone, detailed, toy):
    published = PublishedResult("Paper", {"full": 0.4}, "other conditions", "somewhere")
    vcoco, hico = build_score_tables(compare([alone, detailed], toy), (published,))
    assert [row.title for row in vcoco.rows] == ["mine"]
    assert [(kind, title) for kind, title, _ in kinds(hico) if kind != "group"] == [
        ("entry", "theirs"),
        ("entry", "theirs"),
        ("published", "Paper"),
    ]
    assert [cells for _, _, cells in kinds(hico)] == [("80.0",), (), ("90.0",), (), ("40.0",)]


def test_runs_below_their_mean(alone, detailed, toy):
    student = {"kind": "student", "training_split": "full"}
    runs = [replace(detailed, **student, seed=seed, known_object=None) for seed in (1, 2)]
    runs[1] = replace(runs[1], metrics={**runs[1].metrics, "full": 0.6})
    (table,) = build_score_tables(compare(runs, toy), ())
    assert kinds(table) == [
        ("entry", "Student", ("70.0",)),
        ("run", "seed 1", ("80.0",)),
        ("run", "seed 2", ("60.0",)),
    ]
    assert table.rows[0].note.endswith("mean of 2 runs")


def result(**fields):
    values = {
        "name": "run",
        "kind": "student",
        "dataset": "hico-det",
        "vocabulary": "hico-det",
        "split": "ua",
        "unseen": (),
        "setting": "default",
        "metrics": dict.fromkeys(METRICS),
        "per_class": {},
        "num_images": 9546,
    }
    return Results(**{**values, **fields})


@pytest.mark.parametrize(
    ("split", "unseen", "seen", "full"),
    [
        ("ua", 23.04, 30.46, 29.22),
        ("uc3", 23.01, 30.39, 28.91),
        ("rf-uc-138", 22.04, 31.39, 29.52),
        ("nf-uc", 26.77, 26.66, 26.69),
    ],
)
def test_the_paper(split, unseen, seen, full):
    first = find_published_results(result(), split)[0]
    assert first.name == "EoID"
    assert first.metrics == pytest.approx(
        {"unseen": unseen / 100, "seen": seen / 100, "full": full / 100}
    )
    assert "arXiv:2204.03541" in first.source
    assert first.conditions


@pytest.mark.parametrize(("split", "best"), [("rf-uc", 41.8), ("uo", 48.7), ("uv", 36.9)])
def test_later_methods(split, best):
    (found,) = find_published_results(result(), split)
    assert found.metrics == pytest.approx({"unseen": best / 100})


@pytest.mark.parametrize(
    "fields",
    [
        {"dataset": "toy", "vocabulary": "toy"},
        {"dataset": "mine"},
        {"setting": "known_object"},
    ],
)
def test_nothing_for_other_datasets_and_settings(fields):
    assert find_published_results(result(**fields), "ua") == ()
    assert find_published_results(result(), "full") == ()


def test_another_number_of_images_is_stated():
    (found,) = find_published_results(result(num_images=500), "ua")
    assert found.conditions.endswith("all 9,546 test images instead of 500")


def test_every_split_is_one_of_the_vocabulary():
    text = (resources.files("evaluation.report") / "published.json").read_text(encoding="utf-8")
    for entry in json.loads(text)["results"]:
        vocabulary = load_vocabulary(entry["dataset"])
        assert set(entry["splits"]) <= set(vocabulary.splits)
        assert set(entry["metrics"]) <= {"full", "seen", "unseen"}
        assert all(1 < value < 100 for value in entry["metrics"].values())
