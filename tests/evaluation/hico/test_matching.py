import numpy as np
import pytest

from evaluation.hico import matching
from evaluation.hico.matching import (
    collect_triplets,
    hico_iou,
    join,
    match_and_sort,
)
from pipeline.types import Annotation
from pipeline.utils.errors import InputError

KICK, HOLD, PULL = ("kick", "ball"), ("hold", "ball"), ("pull", "box")


@pytest.mark.parametrize(
    ("second", "expected"),
    [([5, 0, 14, 9], 50 / 150), ([9, 0, 18, 9], 0.0), ([3, 3, 3, 3], 0.0)],
)
def test_benchmark_iou_of_boxes_that_only_touch_or_have_no_area(second, expected):
    value = hico_iou(np.array([[0.0, 0, 9, 9]]), np.array([second], float))
    assert value == pytest.approx([expected], abs=1e-12)


def test_collect_skips_triplets_outside_the_vocabulary(toy):
    person, ball = toy.person, toy.objects.index("ball")
    ride, kick = toy.verbs.index("ride"), toy.verbs.index("kick")
    item = Annotation(
        "a.jpg",
        np.array([[0, 0, 5, 5], [1, 1, 6, 6], [2, 2, 7, 7]], dtype=np.float32),
        np.array([person, ball, ball]),
        np.array([[0, 1, ride], [1, 2, kick], [0, -1, kick], [0, 2, kick]]),
    )
    found = collect_triplets([item], np.array([7]), toy)
    assert found.source_rows.tolist() == [3]
    assert found.images.tolist() == [7]
    assert found.interactions.tolist() == [toy.interaction_ids[kick, ball]]
    assert found.object_boxes.tolist() == [[2, 2, 7, 7]]


def test_detections_on_an_image_without_annotation(toy, annotate, detect):
    with pytest.raises(InputError, match=r"found 1 others, the first being b\.jpg"):
        match_and_sort([annotate("a.jpg", KICK)], [detect("b.jpg", (*KICK, 0.5))], toy)


@pytest.mark.parametrize("chunk", [1, 3, 1000])
@pytest.mark.parametrize("sizes", [(0, 0), (5, 0), (0, 4), (40, 30)])
def test_join(monkeypatch, sizes, chunk):
    monkeypatch.setattr(matching, "KEYS_PER_CHUNK", chunk)
    rng = np.random.default_rng(0)
    keys, others = (rng.integers(6, size=size) for size in sizes)
    found = [
        pair for rows, targets in join(keys, others) for pair in zip(rows, targets, strict=True)
    ]
    assert len(set(found)) == len(found)
    assert set(found) == {
        (i, j) for i in range(sizes[0]) for j in range(sizes[1]) if keys[i] == others[j]
    }
