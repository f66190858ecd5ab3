from dataclasses import replace

import numpy as np
import pytest

from pipeline.splits import FULL, load_split
from pipeline.types import Annotation
from teacher_cache.format import ImageAnswers
from teacher_cache.pairing import annotated_pairs
from teacher_cache.seen_pairs import pair_labels, seen_actions, seen_pairs

PERSON, HORSE, BALL = 0, 1, 4
RIDE, CARRY, HOLD, KICK, THROW, NO_INTERACTION = 0, 2, 3, 4, 8, 10
BOXES = np.array([[0, 0, 20, 40], [5, 20, 60, 60], [30, 0, 40, 10]], dtype=np.float32)


def annotation(*hois):
    return Annotation("a", BOXES, np.array([PERSON, HORSE, BALL]), np.array(hois).reshape(-1, 3))


def held(own):
    """An annotation with answers about its own pairs."""
    pairs = annotated_pairs(own)
    return own, ImageAnswers(
        pairs, np.zeros((len(pairs), 11)), np.zeros(len(pairs), int), np.zeros((1, 4)), None
    )


def test_pair_labels_follow_the_pairs(vocabulary):
    own = annotation([0, 2, HOLD], [0, 1, RIDE], [0, 2, THROW], [0, -1, HOLD])
    labels = pair_labels(own, vocabulary)
    assert len(labels) == len(annotated_pairs(own)) == 2
    assert np.flatnonzero(labels[0]).tolist() == [HOLD, THROW]
    assert np.flatnonzero(labels[1]).tolist() == [RIDE]


@pytest.mark.parametrize("name", [FULL, "ua", "uc", "uo"])
def test_seen_actions_are_the_splits(vocabulary, name):
    split = load_split(vocabulary, name)
    table = seen_actions(split, vocabulary)
    seen = {
        pair
        for hoi, pair in enumerate(vocabulary.interactions)
        if hoi not in split.unseen and pair[0] != NO_INTERACTION
    }
    assert set(map(tuple, np.argwhere(table))) == seen


def test_no_images(vocabulary):
    assert list(seen_pairs([], load_split(vocabulary, "ua"), vocabulary)) == []


@pytest.mark.parametrize(
    "hois, rows, labels",
    [
        ([], [], []),
        ([[0, 1, RIDE], [0, 2, HOLD]], [0, 1], [[RIDE], [HOLD]]),
        ([[0, 1, NO_INTERACTION], [0, 2, HOLD]], [1], [[HOLD]]),
        ([[0, 2, KICK]], [], []),
        ([[0, 2, KICK], [0, 2, HOLD], [0, 1, RIDE]], [0, 1], [[HOLD], [RIDE]]),
    ],
)
def test_only_pairs_with_a_seen_label_count(vocabulary, hois, rows, labels):
    (found,) = seen_pairs([held(annotation(*hois))], load_split(vocabulary, "ua"), vocabulary)
    assert found.rows.tolist() == rows
    assert [np.flatnonzero(row).tolist() for row in found.labels] == labels
    assert not found.possible[:, [CARRY, KICK, NO_INTERACTION]].any()
    assert (found.possible.sum(axis=1) > 1).all() and (found.labels <= found.possible).all()


def test_a_pair_without_a_choice_tells_nothing(vocabulary, tmp_path):
    file = tmp_path / "narrow.toml"
    file.write_text('unseen_verbs = ["carry", "kick", "throw", "point", "jump"]')
    own = annotation([0, 2, HOLD], [0, 1, RIDE])
    (found,) = seen_pairs([held(own)], load_split(vocabulary, file), vocabulary)
    assert found.object_labels.tolist() == [HORSE], "a ball can only be held"


def test_unseen_labels_change_nothing(vocabulary):
    split = load_split(vocabulary, "ua")
    own = annotation([0, 2, HOLD], [0, 2, KICK], [0, 1, RIDE])
    pairs, answers = held(own)
    other = replace(pairs, hois=np.array([[0, 2, HOLD], [0, 2, CARRY], [0, 1, RIDE]]))
    one, two = (next(seen_pairs([(each, answers)], split, vocabulary)) for each in (pairs, other))
    for name in ("rows", "labels", "possible"):
        np.testing.assert_array_equal(getattr(one, name), getattr(two, name))
