import re

import numpy as np
import pytest

from evaluation.analysis.class_tables import ClassRow
from evaluation.analysis.confusion import VerbConfusion
from evaluation.analysis.precision_recall import PrecisionRecallCurve
from evaluation.analysis.training_log import LEARNING_RATE, TOTAL_LOSS, TrainingLog
from evaluation.report.charts.plots import (
    MAX_CONFUSED_VERBS,
    CurvePanel,
    ap_by_frequency,
    confusion_matrix,
    precision_recall_curves,
    training_curves,
)


def log(num_lines):
    steps = np.arange(1, num_lines + 1)
    return TrainingLog(steps, {TOTAL_LOSS: 5 / steps, LEARNING_RATE: np.full(num_lines, 1e-4)})


@pytest.mark.parametrize("num_lines", [1, 20, 500])
def test_training_curves(num_lines, entries, texts):
    chart = training_curves([(entry, log(num_lines)) for entry in entries])
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


def class_rows(num_unseen, num_seen, training=lambda index: 3 * index):
    return [
        ClassRow(
            *(f"class {index:03}", index, index < num_unseen, False, training(index), 5),
            (1 - index / 1000, 0.25),
        )
        for index in range(num_unseen + num_seen)
    ]


@pytest.mark.parametrize("training", [lambda index: index, lambda index: 7 + 9**index])
@pytest.mark.parametrize("counts", [(2, 6), (0, 3), (3, 0)])
def test_ap_by_training(counts, training, entries, texts):
    chart = ap_by_frequency(class_rows(*counts, training), entries)
    for found in texts(chart):
        assert {"Distilled", "No distillation", "training instances", "AP"} <= set(found)
        assert ("unseen" in found) == (counts[0] > 0)
        assert ("seen" in found) == (counts[1] > 0)
    assert "NaN" not in chart.wide
    assert "Distilled, mean AP: " in chart.alt


def test_seen_and_unseen_points_have_different_markers(entries):
    chart = ap_by_frequency(class_rows(2, 2), entries[:1])
    assert chart.wide.count("var(--unseen)") == chart.wide.count("var(--seen)")


def shading(svg):
    return sorted(float(value) for value in re.findall(r"opacity: (0\.\d+)", svg))


def test_confusion_matrix(texts):
    counts = np.zeros((4, 4))
    counts[0, [0, 1]] = 30, 10
    counts[1, 1] = 5
    confusion = VerbConfusion(counts, 45, 60)
    chart = confusion_matrix(confusion, ["kick", "sit_on", "ride", "hold"], [1], "Mine", "mine")
    for found in texts(chart):
        # Verbs that are neither labelled nor predicted are left out; the unseen one is first.
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
