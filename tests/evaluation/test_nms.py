import numpy as np
import pytest

from evaluation.nms import pairwise_nms


def test_nothing(detect):
    assert len(pairwise_nms(detect("a.jpg")).scores) == 0


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
    assert len(pairwise_nms(found, human_power=0, object_power=0.5).scores) == 1


def test_a_dropped_detection_drops_nothing(detect):
    """A chain: the middle one goes, so the far one stays although the middle covers it."""
    found = detect("a.jpg", *[("kick", "ball", 0.9 - i / 10, float(i), 0) for i in range(3)])
    assert pairwise_nms(found).scores == pytest.approx([0.9, 0.7])


def test_result_is_sorted_by_score_and_stable(detect):
    found = detect("a.jpg", ("kick", "ball", 0.5), ("hold", "ball", 0.9), ("pull", "box", 0.5))
    kept = pairwise_nms(found)
    assert kept.hois[:, 0].tolist() == [2, 0, 4]
    np.testing.assert_array_equal(kept.boxes, found.boxes)
