import numpy as np
import pytest

from evaluation.analysis.precision_recall import (
    MAX_POINTS,
    precision_recall_curve,
    select_interactions,
)
from evaluation.hico.average_precision import eleven_point_ap
from evaluation.hico.matching import MatchedDetections, Triplets, match_and_sort


def matched_of(hits):
    """Detections of interaction 0, by falling score."""
    number, boxes = len(hits), np.zeros((len(hits), 4))
    zeros = np.zeros(number, dtype=np.int64)
    found = Triplets(zeros, zeros, boxes, boxes, np.linspace(1, 0, number), zeros)
    return MatchedDetections(found, found, np.array(hits, dtype=bool))


def test_no_detections(toy, annotate):
    matched = match_and_sort([annotate("a.jpg", ("kick", "ball"))], [], toy)
    curve = precision_recall_curve(matched, 3, 1)
    assert len(curve.recall) == len(curve.precision) == 0


def test_curve():
    curve = precision_recall_curve(matched_of([1, 0, 1]), 0, 4)
    assert curve.recall.tolist() == [0.25, 0.25, 0.5]
    assert curve.precision == pytest.approx([1, 1 / 2, 2 / 3])
    assert len(precision_recall_curve(matched_of([1, 0, 1]), 1, 4).recall) == 0


@pytest.mark.parametrize("density", [0.02, 0.5, 0.98])
def test_thinning_keeps_the_area(density):
    hits = np.random.default_rng(0).random(20_000) < density
    positives = int(hits.sum()) + 5
    curve = precision_recall_curve(matched_of(hits), 0, positives)
    assert len(curve.recall) <= MAX_POINTS
    assert curve.recall[-1] == hits.sum() / positives
    whole, _ = eleven_point_ap(hits, positives)
    envelope = np.maximum.accumulate(curve.precision[::-1])[::-1]
    reached = np.searchsorted(curve.recall, np.arange(0, 1.1, 0.1) - 1e-9)
    thinned = np.append(envelope, 0)[reached].mean()
    assert thinned == pytest.approx(whole, abs=0.02)


@pytest.mark.parametrize(
    ("values", "unseen", "expected"),
    [
        ([], (), []),
        ([None, None], (), []),
        ([0.4], (), [(0, "best seen")]),
        ([0.4, 0.9], (0,), [(0, "best unseen"), (1, "best seen")]),
        (
            [0.1, 0.9, 0.5, 0.7, 0.2, 0.8],
            (0, 1, 2),
            [
                *[(1, "best unseen"), (2, "median unseen"), (0, "worst unseen")],
                *[(5, "best seen"), (3, "median seen"), (4, "worst seen")],
            ],
        ),
    ],
)
def test_choice(values, unseen, expected):
    counts = np.full(len(values), 10)
    assert select_interactions(values, counts, unseen) == expected


def test_six_of_many_where_nothing_is_unseen():
    chosen = select_interactions(list(np.linspace(1, 0, 51)), np.full(51, 9), ())
    assert [index for index, _ in chosen] == [0, 10, 20, 30, 40, 50]
    assert [place for _, place in chosen][1] == "number 11 of 51 seen"


def test_rare_interactions_are_selected_last():
    values = [1.0, 0.9, 0.5, 0.3, 0.0]
    counts = np.array([1, 10, 10, 10, 2])
    assert [i for i, _ in select_interactions(values, counts, range(5))] == [1, 2, 3]
    assert [i for i, _ in select_interactions(values, counts // 10, range(5))] == [0, 2, 4]
