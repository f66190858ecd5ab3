"""Datasets of the study: without labels, without images of some verbs, without one verb."""

import numpy as np
import pytest

from benchmarks.study.artifacts import SPLITS
from benchmarks.study.datasets import draw_images, main
from benchmarks.study.other_prompts import draw_other_verbs, prompt_to_add
from pipeline.datasets.dataset import open_dataset
from pipeline.splits import load_split
from pipeline.toy.generate import write_toy
from pipeline.utils.errors import InputError
from pipeline.vocabulary import load_vocabulary

EXCLUDED = ("carry", "push", "kick", "throw")


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    root = tmp_path_factory.mktemp("study") / "toy"
    write_toy(root, train=60, test=4, seed=2, workers=1)
    return root


@pytest.fixture
def derive(toy, tmp_path):
    """`derive(command, arguments)` gives the toy dataset and the one that a command makes of it."""

    def run(command, *arguments):
        main.main(
            [command, *arguments, str(toy), "--out", str(tmp_path / "out")], standalone_mode=False
        )
        return open_dataset(toy), open_dataset(tmp_path / "out")

    return run


def paths(dataset, part):
    return [record.path.resolve() for record in dataset.records(part)]


def test_unlabelled_images(derive):
    whole, alone = derive("unlabelled")
    found = alone.load("train").annotations
    assert len(found) == 60 and not any(len(one.hois) for one in found)
    assert paths(alone, "train") == paths(whole, "train")


def test_labelled_images_without_some_verbs(derive):
    whole, some = derive("images-without", ",".join(EXCLUDED), "--count", "10", "--seed", "3")
    verbs = [whole.vocabulary.verbs.index(verb) for verb in EXCLUDED]
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


def test_the_choice_of_images_is_seeded_and_bounded():
    kicks, holds = np.array([[0, 1, 4]]), np.array([[0, 1, 3]])
    hois = [kicks, holds, np.zeros((0, 3), int), holds, holds, holds]
    assert draw_images(hois, [4], 4, seed=0) == [1, 3, 4, 5]
    draws = {tuple(draw_images(hois, [4], 2, seed)) for seed in range(20)}
    assert len(draws) > 1 and draw_images(hois, [4], 2, 7) == draw_images(hois, [4], 2, 7)
    with pytest.raises(InputError, match="--count: expected at most 4 such images, found 5"):
        draw_images(hois, [4], 5, seed=0)


def test_only_the_verb_is_removed(derive):
    verb = "ride"
    whole, smaller = derive("without-verb", verb)
    kept = [name for name in whole.vocabulary.verbs if name != verb]
    assert list(smaller.vocabulary.verbs) == kept
    assert set(smaller.vocabulary.interaction_names) == {
        names for names in whole.vocabulary.interaction_names if names[0] != verb
    }
    removed = 0
    for part in ("train", "test"):
        assert paths(smaller, part) == paths(whole, part)
        pairs = zip(smaller.load(part).annotations, whole.load(part).annotations, strict=True)
        for mine, theirs in pairs:
            assert (mine.boxes == theirs.boxes).all() and (mine.labels == theirs.labels).all()
            named = _named(theirs.hois, whole.vocabulary)
            left = [row for row in named if row[2] != verb]
            assert left == _named(mine.hois, smaller.vocabulary)
            removed += len(named) - len(left)
    assert removed > 0


def test_only_the_objects_are_removed(derive):
    names = ("bike", "umbrella")
    whole, smaller = derive("without-objects", ",".join(names))
    old, new = whole.vocabulary, smaller.vocabulary
    assert new.objects == tuple(name for name in old.objects if name not in names)
    assert new.verbs == old.verbs and set(new.interaction_names) == {
        pair for pair in old.interaction_names if pair[1] not in names
    }
    removed = 0
    for part in ("train", "test"):
        assert paths(smaller, part) == paths(whole, part)
        pairs = zip(smaller.load(part).annotations, whole.load(part).annotations, strict=True)
        for mine, theirs in pairs:
            expected = [row for row in _labels(theirs, old) if row[1] not in names]
            assert _labels(mine, new) == expected
            assert not {new.objects[label] for label in mine.labels} & {*names}
            removed += len(theirs.hois) - len(mine.hois)
    assert removed > 0


def _labels(annotation, vocabulary):
    """Verb, object, and both boxes of every label."""
    return [
        (
            vocabulary.verbs[verb],
            vocabulary.objects[annotation.labels[thing]],
            *annotation.boxes[[human, thing]].flatten().tolist(),
        )
        for human, thing, verb in annotation.hois
    ]


def _named(hois, vocabulary):
    return [(human, thing, vocabulary.verbs[verb]) for human, thing, verb in hois]


def test_the_control_has_prompts_of_other_verbs_with_the_same_objects():
    toy = load_vocabulary("toy")
    assert prompt_to_add(toy, "kick", "kick") == "kick=kicking:ball,box,chair"
    assert prompt_to_add(toy, "kick", "jump") == "kick=jumping over:ball,box,chair"
    drawn = [draw_other_verbs(toy, "kick", seed) for seed in range(10)]
    assert drawn == [draw_other_verbs(toy, "kick", seed) for seed in range(10)]
    assert len({tuple(names) for names in drawn}) > 1
    named = {name for names in drawn for name in names}
    assert not named & {"kick", "no_interaction"} and all(len(set(names)) == 3 for names in drawn)
