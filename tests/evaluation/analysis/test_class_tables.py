import numpy as np

from evaluation.analysis.class_tables import build_action_rows, build_class_rows
from evaluation.analysis.comparison import compare


def test_class_rows(toy, make):
    mine, teachers = make(0.7, 0.4), make(0.1, kind="teacher")
    names = list(mine.per_class)
    for place, name in enumerate(names):
        mine.per_class[name] = place / 100
    del mine.per_class[names[-1]], teachers.per_class[names[1]]
    teachers.per_class["juggle geese"] = 0.5
    counts = np.arange(toy.num_interactions)
    comparison = compare([mine, teachers], toy)
    rows = build_class_rows(comparison, counts, 2 * counts)
    # Unseen ones first, each kind by falling AP of the first entry.
    order = [(not row.unseen, -(row.values[0] or 0)) for row in rows]
    assert order == sorted(order)
    found = {row.name: row for row in rows}
    # The vocabulary does not have the teacher's last one.
    assert len(rows) == len(found) == toy.num_interactions + 1
    assert found[names[1]].values == (0.01, None)
    assert found[names[-1]].values[0] is None
    geese, seventh = found["juggle geese"], found[names[7]]
    assert (geese.values, geese.unseen, geese.num_training) == ((None, 0.5), False, None)
    assert (seventh.num_training, seventh.num_test) == (7, 14)
    for group, members in (("unseen", comparison.unseen), ("rare", toy.rare)):
        assert {name for name in names if getattr(found[name], group)} == {
            names[index] for index in members
        }
    assert {row.num_test for row in build_class_rows(comparison)} == {None}


def test_action_rows_of_unseen_verbs(toy, make):
    comparison = compare([make(0.7, 0.4), make(0.1, 0.5, distillation=False)], toy)
    rows, left_out = build_action_rows(comparison, 40)
    assert {row.name for row in rows if row.unseen} == {"carry", "kick", "push"}
    assert len(rows) == toy.num_verbs and left_out == ""
    assert np.allclose([rows[0].values, rows[-1].values], [(0.7, 0.1), (0.4, 0.5)])


def test_action_rows_of_unseen_interactions(toy, make):
    rows, _ = build_action_rows(compare([make(0.7, 0.4, split="uc")], toy), 40)
    assert sum(row.unseen for row in rows) == 10
    # The verbs' bars leave the unseen interactions out.
    assert {round(row.values[0], 9) for row in rows if not row.unseen} == {0.4}


def test_action_rows_are_limited_unseen_first(toy, make):
    rows, left_out = build_action_rows(compare([make(0.7)], toy), 4)
    assert [row.unseen for row in rows] == [True, True, True, False]
    assert left_out == f"The {toy.num_verbs - 4} actions with fewest objects are left out."
