import numpy as np
import pytest

from pipeline.toy.canvas import IMAGE_SIZE
from pipeline.toy.palette import PALETTES, Palette
from pipeline.toy.rng import ScalarRNG
from pipeline.toy.scene_spec import PersonSpec, covered_share, place_groups, toy_vocabulary

VOCABULARY = toy_vocabulary()


def place(specs, seed, horizon=60):
    return place_groups(
        specs, Palette(PALETTES[0]), horizon, ScalarRNG(np.random.default_rng(seed))
    )


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
    assert covered_share(box, other, margin) == pytest.approx(expected)


def test_nobody_leaves_only_loose_things():
    assert all(group.spec is None for group in place([], 0))


@pytest.mark.parametrize("interaction", range(VOCABULARY.num_interactions))
def test_the_first_always_finds_room(interaction):
    for seed in range(8):
        for horizon in (46, 72):
            placed = place([PersonSpec(interaction)], seed, horizon)
            assert [group.spec.interaction for group in placed if group.spec] == [interaction]


def test_groups_are_inside_ordered_and_apart():
    rng = np.random.default_rng(0)
    for seed in range(60):
        specs = [PersonSpec(int(index)) for index in rng.integers(0, 50, 3)]
        placed = place(specs, seed)
        rows = [group.position.imag for group in placed]
        assert rows == sorted(rows)
        for group in placed:
            left, top, right, bottom = group.box
            assert 0 <= left < right <= IMAGE_SIZE and 0 <= top < bottom <= IMAGE_SIZE
            for other in placed:
                if other is not group:
                    assert max(covered_share(box, other.box) for box in group.boxes.values()) < 0.13
