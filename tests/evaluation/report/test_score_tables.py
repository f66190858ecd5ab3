from dataclasses import replace

import pytest

from evaluation.analysis.comparison import compare
from evaluation.report.score_tables import PublishedResult, build_score_tables
from evaluation.results import (
    AGENT_AP,
    METRICS,
    ROLE_AP,
    SettingScores,
    VcocoResults,
    vcoco_only_results,
)

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


def test_everybody_stands_where_there_are_numbers(alone, detailed, toy):
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
