import numpy as np
import pytest

from pipeline.toy.canvas import SIZE
from pipeline.toy.palette import PALETTES, Palette
from pipeline.toy.rng import Dice
from pipeline.toy.scene_spec import Wish, covered, place_all, world_vocabulary

VOCABULARY = world_vocabulary()


def place(wishes, seed, horizon=60):
    return place_all(wishes, Palette(PALETTES[0]), horizon, Dice(np.random.default_rng(seed)))


@pytest.mark.parametrize(
    ("box", "other", "margin", "expected"),
    [
        ((0, 0, 2, 2), (5, 5, 6, 6), 0.0, 0.0),
        ((0, 0, 2, 2), (0, 0, 2, 2), 0.0, 1.0),
        ((0, 0, 2, 2), (1, 0, 9, 2), 0.0, 0.5),
        ((0, 0, 2, 2), (3, 0, 4, 2), 2.0, 0.5),
    ],
)
def test_covered(box, other, margin, expected):
    assert covered(box, other, margin) == pytest.approx(expected)


def test_nobody_leaves_only_loose_things():
    assert all(group.wish is None for group in place([], 0))


@pytest.mark.parametrize("interaction", range(VOCABULARY.num_interactions))
def test_the_first_always_finds_room(interaction):
    for seed in range(8):
        for horizon in (46, 72):
            placed = place([Wish(interaction)], seed, horizon)
            assert [group.wish.interaction for group in placed if group.wish] == [interaction]


def test_groups_are_inside_ordered_and_apart():
    rng = np.random.default_rng(0)
    for seed in range(60):
        wishes = [Wish(int(index)) for index in rng.integers(0, 50, 3)]
        placed = place(wishes, seed)
        rows = [group.spot.imag for group in placed]
        assert rows == sorted(rows)
        for group in placed:
            left, top, right, bottom = group.union
            assert 0 <= left < right <= SIZE and 0 <= top < bottom <= SIZE
            for other in placed:
                if other is not group:
                    assert max(covered(box, other.union) for box in group.boxes.values()) < 0.13
