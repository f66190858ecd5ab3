import numpy as np
import pytest

from pipeline.toy.rng import BLOCK_SIZE, ScalarRNG


@pytest.fixture
def rng():
    return ScalarRNG(np.random.default_rng(0))


def test_same_generator_gives_the_same_numbers():
    first, second = (ScalarRNG(np.random.default_rng(3)) for _ in range(2))
    draws = [first.random() for _ in range(BLOCK_SIZE + 5)]
    assert draws == [second.random() for _ in range(BLOCK_SIZE + 5)]
    assert len(set(draws)) == len(draws)


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (-3.0, -2.0), (5.0, 5.0)])
def test_uniform_stays_in_range(rng, low, high):
    assert all(low <= rng.uniform(low, high) <= high for _ in range(100))


@pytest.mark.parametrize(("probability", "expected"), [(0.0, 0), (1.0, 200)])
def test_bernoulli_of_certain_events(rng, probability, expected):
    assert sum(rng.bernoulli(probability) for _ in range(200)) == expected


def test_randrange_and_choice_reach_all_values(rng):
    assert {rng.randrange(4) for _ in range(200)} == {0, 1, 2, 3}
    assert {rng.choice("abc") for _ in range(200)} == set("abc")


@pytest.mark.parametrize(
    ("weights", "never"), [((1.0, 0.0, 3.0), {1}), ((0.0, 2.0), {0}), ((0.5,), set())]
)
def test_weighted_index_never_returns_zero_weights(rng, weights, never):
    drawn = {rng.weighted_index(weights) for _ in range(300)}
    assert drawn == set(range(len(weights))) - never


def test_weighted_index_follows_the_weights(rng):
    drawn = [rng.weighted_index((1.0, 3.0)) for _ in range(4000)]
    assert np.mean(drawn) == pytest.approx(0.75, abs=0.03)


@pytest.mark.parametrize("items", [[], [1], list(range(9))])
def test_shuffled_keeps_all_items(rng, items):
    assert sorted(rng.shuffled(items)) == items
