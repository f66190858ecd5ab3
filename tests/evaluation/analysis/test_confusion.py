import numpy as np
import pytest

from evaluation.analysis.confusion import Confusion, verb_confusion
from evaluation.analysis.matched import judge

KICK, HOLD, THROW = ("kick", "ball"), ("hold", "ball"), ("throw", "ball")


def confusion(world, annotations, detections):
    return verb_confusion(judge(annotations, detections, world), world)


def cells(found, world):
    return {
        (world.verbs[row], world.verbs[column]): found.counts[row, column]
        for row, column in np.argwhere(found.counts)
    }


def test_nothing(world):
    found = confusion(world, [], [])
    assert (found.found, found.pairs) == (0, 0)
    assert found.counts.shape == (world.num_verbs, world.num_verbs)
    assert found.worst(3) == []
    assert not found.shares.any()


def test_the_best_scoring_detection_of_a_pair_speaks(world, annotate, detect):
    annotations = [annotate("a.jpg", KICK, HOLD), annotate("b.jpg", THROW), annotate("c.jpg", KICK)]
    detections = [
        detect("a.jpg", (*KICK, 0.4), (*HOLD, 0.9), (*HOLD, 0.8, 0, 0)),
        # Too far off, and of another object class: nobody found this pair.
        detect("b.jpg", (*THROW, 0.9, 8), ("hold", "umbrella", 0.9, 0, 0)),
        detect("c.jpg", (*KICK, 0.2)),
    ]
    found = confusion(world, annotations, detections)
    assert (found.found, found.pairs) == (3, 4)
    expected = {("kick", "hold"): 1, ("hold", "hold"): 1, ("kick", "kick"): 1}
    assert cells(found, world) == expected
    kick, hold = world.verbs.index("kick"), world.verbs.index("hold")
    assert found.worst(5) == [(kick, hold, 1.0)]
    assert found.shares[kick, [kick, hold]].tolist() == [0.5, 0.5]


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("hold", {("hold", "hold"): 1}),
        ("throw", {("kick", "throw"): 0.5, ("hold", "throw"): 0.5}),
    ],
)
def test_pairs_with_two_labels(world, annotate, detect, said, expected):
    annotation = annotate("a.jpg", KICK)
    second = annotation.hois.copy()
    second[0, 2] = world.verbs.index("hold")
    both = np.concatenate([annotation.hois, second])
    annotation = type(annotation)("a.jpg", annotation.boxes, annotation.labels, both)
    found = confusion(world, [annotation], [detect("a.jpg", (said, "ball", 0.5))])
    assert (found.found, found.pairs) == (1, 1)
    assert cells(found, world) == expected


def test_worst_first():
    counts = np.array([[9, 1, 4], [0, 9, 2], [0, 0, 9.0]])
    found = Confusion(counts, 34, 40)
    assert found.worst(2) == [(0, 2, 4.0), (1, 2, 2.0)]
    assert len(found.worst(99)) == 3
