import pytest

from evaluation.analysis.class_tables import ActionRow
from evaluation.analysis.comparison import ComparisonEntry
from evaluation.report.charts.bars import action_bars, teacher_student_chart


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


def test_many_actions_are_not_all_read_out(entries):
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
