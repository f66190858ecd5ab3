"""The study's own datasets: pictures alone, pictures that lack actions, a verb never heard of."""

import json

import numpy as np
import pytest

from benchmarks.study.lacking import choose, write_lacking
from benchmarks.study.others import others, sentence
from benchmarks.study.pictures import write_pictures
from benchmarks.study.pieces import SPLITS
from benchmarks.study.unheard import without_verb, write_smaller_toy
from pipeline.datasets.dataset import open_dataset
from pipeline.splits import load_split
from pipeline.toy.generate import write_toy
from pipeline.utils.errors import InputError
from pipeline.vocabulary import load_vocabulary, vocabulary_from_dict

LACKED = ("carry", "push", "kick", "throw")


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    root = tmp_path_factory.mktemp("study") / "toy"
    write_toy(root, train=60, test=4, seed=2, workers=1)
    return root


def paths(dataset, part):
    return [record.path.resolve() for record in dataset.records(part)]


def test_pictures_alone(toy, tmp_path):
    write_pictures(toy, tmp_path / "alone")
    whole, alone = open_dataset(toy), open_dataset(tmp_path / "alone")
    found = alone.load("train").annotations
    assert len(found) == 60 and not any(len(one.hois) for one in found)
    assert paths(alone, "train") == paths(whole, "train")


def test_labelled_pictures_that_lack_actions(toy, tmp_path):
    write_lacking(toy, tmp_path / "some", LACKED, 10, seed=3)
    whole, some = open_dataset(toy), open_dataset(tmp_path / "some")
    verbs = [whole.vocabulary.verbs.index(verb) for verb in LACKED]
    found = some.load("train").annotations
    assert len(found) == 10 and all(len(one.hois) for one in found)
    assert not np.isin([row[2] for one in found for row in one.hois], verbs).any()
    assert set(paths(some, "train")) < set(paths(whole, "train"))
    own = {one.image_id: one for one in whole.load("train").annotations}
    for one in found:
        assert (one.hois == own[one.image_id].hois).all()
        assert (one.boxes == own[one.image_id].boxes).all()
    assert some.load("test").digest == whole.load("test").digest
    split = load_split(some.vocabulary, SPLITS / "new-actions.toml")
    assert np.flatnonzero(split.distilled_verbs).tolist() == sorted(verbs)


def test_the_choice_of_pictures_is_seeded_and_bounded():
    kicks, holds = np.array([[0, 1, 4]]), np.array([[0, 1, 3]])
    hois = [kicks, holds, np.zeros((0, 3), int), holds, holds, holds]
    assert choose(hois, [4], 4, seed=0) == [1, 3, 4, 5]
    draws = {tuple(choose(hois, [4], 2, seed)) for seed in range(20)}
    assert len(draws) > 1 and choose(hois, [4], 2, 7) == choose(hois, [4], 2, 7)
    with pytest.raises(InputError, match="--count: expected at most 4 such pictures, found 5"):
        choose(hois, [4], 5, seed=0)


@pytest.mark.parametrize("verb", ["ride", "hold", "point"])
def test_nothing_but_the_verb_is_missing(toy, verb, tmp_path):
    write_smaller_toy(toy, verb, tmp_path / "smaller")
    whole, smaller = open_dataset(toy), open_dataset(tmp_path / "smaller")
    assert verb not in smaller.vocabulary.verbs
    assert len(smaller.vocabulary.verbs) == len(whole.vocabulary.verbs) - 1
    assert verb not in json.dumps(smaller.vocabulary.to_dict()["verbs"])
    gone = 0
    for part in ("train", "test"):
        assert paths(smaller, part) == paths(whole, part)
        for mine, theirs in zip(
            smaller.load(part).annotations, whole.load(part).annotations, strict=True
        ):
            assert (mine.boxes == theirs.boxes).all() and (mine.labels == theirs.labels).all()
            named = _named(theirs.hois, whole.vocabulary)
            gone += sum(name == verb for *_, name in named)
            kept = [row for row in named if row[2] != verb]
            assert kept == _named(mine.hois, smaller.vocabulary)
    assert gone > 0


def _named(hois, vocabulary):
    return [(human, thing, vocabulary.verbs[verb]) for human, thing, verb in hois]


def test_a_vocabulary_without_a_verb_is_one():
    whole = load_vocabulary("toy")
    for verb in whole.verbs:
        smaller = vocabulary_from_dict(without_verb(whole, verb), "smaller")
        names = {whole.interaction_name(hoi) for hoi in range(whole.num_interactions)}
        kept = {smaller.interaction_name(hoi) for hoi in range(smaller.num_interactions)}
        number = whole.verbs.index(verb)
        assert names - kept == {
            whole.interaction_name(hoi)
            for hoi, (own, _) in enumerate(whole.interactions)
            if own == number
        }
        assert kept <= names


def test_the_control_says_other_sentences_about_the_same_objects():
    toy = load_vocabulary("toy")
    assert sentence(toy, "kick", "kick") == "kick=kicking:ball,box,chair"
    assert sentence(toy, "kick", "jump") == "kick=jumping over:ball,box,chair"
    drawn = [others(toy, "kick", 3, seed) for seed in range(10)]
    assert drawn == [others(toy, "kick", 3, seed) for seed in range(10)]
    assert len({tuple(names) for names in drawn}) > 1
    named = {name for names in drawn for name in names}
    assert not named & {"kick", "no_interaction"} and all(len(set(names)) == 3 for names in drawn)
    assert len(others(toy, "kick", 99, 0)) == 9
