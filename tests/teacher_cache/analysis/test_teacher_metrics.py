import numpy as np
import pytest

from pipeline.types import Annotation, Pairs
from teacher_cache.analysis.evaluate import (
    CachedImages,
    action_accuracy,
    box_recall,
    pair_recall,
    to_detections,
)
from teacher_cache.detectors.pairing import annotated_pairs, concatenate_pairs
from teacher_cache.reader.cache import open_cache
from teacher_cache.reader.format import ANNOTATED, TeacherOutputs

PERSON, HORSE, BALL = 0, 1, 4
RIDE, HOLD, THROW, NO_INTERACTION = 0, 3, 8, 10
BOXES = np.array([[0, 0, 20, 40], [5, 20, 60, 60], [30, 0, 40, 10]], dtype=np.float32)


def annotation(*hois):
    return Annotation("a", BOXES, np.array([PERSON, HORSE, BALL]), np.array(hois).reshape(-1, 3))


def outputs(own, proposals, probabilities):
    """The annotation's own pairs, then proposals (human box, object box, label, scores)."""
    proposed = Pairs(
        human_boxes=np.array([p[0] for p in proposals], np.float32).reshape(-1, 4),
        object_boxes=np.array([p[1] for p in proposals], np.float32).reshape(-1, 4),
        object_labels=np.array([p[2] for p in proposals], np.int64),
        human_scores=np.array([p[3] for p in proposals], np.float32),
        object_scores=np.array([p[4] for p in proposals], np.float32),
        sources=np.ones(len(proposals), np.uint8),
    )
    pairs = concatenate_pairs(annotated_pairs(own), proposed)
    table = np.zeros((len(pairs), 11), dtype=np.float32)
    for row, entries in enumerate(probabilities):
        for verb, probability in entries.items():
            table[row, verb] = probability
    return TeacherOutputs(pairs, table, np.zeros(len(pairs), int), np.zeros((1, 4)), None)


def test_an_image_without_proposals_has_no_detections(vocabulary):
    own = annotation([0, 1, RIDE])
    found = to_detections("a", outputs(own, [], [{RIDE: 1}]), vocabulary)
    assert found.boxes.shape == (0, 4) and found.hois.shape == (0, 3)


def test_detections_are_scored_proposals(vocabulary):
    own = annotation([0, 1, RIDE])
    proposals = [(BOXES[0], BOXES[1], HORSE, 0.9, 0.5), (BOXES[0], BOXES[2], BALL, 0.9, 0.8)]
    given = outputs(own, proposals, [{RIDE: 1}, {RIDE: 0.75}, {HOLD: 0.5, THROW: 0.25}])
    found = to_detections("a", given, vocabulary)
    assert found.boxes.shape == (3, 4), "the person stands there once"
    np.testing.assert_array_equal(found.hois[:, 2], [HOLD, RIDE, THROW])
    np.testing.assert_allclose(found.scores, [0.36, 0.3375, 0.18], rtol=1e-5)
    np.testing.assert_array_equal(found.labels[found.hois[:, 0]], [PERSON] * 3)
    np.testing.assert_array_equal(found.labels[found.hois[:, 1]], [BALL, HORSE, BALL])
    np.testing.assert_array_equal(found.boxes[found.hois[0, 1]], BOXES[2])


def test_the_best_hundred(vocabulary):
    own = annotation()
    rng = np.random.default_rng(0)
    proposals = [(BOXES[0], BOXES[1], HORSE, 1, score) for score in rng.random(40)]
    given = outputs(own, proposals, [dict.fromkeys(range(10), 0.1)] * 40)
    found = to_detections("a", given, vocabulary)
    assert len(found.scores) == 100
    assert (np.diff(found.scores) <= 0).all()


def test_accuracy_of_no_images(vocabulary):
    overall, per_verb = action_accuracy([], vocabulary)
    assert np.isnan(overall) and np.isnan(per_verb).all()


def test_accuracy_counts_pairs_and_leaves_no_interaction_out(vocabulary):
    first = annotation([0, 1, RIDE], [0, 2, HOLD], [0, 2, THROW])
    second = annotation([0, 1, NO_INTERACTION], [0, 2, HOLD])
    images = [
        (first, outputs(first, [], [{RIDE: 0.9}, {THROW: 0.6, HOLD: 0.4}])),
        (second, outputs(second, [], [{RIDE: 0.9}, {THROW: 0.9}])),
    ]
    overall, per_verb = action_accuracy(images, vocabulary)
    assert overall == pytest.approx(2 / 3)
    assert per_verb[RIDE] == 1 and per_verb[THROW] == 1 and per_verb[HOLD] == 0.5
    assert np.isnan(per_verb[NO_INTERACTION])


@pytest.mark.parametrize(
    "proposals, wanted",
    [
        ([], (0, 0, 0)),
        ([(BOXES[0], BOXES[1], HORSE, 1, 1)], (1, 0.5, 0.5)),
        ([(BOXES[0], BOXES[1], BALL, 1, 1)], (1, 0, 0)),
        ([(BOXES[1], BOXES[1], HORSE, 1, 1), (BOXES[0], BOXES[0], BALL, 1, 1)], (1, 0.5, 0)),
        ([(BOXES[0] + 2, BOXES[1] + 3, HORSE, 1, 1), (BOXES[0], BOXES[2], BALL, 1, 1)], (1, 1, 1)),
    ],
)
def test_recall(vocabulary, proposals, wanted):
    own = annotation([0, 1, RIDE], [0, 2, HOLD])
    found = box_recall([(own, outputs(own, proposals, []))], vocabulary)
    assert (found["person"], found["object"], found["pair"]) == wanted


def test_recall_of_no_images(vocabulary):
    assert all(np.isnan(share) for share in box_recall([], vocabulary).values())


def test_annotated_pairs_as_detections(vocabulary):
    own = annotation([0, 1, RIDE], [0, 2, HOLD])
    proposals = [(BOXES[0], BOXES[1], HORSE, 0.9, 0.5)]
    given = outputs(own, proposals, [{RIDE: 0.75}, {HOLD: 0.5, THROW: 0.25}, {RIDE: 1}])
    found = to_detections("a", given, vocabulary, ANNOTATED)
    np.testing.assert_array_equal(found.hois[:, 2], [RIDE, HOLD, THROW])
    np.testing.assert_allclose(found.scores, [0.75, 0.5, 0.25], rtol=1e-5)


def test_recall_by_verb(vocabulary):
    first = annotation([0, 1, RIDE], [0, 2, HOLD], [0, 2, THROW])
    second = annotation([0, 2, HOLD])
    images = [
        (first, outputs(first, [(BOXES[0], BOXES[2], BALL, 1, 1)], [])),
        (second, outputs(second, [(BOXES[0], BOXES[2], HORSE, 1, 1)], [])),
    ]
    labelled, shares = pair_recall(images, vocabulary)
    assert labelled[[RIDE, HOLD, THROW]].tolist() == [1, 2, 1] and labelled.sum() == 4
    assert shares[[RIDE, HOLD, THROW]].tolist() == [0, 0.5, 1]
    assert np.isnan(shares[NO_INTERACTION])
    assert np.isnan(pair_recall([], vocabulary)[1]).all()


def test_held_images_are_read_as_often_as_wanted(finished):
    cache = open_cache(finished)
    there = Annotation(cache.image_ids[2], BOXES, np.zeros(3), np.zeros((0, 3)))
    images = CachedImages(cache, [annotation(), there])
    for _ in range(2):
        ((first, found),) = images
        assert first.image_id == cache.image_ids[2] and len(found.pairs) > 0
