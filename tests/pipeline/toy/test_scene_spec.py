from collections import Counter

import numpy as np
import pytest

from pipeline.toy.rng import Dice
from pipeline.toy.scene_spec import FREE_HANDED, RARE_PERIOD, choose_wishes, world_vocabulary

VOCABULARY = world_vocabulary()


def wishes_of(part, count, seed=0):
    return [
        choose_wishes(seed, part, index, Dice(np.random.default_rng([seed, index])))
        for index in range(count)
    ]


@pytest.mark.parametrize("part", ["train", "test", "models"])
def test_one_to_three_people(part):
    assert {len(wishes) for wishes in wishes_of(part, 100)} == {1, 2, 3}


@pytest.mark.parametrize(("part", "pictures"), [("train", 3000), ("test", 500)])
@pytest.mark.parametrize("seed", [0, 4])
def test_rare_interactions_come_exactly_so_often(part, pictures, seed):
    wishes = [wish for its in wishes_of(part, pictures, seed) for wish in its]
    counts = Counter(wish.interaction for wish in wishes)
    hands = {wish.in_hand for wish in wishes}
    assert {counts[index] for index in VOCABULARY.rare} == {pictures // RARE_PERIOD[part]}
    assert not hands & set(VOCABULARY.rare)
    assert 3 <= pictures // RARE_PERIOD[part] <= 9


def test_common_interactions_are_common():
    counts = Counter(wish.interaction for its in wishes_of("train", 3000) for wish in its)
    common = [counts[i] for i in range(VOCABULARY.num_interactions) if i not in VOCABULARY.rare]
    assert min(common) >= 60


def test_models_know_no_rarity():
    counts = Counter(wish.interaction for its in wishes_of("models", 2000) for wish in its)
    rare = [counts[index] for index in VOCABULARY.rare]
    assert min(rare) >= 30


def test_verbs_are_balanced_but_for_no_interaction():
    wishes = [wish.interaction for its in wishes_of("models", 2000) for wish in its]
    verbs = Counter(VOCABULARY.interactions[interaction][0] for interaction in wishes)
    usual = np.mean([verbs[verb] for verb in range(10)])
    for verb in range(10):
        assert verbs[verb] == pytest.approx(usual, rel=0.2)
    assert verbs[VOCABULARY.no_interaction] == pytest.approx(1.5 * usual, rel=0.2)


def test_only_riders_and_sitters_hold_a_second_thing():
    holders = Counter()
    for wish in (wish for its in wishes_of("train", 2000) for wish in its):
        verb = VOCABULARY.verbs[VOCABULARY.interactions[wish.interaction][0]]
        holders[verb in FREE_HANDED, wish.in_hand is not None] += 1
        if wish.in_hand is not None:
            assert VOCABULARY.interactions[wish.in_hand][0] == VOCABULARY.verbs.index("hold")
    assert holders[False, True] == 0
    share = holders[True, True] / (holders[True, True] + holders[True, False])
    assert share == pytest.approx(0.27, abs=0.06)
