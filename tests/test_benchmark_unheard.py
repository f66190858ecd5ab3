"""The benchmark's own part: a world that has never heard of a verb."""

import json

import pytest

from benchmarks.unheard import without_verb, write_smaller_world
from pipeline.datasets import open_dataset
from pipeline.vocabulary import from_dict, load_vocabulary
from pipeline.world.write import write_world


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("unheard") / "world"
    write_world(root, train=30, test=4, seed=2, workers=1)
    return root


@pytest.mark.parametrize("verb", ["ride", "hold", "point"])
def test_nothing_but_the_verb_is_missing(world, verb, tmp_path):
    write_smaller_world(world, verb, tmp_path / "smaller")
    whole, smaller = open_dataset(world), open_dataset(tmp_path / "smaller")
    assert verb not in smaller.vocabulary.verbs
    assert len(smaller.vocabulary.verbs) == len(whole.vocabulary.verbs) - 1
    assert verb not in json.dumps(smaller.vocabulary.to_dict()["verbs"])
    gone = 0
    for part in ("train", "test"):
        assert [r.path.resolve() for r in smaller.records(part)] == [
            r.path.resolve() for r in whole.records(part)
        ]
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
    whole = load_vocabulary("world")
    for verb in whole.verbs:
        smaller = from_dict(without_verb(whole, verb), "smaller")
        names = {whole.interaction_name(hoi) for hoi in range(whole.num_interactions)}
        kept = {smaller.interaction_name(hoi) for hoi in range(smaller.num_interactions)}
        number = whole.verbs.index(verb)
        assert names - kept == {
            whole.interaction_name(hoi)
            for hoi, (own, _) in enumerate(whole.interactions)
            if own == number
        }
        assert kept <= names
