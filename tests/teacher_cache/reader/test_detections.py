import numpy as np

from pipeline.types import Pairs
from teacher_cache.reader.detections import pair_detections
from teacher_cache.reader.format import ANNOTATED, PROPOSED, TeacherOutputs

PERSON, HORSE, BALL = 0, 1, 4
RIDE, HOLD, THROW = 0, 3, 8
HUMAN, BOXES = (0, 0, 20, 40), {HORSE: (5, 20, 60, 60), BALL: (30, 0, 40, 10)}


def make_outputs(*rows):
    """Outputs of pairs: source, object, both scores, and probabilities by verb."""
    sources, labels, human_scores, object_scores, verbs = zip(*rows, strict=True)
    table = np.zeros((len(rows), 11), dtype=np.float32)
    for row, entries in enumerate(verbs):
        for verb, probability in entries.items():
            table[row, verb] = probability
    pairs = Pairs(
        human_boxes=np.array([HUMAN] * len(rows), np.float32),
        object_boxes=np.array([BOXES[label] for label in labels], np.float32),
        object_labels=np.array(labels, np.int64),
        human_scores=np.array(human_scores, np.float32),
        object_scores=np.array(object_scores, np.float32),
        sources=np.array(sources, np.uint8),
    )
    return TeacherOutputs(pairs, table, np.zeros(len(rows), int), np.zeros((1, 4)), None)


ANNOTATED_PAIR = (ANNOTATED, HORSE, 1, 1, {RIDE: 1})


def test_detections_are_scored_proposals(vocabulary):
    given = make_outputs(
        ANNOTATED_PAIR,
        (PROPOSED, HORSE, 0.9, 0.5, {RIDE: 0.75}),
        (PROPOSED, BALL, 0.9, 0.8, {HOLD: 0.5, THROW: 0.25}),
    )
    found = pair_detections("a", given, vocabulary)
    assert found.boxes.shape == (3, 4), "the person's box occurs once"
    np.testing.assert_array_equal(found.hois[:, 2], [HOLD, RIDE, THROW])
    np.testing.assert_allclose(found.scores, [0.36, 0.3375, 0.18], rtol=1e-5)
    np.testing.assert_array_equal(found.labels[found.hois[:, 0]], [PERSON] * 3)
    np.testing.assert_array_equal(found.labels[found.hois[:, 1]], [BALL, HORSE, BALL])
    np.testing.assert_array_equal(found.boxes[found.hois[0, 1]], BOXES[BALL])
    found = pair_detections("a", given, vocabulary, ANNOTATED)
    assert found.hois[:, 2].tolist() == [RIDE] and found.scores.tolist() == [1]


def test_an_image_without_proposals(vocabulary):
    empty = pair_detections("a", make_outputs(ANNOTATED_PAIR), vocabulary)
    assert empty.boxes.shape == (0, 4) and empty.hois.shape == (0, 3)


def test_at_most_a_hundred_detections(vocabulary):
    verbs = dict.fromkeys(range(10), 0.1)
    scores = np.random.default_rng(0).random(40)
    given = make_outputs(*((PROPOSED, HORSE, 1, score, verbs) for score in scores))
    found = pair_detections("a", given, vocabulary)
    assert len(found.scores) == 100
    assert (np.diff(found.scores) <= 0).all()
