import numpy as np
import pytest

from evaluation.analysis.confusion import VerbConfusion, compute_verb_confusion
from evaluation.hico.matching import match_and_sort

KICK, HOLD, THROW = ("kick", "ball"), ("hold", "ball"), ("throw", "ball")


def cells(found, toy):
    return {
        (toy.verbs[row], toy.verbs[column]): found.counts[row, column]
        for row, column in np.argwhere(found.counts)
    }


def test_nothing(toy):
    found = compute_verb_confusion(match_and_sort([], [], toy), toy)
    assert found.num_found == 0 and found.counts.shape == (toy.num_verbs, toy.num_verbs)
    assert found.most_frequent(3) == [] and not found.row_shares.any()


def test_the_best_scoring_detection_of_a_pair_counts(toy, annotate, detect):
    annotations = [annotate("a.jpg", KICK, HOLD), annotate("b.jpg", THROW), annotate("c.jpg", KICK)]
    detections = [
        detect("a.jpg", (*KICK, 0.4), (*HOLD, 0.9), (*HOLD, 0.8, 0, 0)),
        # Too far away, and of another object class: this pair is not detected.
        detect("b.jpg", (*THROW, 0.9, 8), ("hold", "umbrella", 0.9, 0, 0)),
        detect("c.jpg", (*KICK, 0.2)),
    ]
    found = compute_verb_confusion(match_and_sort(annotations, detections, toy), toy)
    assert found.num_found == 3
    expected = {("kick", "hold"): 1, ("hold", "hold"): 1, ("kick", "kick"): 1}
    assert cells(found, toy) == expected
    kick, hold = toy.verbs.index("kick"), toy.verbs.index("hold")
    assert found.most_frequent(5) == [(kick, hold, 1.0)]
    assert found.row_shares[kick, [kick, hold]].tolist() == [0.5, 0.5]


@pytest.mark.parametrize(
    ("predicted", "expected"),
    [
        ("hold", {("hold", "hold"): 1}),
        ("throw", {("kick", "throw"): 0.5, ("hold", "throw"): 0.5}),
    ],
)
def test_pairs_with_two_labels(toy, annotate, detect, predicted, expected):
    annotation = annotate("a.jpg", KICK)
    second = annotation.hois.copy()
    second[0, 2] = toy.verbs.index("hold")
    both = np.concatenate([annotation.hois, second])
    annotation = type(annotation)("a.jpg", annotation.boxes, annotation.labels, both)
    detections = [detect("a.jpg", (predicted, "ball", 0.5))]
    found = compute_verb_confusion(match_and_sort([annotation], detections, toy), toy)
    assert found.num_found == 1
    assert cells(found, toy) == expected


def test_most_frequent_confusions_first():
    found = VerbConfusion(np.array([[9, 1, 4], [0, 9, 2], [0, 0, 9.0]]), 34)
    assert found.most_frequent(2) == [(0, 2, 4.0), (1, 2, 2.0)]
