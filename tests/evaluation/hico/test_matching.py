import numpy as np
import pytest

from evaluation.hico import matching
from evaluation.hico.matching import (
    collect_triplets,
    count_interactions,
    hico_iou,
    join,
    match_and_sort,
    match_triplets,
)
from pipeline.types import Annotation, Detections
from pipeline.utils.errors import InputError

NUMBERS = np.zeros(1, dtype=np.int64)
KICK, HOLD, PULL = ("kick", "ball"), ("hold", "ball"), ("pull", "box")


def true_positives(toy, annotation, detections):
    triplets = collect_triplets([detections], NUMBERS, toy)
    return match_triplets(triplets, collect_triplets([annotation], NUMBERS, toy)).tolist()


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


@pytest.mark.parametrize("empty", ["annotation", "detections", "both"])
def test_nothing_to_match(toy, annotate, detect, empty):
    annotation = annotate("a.jpg", *([] if empty != "detections" else [KICK]))
    detections = detect("a.jpg", *([] if empty != "annotation" else [(*KICK, 0.5)]))
    assert not any(true_positives(toy, annotation, detections))
    assert count_interactions([], toy).tolist() == [0] * toy.num_interactions


@pytest.mark.parametrize(("scores", "right"), [((0.3, 0.7), 1), ((0.5, 0.5), 0)])
def test_only_the_best_detection_of_a_triplet_is_correct(toy, annotate, detect, scores, right):
    """The first of equal ones."""
    detections = detect("a.jpg", (*KICK, scores[0]), (*KICK, scores[1], 1.0, 0))
    found = true_positives(toy, annotate("a.jpg", KICK), detections)
    assert np.flatnonzero(found).tolist() == [right]


def test_verb_and_object_must_match(toy, annotate, detect):
    annotation = annotate("a.jpg", KICK, ("kick", "box"))
    found = (*HOLD, 0.9), (*KICK, 0.8, 0.0, 1), ("kick", "box", 0.7, 0.0, 1)
    assert true_positives(toy, annotation, detect("a.jpg", *found)) == [False, False, True]


@pytest.mark.parametrize(("shift", "right"), [(3, True), (4, False)])
def test_both_boxes_must_overlap_by_half(toy, annotate, detect, shift, right):
    # Boxes 10 wide: 7/13 and 6/14 of the union.
    found = detect("a.jpg", ("kick", "ball", 0.9, shift))
    assert true_positives(toy, annotate("a.jpg", ("kick", "ball")), found) == [right]


def test_assigned_to_the_best_triplet_even_if_taken(toy):
    """Both detections overlap the first of two people most, so the second is missed."""
    person, ball, kick = toy.person, toy.objects.index("ball"), toy.verbs.index("kick")
    boxes = np.array([[0, 0, 9, 9], [2, 0, 11, 9], [20, 0, 29, 9]], dtype=np.float32)
    labels = np.array([person, person, ball])
    annotation = Annotation("a.jpg", boxes, labels, np.array([[0, 2, kick], [1, 2, kick]]))
    moved = np.array([[0, 0, 9, 9], [0.5, 0, 9.5, 9], [20, 0, 29, 9]], dtype=np.float32)
    hois, scores = np.array([[0, 2, kick], [1, 2, kick]]), np.array([0.9, 0.8])
    detections = Detections("a.jpg", moved, labels, hois, scores)
    assert true_positives(toy, annotation, detections) == [True, False]


def test_sorted_by_score_then_by_image(toy, annotate, detect):
    annotations = [annotate("a.jpg", KICK), annotate("b.jpg", KICK, HOLD)]
    detections = [
        detect("b.jpg", (*KICK, 0.5), (*HOLD, 0.9, 500)),
        detect("a.jpg", (*KICK, 0.5), (*PULL, 0.7)),
    ]
    matched = match_and_sort(annotations, detections, toy)
    assert matched.detections.images.tolist() == [1, 0, 0, 1]
    assert matched.tp_mask.tolist() == [False, False, True, True]
    kick, hold = (
        int(toy.interaction_ids[toy.verbs.index(verb), toy.objects.index(label)])
        for verb, label in (KICK, HOLD)
    )
    positives = matched.num_positives(toy.num_interactions)
    assert {kick: 2, hold: 1} == {int(i): int(positives[i]) for i in np.flatnonzero(positives)}


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
