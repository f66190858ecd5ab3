"""The benchmark's own part: labelled pictures without some actions, and pictures alone."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.more_images import Plan, choose, scores, write_datasets
from pipeline.datasets import open_dataset
from pipeline.errors import InputError
from pipeline.files import read_json
from pipeline.splits import load_split
from pipeline.world.write import write_world

VERBS = ("carry", "push", "kick", "throw")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("more") / "world"
    write_world(root, train=60, test=4, seed=2, workers=1)
    return root


@pytest.fixture
def plan(tmp_path):
    return Plan(Path("base"), tmp_path, VERBS, 3, 10, 30, 20, 8, 0.5, ())


def test_labelled_pictures_know_nothing_of_the_new_actions(world, plan):
    write_datasets(world, plan)
    whole = open_dataset(world)
    labelled, pictures = (open_dataset(plan.out / name) for name in ("labelled", "pictures"))
    verbs = [whole.vocabulary.verbs.index(verb) for verb in VERBS]
    found = labelled.load("train").annotations
    assert len(found) == 10 and not np.isin([row[2] for a in found for row in a.hois], verbs).any()
    assert all(len(one.hois) for one in found)
    alone = pictures.load("train").annotations
    assert len(alone) == 30 and not any(len(one.hois) for one in alone)
    names = {one.image_id for one in alone}
    assert not names & {one.image_id for one in found}
    hidden = [a for a in whole.load("train").annotations if a.image_id in names]
    assert np.isin([row[2] for a in hidden for row in a.hois], verbs).any()
    assert labelled.load("test").digest == whole.load("test").digest
    assert len(labelled.records("train")) == 10 and len(pictures.records("train")) == 30
    split = load_split(labelled.vocabulary, plan.out / "split.toml")
    assert np.flatnonzero(split.asked_verbs).tolist() == sorted(verbs)
    chosen = read_json(plan.out / "chosen.json")
    assert all(
        chosen["labels"][verb] == 0 < chosen["actions_in_unlabelled"][verb] for verb in VERBS
    )


def test_a_world_that_is_too_small(world, plan):
    annotations = open_dataset(world).load("train").annotations
    with pytest.raises(InputError, match="--labelled: expected at most the world's"):
        choose(annotations, [2], replace(plan, labelled=61))
    with pytest.raises(InputError, match=r"--unlabelled: expected .* world's 50 .* 51"):
        choose(annotations, [2], replace(plan, unlabelled=51))


def test_scores_of_new_and_of_labelled_verbs():
    results = {
        "metrics": {"unseen": 0.25, "seen": 0.75},
        "per_verb": {"carry": 0.2, "sit on": 0.4, "ride": 0.8},
    }
    found = scores(results, ("carry", "sit_on"))
    assert found["new_verbs"] == pytest.approx(0.3) and found["labelled_verbs"] == 0.8
