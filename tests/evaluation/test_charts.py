import re
import sys

import numpy as np
import pytest

from evaluation.charts import action_bars, require_report_packages, training_curves
from evaluation.comparison import Action, Contestant
from evaluation.training_log import LEARNING_RATE, TOTAL, TrainingLog
from pipeline.errors import InputError

CONTESTANTS = [
    Contestant("distilled", "Distilled", "", ()),
    Contestant("control", "No distillation", "", ()),
]


def actions(num_unseen, num_seen):
    return [
        Action(f"action {index}", index < num_unseen, (0.712, None if index else 0.034))
        for index in range(num_unseen + num_seen)
    ]


@pytest.mark.parametrize("narrow", [False, True])
@pytest.mark.parametrize("counts", [(3, 8), (0, 1), (1, 0), (30, 10), (2, 3)])
def test_action_bars(counts, narrow):
    svg = action_bars(actions(*counts), CONTESTANTS, narrow, 'AP & "more"')
    texts = re.findall(r"<text[^>]*>([^<]*)</text>", svg)
    assert sorted(text for text in texts if text.startswith("action")) == sorted(
        action.name for action in actions(*counts)
    )
    assert texts.count("71.2") == sum(counts)
    assert texts.count("3.4") == 1
    assert ("★ Unseen" in texts) == (counts[0] > 0)
    assert "var(--distilled)" in svg
    assert "var(--control)" in svg
    assert 'role="img" aria-label="AP &amp; &quot;more&quot;"' in svg


def log(num_lines):
    steps = np.arange(1, num_lines + 1)
    return TrainingLog(steps, {TOTAL: 5 / steps, LEARNING_RATE: np.full(num_lines, 1e-4)})


@pytest.mark.parametrize("num_lines", [1, 20, 500])
@pytest.mark.parametrize("narrow", [False, True])
def test_training_curves(num_lines, narrow):
    logs = [(CONTESTANTS[0], log(num_lines)), (CONTESTANTS[1], log(num_lines))]
    svg = training_curves(logs, narrow, "curves")
    assert f">{TOTAL}</text>" in svg
    assert f">{LEARNING_RATE}</text>" in svg
    assert "var(--distilled)" in svg
    assert "NaN" not in svg


def test_a_run_may_lack_a_series():
    other = TrainingLog(np.arange(3), {TOTAL: np.array([1, np.nan, 2]), "extra": np.ones(3)})
    svg = training_curves([(CONTESTANTS[0], log(3)), (CONTESTANTS[1], other)], False, "curves")
    assert ">extra</text>" in svg


def test_charts_stand_on_a_page_together():
    """No network, no colours of their own, no ids in common, nothing that styles the page."""
    charts = [action_bars(actions(3, 8), CONTESTANTS, narrow, "a") for narrow in (False, True)]
    charts += [training_curves([(CONTESTANTS[0], log(9))], narrow, "a") for narrow in (False, True)]
    ids = [name for svg in charts for name in re.findall(r'\bid="([^"]*)"', svg)]
    assert len(set(ids)) == len(ids)
    for svg in charts:
        assert "http" not in svg
        assert "<style" not in svg
        assert not re.findall(r"#[0-9a-f]{6}", svg)
        used = set(re.findall(r'(?:href="#|url\(#)([^")]*)', svg))
        assert used <= set(re.findall(r'\bid="([^"]*)"', svg))


@pytest.mark.parametrize("package", ["jinja2", "matplotlib"])
def test_missing_packages_are_named(monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(InputError, match=rf"{package}.*pip install 'eoid\[report\]'"):
        require_report_packages()
