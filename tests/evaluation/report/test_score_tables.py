from dataclasses import replace

import pytest

from evaluation.analysis.comparison import compare
from evaluation.report.page import Published, score_tables
from evaluation.results import AGENT_AP, METRICS, ROLE_AP, SettingScores, VcocoResults, vcoco_alone

NUMBERS = VcocoResults({AGENT_AP: 0.5, ROLE_AP[0]: 0.3, ROLE_AP[1]: None}, {})


@pytest.fixture
def alone():
    return vcoco_alone(
        name="mine", dataset="world", vocabulary="world", num_images=3, vcoco=NUMBERS
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


def test_only_vcocos_numbers(alone, world):
    (table,) = score_tables(compare([alone], world), ())
    assert list(table.columns.values()) == ["Role AP, scenario 1", "Agent AP"]
    assert kinds(table) == [("contestant", "mine", ("30.0", "50.0"))]


def test_everybody_stands_where_there_are_numbers(alone, detailed, world):
    published = Published("Paper", {"full": 0.4}, "other conditions", "somewhere")
    vcoco, hico = score_tables(compare([alone, detailed], world), (published,))
    assert [row.title for row in vcoco.rows] == ["mine"]
    assert [(kind, title) for kind, title, _ in kinds(hico) if kind != "group"] == [
        ("contestant", "theirs"),
        ("contestant", "theirs"),
        ("published", "Paper"),
    ]
    assert [cells for _, _, cells in kinds(hico)] == [("80.0",), (), ("90.0",), (), ("40.0",)]


def test_runs_below_their_mean(alone, detailed, world):
    student = {"kind": "student", "training_split": "full"}
    runs = [replace(detailed, **student, seed=seed, known_object=None) for seed in (1, 2)]
    runs[1] = replace(runs[1], metrics={**runs[1].metrics, "full": 0.6})
    (table,) = score_tables(compare(runs, world), ())
    assert kinds(table) == [
        ("contestant", "Student", ("70.0",)),
        ("one", "seed 1", ("80.0",)),
        ("one", "seed 2", ("60.0",)),
    ]
    assert table.rows[0].note.endswith("mean of 2 runs")
