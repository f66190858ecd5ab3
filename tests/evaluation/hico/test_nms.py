import dataclasses

import numpy as np
import pytest

from evaluation.hico.nms import NmsConfig, pairwise_nms


@pytest.mark.parametrize(
    "other", [("hold", "ball", 0.7, 0.0, 0), ("kick", "box", 0.7, 0.0, 0), ("kick", "ball", 0.7)]
)
def test_keeps_other_actions_objects_and_places(detect, other):
    assert len(pairwise_nms(detect("a.jpg", ("kick", "ball", 0.9), other)).scores) == 2


def test_pairs_without_object_are_compared_by_their_people(detect):
    found = detect("a.jpg", ("kick", "ball", 0.9), ("kick", "ball", 0.8, 1.0, 0))
    hois = found.hois.copy()
    hois[:, 1] = -1
    alone = dataclasses.replace(found, hois=hois)
    assert len(pairwise_nms(alone).scores) == 1
    hois[1, 1] = 3
    assert len(pairwise_nms(alone).scores) == 2


def greedy(item, config):
    """The rule as one would tell it: by falling score, each drops what it covers."""
    rows = list(np.argsort(-item.scores, kind="stable"))
    kept = []
    while rows:
        best = rows.pop(0)
        kept.append(best)
        rows = [row for row in rows if not covers(item, best, row, config)]
    return item.hois[kept]


def covers(item, better, worse, config):
    def kind(row):
        human, target, verb = item.hois[row]
        return item.labels[human], item.labels[target], verb

    def iou(column):
        a, b = (item.boxes[item.hois[row, column]].astype(float) for row in (better, worse))
        sides = np.maximum(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]) + 1, 0)
        areas = [(box[2] - box[0] + 1) * (box[3] - box[1] + 1) for box in (a, b)]
        return sides.prod() / (sum(areas) - sides.prod())

    powers = iou(0) ** config.human_power * iou(1) ** config.object_power
    return kind(better) == kind(worse) and powers > config.threshold


@pytest.mark.parametrize("count", [0, 1, 30])
def test_agrees_with_the_plain_rule(detect, count):
    """Equal scores keep their order."""
    rng = np.random.default_rng(0)
    config = NmsConfig(human_power=0.8, object_power=1.5, threshold=0.5)
    for _ in range(20):
        rows = [
            (("kick", "hold")[row % 2], "ball", rng.integers(0, 9) / 9, rng.normal(0, 1.5), 0)
            for row in range(count)
        ]
        found = detect("a.jpg", *rows)
        kept = pairwise_nms(found, config)
        np.testing.assert_array_equal(kept.hois, greedy(found, config))
        np.testing.assert_array_equal(kept.boxes, found.boxes)
        assert (np.diff(kept.scores) <= 0).all() and len(kept.scores) <= max(count - 5, 1)
