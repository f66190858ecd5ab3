import dataclasses

import numpy as np
import pytest

from evaluation.hico.nms import NmsConfig, batched_pairwise_nms, pairwise_nms


def test_nothing(detect):
    assert len(pairwise_nms(detect("a.jpg")).scores) == 0
    assert batched_pairwise_nms([]) == []


def test_keeps_the_best_of_near_copies(detect):
    found = detect("a.jpg", ("kick", "ball", 0.3), ("kick", "ball", 0.7, 1.0, 0))
    kept = pairwise_nms(found)
    assert kept.hois.tolist() == [[2, 3, found.hois[0, 2]]]
    assert kept.scores == pytest.approx([0.7])


@pytest.mark.parametrize(
    "other", [("hold", "ball", 0.7, 0.0, 0), ("kick", "box", 0.7, 0.0, 0), ("kick", "ball", 0.7)]
)
def test_keeps_other_actions_objects_and_places(detect, other):
    assert len(pairwise_nms(detect("a.jpg", ("kick", "ball", 0.9), other)).scores) == 2


@pytest.mark.parametrize(("shift", "kept"), [(1, 1), (2, 2)])
def test_threshold(detect, shift, kept):
    # Boxes 10 wide: IoU 9/11 and 8/12, to the power of 1.5: 0.740 and 0.544.
    found = detect("a.jpg", ("kick", "ball", 0.9), ("kick", "ball", 0.8, shift, 0))
    assert len(pairwise_nms(found).scores) == kept


def test_powers(detect):
    found = detect("a.jpg", ("kick", "ball", 0.9), ("kick", "ball", 0.8, 2.0, 0))
    assert len(pairwise_nms(found, NmsConfig(human_power=0)).scores) == 1
    assert len(pairwise_nms(found, NmsConfig(threshold=0.5)).scores) == 1


def test_a_dropped_detection_drops_nothing(detect):
    """A chain: the middle one goes, so the far one stays although the middle covers it."""
    found = detect("a.jpg", *[("kick", "ball", 0.9 - i / 10, float(i), 0) for i in range(3)])
    assert pairwise_nms(found).scores == pytest.approx([0.9, 0.7])


def test_result_is_sorted_by_score_and_stable(detect):
    found = detect("a.jpg", ("kick", "ball", 0.5), ("hold", "ball", 0.9), ("pull", "box", 0.5))
    kept = pairwise_nms(found)
    assert kept.hois[:, 0].tolist() == [2, 0, 4]
    np.testing.assert_array_equal(kept.boxes, found.boxes)


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


def test_many_images_agree_with_the_plain_rule(detect):
    rng = np.random.default_rng(0)
    config = NmsConfig(threshold=0.6)
    found = [
        detect(
            f"{i}.jpg",
            *[
                (("kick", "hold")[row % 2], "ball", rng.integers(0, 9) / 9, rng.normal(0, 1.5), 0)
                for row in range(rng.integers(0, 30))
            ],
        )
        for i in range(400)
    ]
    together = batched_pairwise_nms(found, config)
    assert [item.image_id for item in together] == [item.image_id for item in found]
    for before, after in zip(found, together, strict=True):
        np.testing.assert_array_equal(after.hois, greedy(before, config))
    assert sum(len(item.hois) for item in together) < sum(len(item.hois) for item in found)
