import numpy as np
import pytest

from pipeline.toy.rng import BLOCK, Dice


@pytest.fixture
def dice():
    return Dice(np.random.default_rng(0))


def test_same_generator_same_draws():
    first, second = (Dice(np.random.default_rng(3)) for _ in range(2))
    draws = [first.uniform() for _ in range(BLOCK + 5)]
    assert draws == [second.uniform() for _ in range(BLOCK + 5)]
    assert len(set(draws)) == len(draws)


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (-3.0, -2.0), (5.0, 5.0)])
def test_between_stays_within(dice, low, high):
    assert all(low <= dice.between(low, high) <= high for _ in range(100))


@pytest.mark.parametrize(("probability", "expected"), [(0.0, 0), (1.0, 200)])
def test_sure_chances(dice, probability, expected):
    assert sum(dice.chance(probability) for _ in range(200)) == expected


def test_below_and_pick_reach_everything(dice):
    assert {dice.below(4) for _ in range(200)} == {0, 1, 2, 3}
    assert {dice.pick("abc") for _ in range(200)} == set("abc")


@pytest.mark.parametrize(
    ("weights", "never"), [((1.0, 0.0, 3.0), {1}), ((0.0, 2.0), {0}), ((0.5,), set())]
)
def test_weighted_never_takes_what_weighs_nothing(dice, weights, never):
    drawn = {dice.weighted(weights) for _ in range(300)}
    assert drawn == set(range(len(weights))) - never


def test_weighted_follows_weights(dice):
    drawn = [dice.weighted((1.0, 3.0)) for _ in range(4000)]
    assert np.mean(drawn) == pytest.approx(0.75, abs=0.03)


@pytest.mark.parametrize("items", [[], [1], list(range(9))])
def test_shuffled_keeps_all_items(dice, items):
    assert sorted(dice.shuffled(items)) == items
