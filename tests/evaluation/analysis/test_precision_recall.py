import numpy as np
import pytest

from evaluation.hico.average_precision import precision_recall_curve, select_interactions
from evaluation.hico.matching import MatchedDetections, Triplets


def test_curve():
    boxes, zeros = np.zeros((3, 4)), np.zeros(3, dtype=np.int64)
    found = Triplets(zeros, zeros, boxes, boxes, np.linspace(1, 0, 3), zeros)
    matched = MatchedDetections(found, found, np.array([True, False, True]))
    recall, precision = precision_recall_curve(matched, 0, 4)
    assert recall.tolist() == [0.25, 0.25, 0.5]
    assert precision == pytest.approx([1, 1 / 2, 2 / 3])
    assert [len(values) for values in precision_recall_curve(matched, 1, 4)] == [0, 0]


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
    assert chosen[1][1] == "number 11 of 51 seen"


def test_rare_interactions_are_selected_last():
    values = [1.0, 0.9, 0.5, 0.3, 0.0]
    counts = np.array([1, 10, 10, 10, 2])
    assert [i for i, _ in select_interactions(values, counts, range(5))] == [1, 2, 3]
    assert [i for i, _ in select_interactions(values, counts.clip(max=2), range(5))] == [0, 2, 4]


def test_interactions_without_labels_are_not_selected():
    """Their AP is 0 in SWIG-HOI's protocol."""
    values, counts = [0.0, 0.4, 0.0, 0.0], np.array([0, 2, 0, 1])
    assert select_interactions(values, counts, (0, 1, 3)) == [
        (1, "best unseen"),
        (3, "worst unseen"),
    ]
