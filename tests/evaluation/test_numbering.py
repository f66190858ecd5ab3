import dataclasses

import numpy as np
import pytest

from evaluation.predictions import MIN_PAIRS, check_numbering, verb_object_pairs
from pipeline.types import Detections
from pipeline.utils.errors import InputError
from pipeline.vocabulary import load_vocabulary


@pytest.fixture(params=["hico-det", "vcoco", "toy"])
def vocabulary(request):
    return load_vocabulary(request.param)


@pytest.fixture
def plausible(vocabulary):
    """Detections of interactions of the vocabulary, whose verbs are not at the numbers' ends."""
    rng = np.random.default_rng(0)
    inner = [pair for pair in vocabulary.interactions if 0 < pair[0] < vocabulary.num_verbs - 1]
    items = []
    for index in range(10):
        pairs = [inner[row] for row in rng.integers(0, len(inner), 20)]
        labels = np.array([vocabulary.person, *(label for _, label in pairs)])
        hois = np.array([(0, row + 1, verb) for row, (verb, _) in enumerate(pairs)])
        boxes, scores = np.zeros((len(labels), 4), np.float32), np.ones(len(hois))
        items.append(Detections(f"{index}.jpg", boxes, labels, hois, scores))
    return items


def shifted(items, by):
    return [dataclasses.replace(item, hois=item.hois + np.array([0, 0, by])) for item in items]


def test_nothing(tmp_path, vocabulary):
    empty = Detections(
        "a.jpg", np.zeros((0, 4)), np.zeros(0, int), np.zeros((0, 3), int), np.zeros(0)
    )
    check_numbering(tmp_path, [empty], vocabulary)


def test_plausible_numbers_pass(tmp_path, vocabulary, plausible):
    check_numbering(tmp_path, plausible, vocabulary)


def test_verbs_one_off_are_named(tmp_path, vocabulary, plausible):
    """A 0-based file was read one too low where 1 was expected, a 1-based one too high."""
    first = vocabulary.first_verb_id
    wrong = shifted(plausible, -1 if first else 1)
    expected = f"counted from {first}, found verbs counted from {1 - first}: so counted 100 %"
    with pytest.raises(InputError, match=expected):
        check_numbering(tmp_path, wrong, vocabulary)


def test_other_wrong_pairs_are_left_to_the_scores(tmp_path, vocabulary, plausible):
    """A file may list whatever its model says: half of it nonsense is no other numbering."""
    mixed = [*plausible[:5], *shifted(plausible[5:], -1)]
    check_numbering(tmp_path, mixed, vocabulary)


def test_nothing_but_nonsense_is_left_to_the_scores(tmp_path):
    toy = load_vocabulary("toy")
    verb, label = np.argwhere(~toy.valid & ~np.roll(toy.valid, -1, axis=0))[0]
    count = MIN_PAIRS
    item = Detections(
        "a.jpg",
        np.zeros((2, 4)),
        np.array([toy.person, label]),
        np.tile([0, 1, verb], (count, 1)),
        np.ones(count),
    )
    check_numbering(tmp_path, [item], toy)
    verbs, objects = verb_object_pairs([item])
    assert len(verbs) == count and not toy.valid[verbs, objects].any()
