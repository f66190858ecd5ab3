import pytest

from evaluation.analysis.class_tables import ActionRow, ClassRow
from evaluation.analysis.comparison import ComparisonEntry
from evaluation.analysis.error_kinds import ERROR_TITLES, ErrorCounts
from evaluation.report.charts.bars import (
    NUM_EXTREMES,
    ErrorRow,
    action_bars,
    class_bars,
    error_bars,
    teacher_student_chart,
)


def actions(num_unseen, num_seen):
    return [
        ActionRow(f"action {index}", index < num_unseen, (0.712, None if index else 0.034))
        for index in range(num_unseen + num_seen)
    ]


@pytest.mark.parametrize("counts", [(3, 8), (0, 1), (1, 0), (25, 10), (2, 3)])
def test_action_bars(counts, entries, texts):
    chart = action_bars(actions(*counts), entries)
    for found in texts(chart):
        assert sorted(text for text in found if text.startswith("action")) == sorted(
            action.name for action in actions(*counts)
        )
        assert found.count("71.2") == sum(counts)
        assert found.count("3.4") == 1
        assert ("★ Unseen" in found) == (counts[0] > 0)
        assert {"Distilled", "No distillation"} <= set(found)
    assert "var(--distilled)" in chart.wide
    assert "var(--control)" in chart.wide
    assert "action 0" in chart.alt
    assert "Distilled 71.2, No distillation 3.4" in chart.alt


def test_alt_describes_some_of_many_actions(entries):
    assert action_bars(actions(3, 8), entries).alt.count(";") == 10
    alt = action_bars(actions(3, 80), entries).alt
    assert alt.startswith("AP of every action, some of 83: action 0 (unseen) Distilled")
    assert alt.count(";") < 15


def test_teacher_and_student(entries, texts):
    teacher = ComparisonEntry("teacher", "Teacher", "", ())
    rows = [
        ActionRow("kick", True, (0.8, 0.5)),
        ActionRow("hold", False, (0.4, 0.6)),
    ]
    chart = teacher_student_chart(rows, entries[0], teacher)
    for found in texts(chart):
        assert {"kick", "hold", "Distilled", "Teacher", "★ Unseen", "Seen"} <= set(found)
    assert "better in 1 of 2" in chart.alt
    assert "kick (+30.0)" in chart.alt
    assert "hold (-20.0)" in chart.alt


def class_rows(num_unseen, num_seen, training=lambda index: 3 * index):
    return [
        ClassRow(
            *(f"class {index:03}", index, index < num_unseen, False, training(index), 5),
            (1 - index / 1000, 0.25),
        )
        for index in range(num_unseen + num_seen)
    ]


@pytest.mark.parametrize("counts", [(3, 8), (0, 1), (1, 0), (20, 5), (0, 7)])
def test_few_classes_are_all_named(counts, entries, texts):
    chart = class_bars(class_rows(*counts), entries[0])
    for found in texts(chart):
        named = [text for text in found if "class" in text]
        assert len(named) == sum(counts)
        assert sum(text.startswith("★ class") for text in named) == counts[0]
        assert ("unseen" in found) == (counts[0] > 0)
    assert ("var(--unseen)" in chart.wide) == (counts[0] > 0)
    assert ("var(--seen)" in chart.wide) == (counts[1] > 0)


@pytest.mark.parametrize("counts", [(100, 500), (0, 600), (61, 0), (3, 100)])
def test_of_many_classes_the_extremes_are_named(counts, entries, texts):
    chart = class_bars(class_rows(*counts), entries[0])
    titles = ("All {} {} interactions, mean", "{} {}, mean")
    for found, kinds in zip(texts(chart), titles, strict=True):
        named = {text.removeprefix("★ ") for text in found if "class" in text}
        assert len(named) <= 4 * NUM_EXTREMES
        for first, number in ((0, counts[0]), (counts[0], counts[1])):
            if number:
                assert {f"class {first:03}", f"class {first + number - 1:03}"} <= named
                kind = "unseen" if first == 0 and counts[0] else "seen"
                start = ("★ " if kind == "unseen" else "") + kinds.format(number, kind)
                assert [text for text in found if text.startswith(start)]
    # An outline instead of a bar for each class.
    assert len(chart.wide) < 200_000


def test_alt_names_the_ends(entries):
    alt = class_bars(class_rows(2, 3), entries[0]).alt
    assert "2 unseen interactions, mean 100.0, from class 000 (100.0) down to class 001" in alt
    assert "3 seen interactions" in alt


def test_classes_without_ap_are_left_out(entries, texts):
    some = [*class_rows(1, 2), ClassRow("class x", None, False, False, None, None, (None, 0.5))]
    assert not any("class x" in text for text in texts(class_bars(some, entries[0]))[0])


COUNTS = ErrorCounts((50, 25, 0, 3, 2, 20), 40)


def test_error_bars(texts):
    rows = [
        ErrorRow("Distilled", "unseen", COUNTS),
        ErrorRow("Distilled", "seen", ErrorCounts((0,) * 6, 7)),
    ]
    chart = error_bars(rows)
    for found in texts(chart):
        assert {
            *ERROR_TITLES.values(),
            "Distilled, ★ unseen",
            "100 of 140 wrong",
            "0 of 7 wrong",
        } <= set(found)
        assert {"50", "25", "20"} <= set(found)
        # Too narrow for a number.
        assert "3" not in found
    assert "Distilled, unseen: 100 errors, wrong verb 50 %, wrong object 25 %" in chart.alt
    assert "Distilled, seen: no errors" in chart.alt
