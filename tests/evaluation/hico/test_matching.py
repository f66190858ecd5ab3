import numpy as np
import pytest

from evaluation.hico.matching import (
    argsort_desc,
    collect_triplets,
    hico_iou,
    index_images,
    match_triplets,
)
from pipeline.types import Annotation, Detections
from pipeline.utils.errors import InputError

NUMBERS = np.zeros(1, dtype=np.int64)


def hits(toy, annotation, detections):
    found = collect_triplets([detections], NUMBERS, toy)
    return match_triplets(found, collect_triplets([annotation], NUMBERS, toy)).tolist()


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ([0, 0, 9, 9], [0, 0, 9, 9], 1.0),
        ([0, 0, 9, 9], [5, 0, 14, 9], 50 / 150),
        ([0, 0, 9, 9], [9, 0, 18, 9], 0.0),
        ([0, 0, 9, 9], [8, 0, 17, 9], 20 / 180),
        ([0, 0, 9, 9], [100, 100, 110, 110], 0.0),
        ([0, 0, 9, 9], [3, 3, 3, 3], 0.0),
    ],
)
def test_benchmark_iou(first, second, expected):
    value = hico_iou(np.array([first], float), np.array([second], float))
    assert value == pytest.approx([expected], abs=1e-12)


def test_collect_nothing(toy):
    assert len(collect_triplets([], np.zeros(0, dtype=np.int64), toy)) == 0


def test_collect_leaves_out_what_forms_no_interaction(toy):
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


def test_collect_joins_images(toy, annotate):
    items = [annotate("a.jpg"), annotate("b.jpg", ("kick", "ball"), ("hold", "ball"))]
    found = collect_triplets(items, np.array([0, 1]), toy)
    assert found.images.tolist() == [1, 1]
    assert found.human_boxes[:, 1].tolist() == [0, 100]


@pytest.mark.parametrize("empty", ["annotation", "detections", "both"])
def test_nothing_to_match(toy, annotate, detect, empty):
    annotation = annotate("a.jpg", *([] if empty != "detections" else [("kick", "ball")]))
    detections = detect("a.jpg", *([] if empty != "annotation" else [("kick", "ball", 0.5)]))
    assert not any(hits(toy, annotation, detections))


def test_second_hit_is_wrong(toy, annotate, detect):
    annotation = annotate("a.jpg", ("kick", "ball"))
    detections = detect("a.jpg", ("kick", "ball", 0.3), ("kick", "ball", 0.7, 1.0, 0))
    assert hits(toy, annotation, detections) == [False, True]


def test_equal_scores_keep_their_order(toy, annotate, detect):
    annotation = annotate("a.jpg", ("kick", "ball"))
    detections = detect("a.jpg", ("kick", "ball", 0.5), ("kick", "ball", 0.5, 1.0, 0))
    assert hits(toy, annotation, detections) == [True, False]


def test_verb_and_object_must_fit(toy, annotate, detect):
    annotation = annotate("a.jpg", ("kick", "ball"), ("kick", "box"))
    found = ("hold", "ball", 0.9), ("kick", "ball", 0.8, 0.0, 1), ("kick", "box", 0.7, 0.0, 1)
    assert hits(toy, annotation, detect("a.jpg", *found)) == [False, False, True]


@pytest.mark.parametrize(("shift", "right"), [(3, True), (4, False)])
def test_both_boxes_must_overlap_by_half(toy, annotate, detect, shift, right):
    # Boxes 10 wide: 7/13 and 6/14 of the union.
    found = detect("a.jpg", ("kick", "ball", 0.9, shift))
    assert hits(toy, annotate("a.jpg", ("kick", "ball")), found) == [right]


def test_goes_to_the_best_pair_even_if_taken(toy):
    """Two persons kick; the detection fits the first better, so the second stays unfound."""
    person, ball, kick = toy.person, toy.objects.index("ball"), toy.verbs.index("kick")
    boxes = np.array([[0, 0, 9, 9], [2, 0, 11, 9], [20, 0, 29, 9]], dtype=np.float32)
    labels = np.array([person, person, ball])
    annotation = Annotation("a.jpg", boxes, labels, np.array([[0, 2, kick], [1, 2, kick]]))
    moved = np.array([[0, 0, 9, 9], [0.5, 0, 9.5, 9], [20, 0, 29, 9]], dtype=np.float32)
    hois, scores = np.array([[0, 2, kick], [1, 2, kick]]), np.array([0.9, 0.8])
    detections = Detections("a.jpg", moved, labels, hois, scores)
    assert hits(toy, annotation, detections) == [True, False]


def test_unknown_image_is_named(annotate, detect):
    with pytest.raises(InputError, match=r"found 1 others, the first being b\.jpg"):
        index_images([annotate("a.jpg")], [detect("a.jpg"), detect("b.jpg")])


@pytest.mark.parametrize("levels", [1, 3, 10**6])
@pytest.mark.parametrize("count", [0, 1, 2, 1000])
def test_falling_order_is_stable(count, levels):
    scores = np.random.default_rng(count).integers(0, levels, count) / levels
    np.testing.assert_array_equal(argsort_desc(scores), np.argsort(-scores, kind="stable"))
