import re

import numpy as np
import pytest

from evaluation.analysis.confusion import VerbConfusion
from evaluation.analysis.error_kinds import ERROR_TITLES, ErrorCounts
from evaluation.report.charts.bars import ErrorRow, error_bars
from evaluation.report.charts.plots import MAX_CONFUSED_VERBS, confusion_matrix

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


def shading(svg):
    return sorted(float(value) for value in re.findall(r"opacity: (0\.\d+)", svg))


def test_confusion_matrix(texts):
    counts = np.zeros((4, 4))
    counts[0, [0, 1]] = 30, 10
    counts[1, 1] = 5
    confusion = VerbConfusion(counts, 45, 60)
    chart = confusion_matrix(confusion, ["kick", "sit_on", "ride", "hold"], [1], "Mine", "mine")
    for found in texts(chart):
        # Verbs that were neither labelled nor said stay out; the unseen one comes first.
        assert [text for text in found if "sit on" in text or "kick" in text] == 2 * [
            "★ sit on",
            "kick",
        ]
        assert "others" in found
        assert {"75", "25", "100", "predicted", "labelled", "Mine"} <= set(found)
    assert shading(chart.wide)[0] < shading(chart.wide)[-1] <= 0.55
    assert "of 45 detected labelled pairs, 78 % have a correct verb" in chart.alt
    assert "kick predicted as sit on (10)" in chart.alt


@pytest.mark.parametrize("number", [3, 117])
def test_of_many_verbs_the_most_confused(number, texts):
    counts = np.random.default_rng(0).integers(0, 9, (number, number)).astype(float)
    verbs = [f"verb_{index}" for index in range(number)]
    chart = confusion_matrix(VerbConfusion(counts, 1000, 1000), verbs, [], "Mine", "mine")
    found = texts(chart)[0]
    assert sum(text.startswith("verb") for text in found) == 2 * min(number, MAX_CONFUSED_VERBS)
    assert ("others" in found) == (number > MAX_CONFUSED_VERBS)
