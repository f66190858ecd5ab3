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


def test_ranges(rng):
    assert all(-3 <= rng.uniform(-3.0, -2.0) < -2 for _ in range(100))
    assert [sum(rng.bernoulli(share) for _ in range(50)) for share in (0.0, 1.0)] == [0, 50]
    assert {rng.choice("abc") for _ in range(200)} == set("abc")
    assert sorted(rng.shuffled(range(9))) == list(range(9)) and rng.shuffled([]) == []


@pytest.mark.parametrize("weights", [(1.0, 0.0, 3.0), (0.0, 2.0), (0.5,)])
def test_weighted_index_follows_the_weights(rng, weights):
    drawn = np.bincount([rng.weighted_index(weights) for _ in range(2000)], minlength=len(weights))
    assert drawn / 2000 == pytest.approx(np.array(weights) / sum(weights), abs=0.04)
    assert (drawn > 0).tolist() == [weight > 0 for weight in weights]
