import re

import numpy as np
import pytest

from evaluation.analysis.confusion import VerbConfusion
from evaluation.analysis.training_log import LEARNING_RATE, TOTAL_LOSS, TrainingLog
from evaluation.report.charts.plots import (
    MAX_CONFUSED_VERBS,
    Curve,
    ap_by_frequency,
    confusion_matrices,
    precision_recall_curves,
    training_curves,
)
from pipeline.utils.text import count_noun


@pytest.mark.parametrize("num_lines", [1, 20, 500])
def test_training_curves(num_lines, entries, texts):
    """A run may lack a series, and several runs of an entry share its legend."""
    steps = np.arange(1, num_lines + 1)
    rates = {LEARNING_RATE: np.full(num_lines, 1e-4)}
    log = TrainingLog(steps, {TOTAL_LOSS: 5 / steps, **rates})
    other = TrainingLog(steps, {TOTAL_LOSS: np.append(np.nan, steps[1:]), "extra": 1 / steps})
    chart = training_curves([(entries[0], log), (entries[0], log), (entries[1], other)])
    found = texts(chart)
    assert {TOTAL_LOSS, LEARNING_RATE, "extra", "step", "No distillation"} <= set(found)
    assert found.count("Distilled") == 1
    assert "var(--distilled)" in chart.panels[0] and "NaN" not in chart.panels[0]
    assert f"Distilled after {count_noun(num_lines, 'steps')}: {TOTAL_LOSS}" in chart.alt


@pytest.mark.parametrize("hits", [[1, 0, 1], [0, 0]])
def test_precision_recall_curves(hits, entries, texts):
    right, none = np.cumsum(hits), np.zeros(0)
    curves = [
        Curve(entries[0], right / 4, right / np.arange(1, len(hits) + 1), 0.5),
        Curve(entries[1], none, none, None),
    ]
    chart = precision_recall_curves({f"kick\nnumber {place}": curves for place in range(4)})
    found = texts(chart)
    assert found.count("kick") == found.count("recall") == len(chart.panels) == 4
    assert {"number 0", "precision", "Distilled", "No distillation"} <= set(found)
    assert ("no true positives" in found) == (not any(hits))
    assert "kick, number 0: Distilled AP 50.0, No distillation AP -" in chart.alt


@pytest.mark.parametrize(
    "training", [lambda index: 0, lambda index: index, lambda index: 7 + 9**index]
)
@pytest.mark.parametrize("counts", [(2, 6), (0, 3), (3, 0)])
def test_ap_by_training(counts, training, rows, entries, texts):
    chart = ap_by_frequency(rows(*counts, training), entries)
    found = texts(chart)
    assert {"Distilled", "No distillation", "training instances", "AP"} <= set(found)
    # Every number of instances is on the axis once.
    assert not {"\u22120", "-0"} & set(found)
    for group, count in zip(("unseen", "seen"), counts, strict=True):
        assert (group in found) == (f"var(--{group})" in chart.panels[0]) == (count > 0)
    assert "NaN" not in chart.panels[0]
    assert "Distilled, mean of " in chart.alt


def test_confusion_matrix(texts):
    counts = np.zeros((4, 4))
    counts[0, [0, 1]] = 30, 10
    counts[1, 1] = 5
    confusion = VerbConfusion(counts, 45)
    chart = confusion_matrices([("Mine", confusion)], ["kick", "sit on", "ride", "hold"], [1])
    found = texts(chart)
    # Verbs that are neither labelled nor predicted are left out; the unseen one is first.
    names = [text for text in found if "sit on" in text or "kick" in text]
    assert names == 2 * ["★ sit on", "kick"]
    assert {"75", "25", "100", "others", "predicted", "labelled", "Mine"} <= set(found)
    opacities = {float(value) for value in re.findall(r"opacity: (0\.\d+)", chart.panels[0])}
    assert max(opacities) == pytest.approx(0.55, abs=0.01) and len(opacities) >= 3
    assert "Mine: of 45 detected labelled pairs, 78 % have a correct verb" in chart.alt
    assert "kick predicted as sit on (10)" in chart.alt
    assert not chart.large


def test_of_many_verbs_the_most_confused(texts):
    counts = np.random.default_rng(0).integers(0, 9, (117, 117)).astype(float)
    verbs = [f"verb {index}" for index in range(117)]
    chart = confusion_matrices([("Mine", VerbConfusion(counts, 1000))], verbs, [])
    found = texts(chart)
    assert sum(text.startswith("verb") for text in found) == 2 * MAX_CONFUSED_VERBS
    assert "others" in found and chart.large
