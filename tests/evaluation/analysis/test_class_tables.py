import numpy as np
import pytest

from evaluation.analysis.class_tables import build_class_rows
from evaluation.analysis.comparison import compare
from evaluation.results import METRICS, Results
from pipeline.splits import load_split


@pytest.fixture
def comparison(toy):
    unseen = load_split(toy, "ua").unseen
    names = [toy.interaction_name(index) for index in range(toy.num_interactions)]

    def result(kind, per_class):
        metrics = dict.fromkeys(METRICS)
        return Results(
            *("run", kind, "toy", "toy", "ua", unseen, "default", metrics, per_class, 9),
            distillation=True,
            training_split="ua",
        )

    mine = {name: place / 100 for place, name in enumerate(names[:-1])}
    return compare(
        [result("student", mine), result("teacher", {names[0]: 0.9, "juggle geese": 0.5})], toy
    )


def test_unseen_first_by_falling_ap(comparison, toy):
    rows = build_class_rows(comparison)
    unseen = set(comparison.unseen)
    assert [row.unseen for row in rows] == sorted((row.unseen for row in rows), reverse=True)
    assert {row.index for row in rows if row.unseen} == unseen
    for kind in (True, False):
        values = [row.values[0] or 0 for row in rows if row.unseen == kind]
        assert values == sorted(values, reverse=True)
    assert {row.index for row in rows if row.rare} == set(toy.rare)
    assert all(row.num_training is None and row.num_test is None for row in rows)


def test_interactions_of_all_entries(comparison, toy):
    rows = {row.name: row for row in build_class_rows(comparison)}
    # Nobody has the last one; the vocabulary does not have the teacher's second.
    assert len(rows) == toy.num_interactions
    assert rows[toy.interaction_name(0)].values == (0.0, 0.9)
    assert rows[toy.interaction_name(1)].values == (0.01, None)
    assert rows["juggle geese"].values == (None, 0.5)
    assert rows["juggle geese"].index is None and not rows["juggle geese"].unseen


def test_counts(comparison, toy):
    counts = np.arange(toy.num_interactions)
    rows = {row.name: row for row in build_class_rows(comparison, counts, 2 * counts)}
    found = rows[toy.interaction_name(7)]
    assert (found.num_training, found.num_test) == (7, 14)
    assert rows["juggle geese"].num_training is None
