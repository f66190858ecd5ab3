import numpy as np
import pytest

from pipeline.types import Annotation
from pipeline.vocabulary import load_vocabulary
from teacher_cache.detectors.pairing import (
    UNRESTRICTED_PAIRING,
    ObjectBoxes,
    PairingConfig,
    annotated_boxes,
    annotated_pairs,
    concatenate_pairs,
    form_pairs,
    pair_labels,
)

PERSON, HORSE, BALL = 0, 1, 4


def detections_of(*entries):
    """Detections from (label, score); a box starts at x = its index."""
    return ObjectBoxes(
        boxes=np.array([[n, 0, n + 10, 10] for n in range(len(entries))], np.float32).reshape(
            -1, 4
        ),
        labels=np.array([label for label, _ in entries], dtype=np.int64),
        scores=np.array([score for _, score in entries], dtype=np.float32),
    )


def indices_of(pairs):
    return [
        (int(human), int(other))
        for human, other in zip(pairs.human_boxes[:, 0], pairs.object_boxes[:, 0], strict=True)
    ]


@pytest.mark.parametrize(
    "detections, config, expected",
    [
        ([], PairingConfig(), []),
        ([(PERSON, 0.9)], PairingConfig(), []),
        ([(HORSE, 0.9)], PairingConfig(), []),
        ([(HORSE, 0.9), (PERSON, 0.5)], PairingConfig(), [(1, 0)]),
        (
            [(PERSON, 0.5), (PERSON, 0.9), (HORSE, 0.3), (BALL, 0.8)],
            PairingConfig(),
            [(1, 3), (1, 2), (0, 3), (0, 2)],
        ),
        ([(PERSON, 0.5), (HORSE, 0.3)], PairingConfig(person_threshold=0.6), []),
        ([(PERSON, 0.5), (HORSE, 0.3)], PairingConfig(object_threshold=0.4), []),
        (
            [(PERSON, 0.5), (HORSE, 0.3)],
            PairingConfig(person_threshold=0.5, object_threshold=0.3),
            [(0, 1)],
        ),
        (
            [(PERSON, 0.5), (PERSON, 0.6), (HORSE, 0.3), (BALL, 0.3)],
            PairingConfig(max_people=1, max_objects=1),
            [(1, 2)],
        ),
    ],
)
def test_pairs_of_detections(vocabulary, detections, config, expected):
    pairs = form_pairs(detections_of(*detections), vocabulary, config)
    assert indices_of(pairs) == expected
    assert (pairs.sources == 1).all()
    assert pairs.human_boxes.shape == pairs.object_boxes.shape == (len(expected), 4)


def test_people_are_objects_if_the_vocabulary_has_interactions_with_people():
    hico = load_vocabulary("hico-det")
    pairs = form_pairs(detections_of((hico.person, 0.9), (hico.person, 0.8)), hico, PairingConfig())
    assert indices_of(pairs) == [(0, 1), (1, 0)]
    assert pairs.object_labels.tolist() == [hico.person] * 2
    np.testing.assert_allclose(pairs.object_scores, [0.8, 0.9])


def test_pairs_do_not_depend_on_the_order_of_detections():
    """Also with equal scores, and with equal boxes of several labels."""
    hico = load_vocabulary("hico-det")
    rng = np.random.default_rng(2)
    count = 40
    boxes = rng.integers(0, 3, (count, 4)).astype(np.float32)
    labels = rng.choice([hico.person, 1, 2], count)
    scores = rng.choice([0.5, 0.7, 0.9], count).astype(np.float32)
    config = PairingConfig(0.2, 0.6, max_people=6, max_objects=9)
    expected = form_pairs(ObjectBoxes(boxes, labels, scores), hico, config)
    assert len(expected) > 40
    for _ in range(5):
        order = rng.permutation(count)
        pairs = form_pairs(ObjectBoxes(boxes[order], labels[order], scores[order]), hico, config)
        for name in ("human_boxes", "object_boxes", "object_labels", "object_scores"):
            np.testing.assert_array_equal(getattr(pairs, name), getattr(expected, name))


def test_annotated_boxes_form_all_pairs():
    hico = load_vocabulary("hico-det")
    ball = hico.objects.index("sports_ball")
    annotation = Annotation(
        image_id="a",
        boxes=np.arange(12, dtype=np.float32).reshape(3, 4),
        labels=np.array([hico.person, ball, hico.person]),
        hois=np.array([[2, 1, 0]]),
    )
    pairs = form_pairs(annotated_boxes(annotation), hico, UNRESTRICTED_PAIRING)
    ends = zip(pairs.human_boxes[:, 0], pairs.object_boxes[:, 0], strict=True)
    assert sorted(ends) == [(0, 4), (0, 8), (8, 0), (8, 4)]
    assert pairs.sources.tolist() == [1] * 4 and pairs.object_scores.tolist() == [1] * 4


def test_annotated_pairs_are_in_the_order_of_their_first_labels():
    annotation = Annotation(
        image_id="a",
        boxes=np.arange(16, dtype=np.float32).reshape(4, 4),
        labels=np.array([PERSON, HORSE, BALL, PERSON]),
        hois=np.array([[3, 1, 0], [0, 2, 3], [3, 1, 6], [0, -1, 4]]),
    )
    pairs = annotated_pairs(annotation)
    assert pairs.human_boxes[:, 0].tolist() == [12, 0]
    assert pairs.object_boxes[:, 0].tolist() == [4, 8]
    assert pairs.object_labels.tolist() == [HORSE, BALL]
    assert pairs.sources.tolist() == [0, 0]
    assert pairs.human_scores.tolist() == [1, 1]


def test_concatenation(vocabulary):
    pairs = form_pairs(detections_of((PERSON, 0.9), (HORSE, 0.8)), vocabulary, PairingConfig())
    empty = Annotation("a", np.zeros((0, 4), np.float32), np.zeros(0, int), np.zeros((0, 3), int))
    both = concatenate_pairs(pairs, concatenate_pairs(annotated_pairs(empty), pairs))
    assert both.sources.tolist() == [1, 1] and indices_of(both) == [(0, 1)] * 2
    assert both.object_labels.tolist() == [HORSE] * 2


def test_pair_labels_are_in_the_order_of_annotated_pairs():
    vocabulary = load_vocabulary("toy")
    ride, hold, throw = map(vocabulary.verbs.index, ("ride", "hold", "throw"))
    boxes = np.array([[0, 0, 20, 40], [5, 20, 60, 60], [30, 0, 40, 10]], dtype=np.float32)
    hois = np.array([[0, 2, hold], [0, 1, ride], [0, 2, throw], [0, -1, hold]])
    annotation = Annotation("a", boxes, np.array([PERSON, HORSE, BALL]), hois)
    labels = pair_labels(annotation, vocabulary)
    assert len(labels) == len(annotated_pairs(annotation)) == 2
    assert np.flatnonzero(labels[0]).tolist() == [hold, throw]
    assert np.flatnonzero(labels[1]).tolist() == [ride]
