import pytest

from evaluation.analysis.class_tables import ClassRow
from evaluation.analysis.comparison import ComparisonEntry
from evaluation.analysis.error_kinds import ERROR_TITLES, ErrorCounts
from evaluation.report.charts.bars import (
    NUM_EXTREMES,
    _describe_actions,
    action_bars,
    class_bars,
    error_bars,
    split_rows,
    teacher_student_chart,
)


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ((0, 7), [("AP", 4), ("AP (continued)", 3)]),
        ((25, 10), [("★ Unseen", 13), ("★ Unseen (continued)", 12), ("Seen", 10)]),
    ],
)
def test_rows_are_split_into_panels(rows, counts, expected):
    panels = split_rows(rows(*counts), "AP")
    assert [(title, len(members)) for title, members in panels] == expected
    assert [row for _, members in panels for row in members] == rows(*counts)


@pytest.mark.parametrize("counts", [(3, 8), (1, 0), (0, 7)])
def test_action_bars(counts, rows, entries, texts):
    chart = action_bars(rows(*counts), entries)
    found = texts(chart)
    names = [row.name for row in rows(*counts)]
    assert sorted(text for text in found if text.startswith("class")) == names
    assert found.count("100.0") == found.count("3.4") == 1
    assert ("★ Unseen" in found) == (counts[0] > 0)
    assert {"Distilled", "No distillation"} <= set(found)
    assert "var(--distilled)" in chart.panels[0] and "var(--control)" in chart.panels[0]
    assert "Distilled 100.0, No distillation 3.4" in chart.alt
    assert chart.alt.count(";") == sum(counts) - 1


def test_alt_describes_some_of_many_actions(rows, entries):
    alt = _describe_actions("AP of every action", rows(3, 80), entries)
    assert alt.startswith("AP of every action, some of 83: class 000 (unseen) Distilled")
    assert alt.count(";") < 15


def test_teacher_and_student(entries, texts):
    teacher = ComparisonEntry("teacher", "Teacher", "", (), "teacher")
    rows = [ClassRow("kick", True, (0.8, 0.5)), ClassRow("hold", False, (0.4, 0.6))]
    chart = teacher_student_chart(rows, entries[0], teacher)
    assert {"kick", "hold", "Distilled", "Teacher", "★ Unseen", "Seen"} <= set(texts(chart))
    for part in ("better in 1 of 2", "kick (+30.0)", "hold (-20.0)"):
        assert part in chart.alt


@pytest.mark.parametrize("counts", [(3, 8), (0, 1), (1, 0)])
def test_few_classes_are_all_named(counts, rows, entries, texts):
    without_ap = ClassRow("class x", False, (None, 0.5))
    chart = class_bars([*rows(*counts), without_ap], entries[0])
    found = texts(chart)
    assert [text for text in found if text.startswith("class")] == [
        row.name for row in rows(*counts)
    ]
    for group, count in zip(("unseen", "seen"), counts, strict=True):
        assert (group in found) == (count > 0)
        assert any(f"var(--{group})" in svg for svg in chart.panels) == (count > 0)


@pytest.mark.parametrize("counts", [(100, 500), (0, 600), (3, 100)])
def test_of_many_classes_the_extremes_are_named(counts, rows, entries, texts):
    chart = class_bars(rows(*counts), entries[0])
    found = texts(chart)
    named = {text for text in found if text.startswith("class")}
    assert len(named) <= 4 * NUM_EXTREMES
    for kind, first, number in (("★ All {} unseen", 0, counts[0]), ("All {} seen", *counts)):
        if number:
            assert {f"class {first:03}", f"class {first + number - 1:03}"} <= named
            start = f"{kind.format(number)}, mean"
            assert [text for text in found if text.startswith(start)]
    # An outline instead of a bar for each class.
    assert sum(map(len, chart.panels)) < 250_000


def test_alt_names_the_ends(rows, entries):
    alt = class_bars(rows(2, 3), entries[0]).alt
    assert "2 unseen interactions, mean 100.0, from class 000 (100.0) down to class 001" in alt
    assert "3 seen interactions" in alt


def test_error_bars(texts):
    counts = ErrorCounts((50, 25, 0, 3, 2, 20), 40)
    groups = {"unseen": [("Distilled", counts)], "seen": [("Distilled", ErrorCounts((0,) * 6, 7))]}
    chart = error_bars(groups)
    found = texts(chart)
    assert {*ERROR_TITLES.values(), "★ Unseen", "100 of 140 wrong", "0 of 7 wrong"} <= set(found)
    # Three percent are too narrow for a number.
    assert {"50", "25", "20"} <= set(found) and "3" not in found
    assert "Distilled, unseen: 100 errors, wrong verb 50 %, wrong object 25 %" in chart.alt
    assert "Distilled, seen: no errors" in chart.alt
