import numpy as np
import pytest

from evaluation.analysis.precision_recall import PrecisionRecallCurve
from evaluation.analysis.training_log import LEARNING_RATE, TOTAL_LOSS, TrainingLog
from evaluation.report.charts.plots import CurvePanel, precision_recall_curves, training_curves


def log(num_lines):
    steps = np.arange(1, num_lines + 1)
    return TrainingLog(steps, {TOTAL_LOSS: 5 / steps, LEARNING_RATE: np.full(num_lines, 1e-4)})


@pytest.mark.parametrize("num_lines", [1, 20, 500])
def test_training_curves(num_lines, entries, texts):
    chart = training_curves([(one, log(num_lines)) for one in entries])
    for found in texts(chart):
        assert {TOTAL_LOSS, LEARNING_RATE, "step", "Distilled", "No distillation"} <= set(found)
    assert "var(--distilled)" in chart.wide
    assert "NaN" not in chart.wide
    assert f"Distilled after {num_lines} steps: {TOTAL_LOSS}" in chart.alt


def test_a_run_may_lack_a_series(entries, texts):
    other = TrainingLog(np.arange(3), {TOTAL_LOSS: np.array([1, np.nan, 2]), "extra": np.ones(3)})
    chart = training_curves([(entries[0], log(3)), (entries[1], other)])
    assert "extra" in texts(chart)[0]


def test_several_runs_of_an_entry_share_a_legend(entries, texts):
    chart = training_curves([(entries[0], log(3)), (entries[0], log(5))])
    assert texts(chart)[0].count("Distilled") == 1


def curve(*hits):
    right = np.cumsum(hits)
    return PrecisionRecallCurve(right / 4, right / np.arange(1, len(hits) + 1))


def panel(place, *curves, entries):
    pairs = zip(entries, curves, (0.5, None), strict=True)
    return CurvePanel("kick ball", place, "unseen" in place, 4, tuple(pairs))


@pytest.mark.parametrize("number", [1, 2, 6])
def test_precision_recall_curves(number, entries, texts):
    panels = [
        panel(f"number {place} unseen", curve(1, 0, 1), curve(), entries=entries)
        for place in range(number)
    ]
    chart = precision_recall_curves(panels)
    for found in texts(chart):
        assert found.count("★ kick ball") == number
        assert "number 0 unseen, 4 labelled" in found
        assert {"recall", "precision", "Distilled", "No distillation"} <= set(found)
        assert "no true positives" not in found
    assert "kick ball (number 0 unseen): Distilled AP 50.0, No distillation AP -" in chart.alt


def test_panels_without_true_positives(entries, texts):
    chart = precision_recall_curves([panel("worst seen", curve(0, 0), curve(), entries=entries)])
    assert all("no true positives" in found for found in texts(chart))
