from collections import Counter

import numpy as np
import pytest

from pipeline.toy.canvas import IMAGE_SIZE
from pipeline.toy.palette import PALETTES, Palette
from pipeline.toy.rng import ScalarRNG
from pipeline.toy.scene_spec import (
    HANDS_FREE_VERBS,
    RARE_PERIOD,
    PersonSpec,
    covered_share,
    place_groups,
    sample_scene_spec,
    toy_vocabulary,
)

VOCABULARY = toy_vocabulary()


def specs_of(part, count, seed=0):
    return [
        sample_scene_spec(seed, part, index, ScalarRNG(np.random.default_rng([seed, index])))
        for index in range(count)
    ]


@pytest.mark.parametrize("part", ["train", "test", "models"])
def test_one_to_three_people(part):
    assert {len(specs) for specs in specs_of(part, 100)} == {1, 2, 3}


@pytest.mark.parametrize(("part", "images"), [("train", 3000), ("test", 500)])
@pytest.mark.parametrize("seed", [0, 4])
def test_rare_interactions_have_exact_counts(part, images, seed):
    specs = [spec for people in specs_of(part, images, seed) for spec in people]
    counts = Counter(spec.interaction for spec in specs)
    hands = {spec.in_hand for spec in specs}
    assert {counts[index] for index in VOCABULARY.rare} == {images // RARE_PERIOD[part]}
    assert not hands & set(VOCABULARY.rare)
    assert 3 <= images // RARE_PERIOD[part] <= 9


def test_interactions_of_the_parts_are_balanced():
    """Common ones are common; the models' part has no rare ones, and its verbs are balanced."""
    counts = Counter(spec.interaction for people in specs_of("train", 3000) for spec in people)
    common = [counts[i] for i in range(VOCABULARY.num_interactions) if i not in VOCABULARY.rare]
    assert min(common) >= 60
    counts = Counter(spec.interaction for people in specs_of("models", 2000) for spec in people)
    assert min(counts[index] for index in VOCABULARY.rare) >= 30
    verbs = np.zeros(VOCABULARY.num_verbs)
    for interaction, count in counts.items():
        verbs[VOCABULARY.interactions[interaction][0]] += count
    usual = np.delete(verbs, VOCABULARY.no_interaction)
    assert usual == pytest.approx(np.full(10, usual.mean()), rel=0.2)
    assert verbs[VOCABULARY.no_interaction] == pytest.approx(1.5 * usual.mean(), rel=0.2)


def test_only_riding_or_sitting_people_hold_a_second_object():
    holders = Counter()
    for spec in (spec for people in specs_of("train", 2000) for spec in people):
        verb = VOCABULARY.verbs[VOCABULARY.interactions[spec.interaction][0]]
        holders[verb in HANDS_FREE_VERBS, spec.in_hand is not None] += 1
        if spec.in_hand is not None:
            assert VOCABULARY.interactions[spec.in_hand][0] == VOCABULARY.verbs.index("hold")
    assert holders[False, True] == 0
    share = holders[True, True] / (holders[True, True] + holders[True, False])
    assert share == pytest.approx(0.27, abs=0.06)


def place(specs, seed, horizon=60):
    return place_groups(
        specs, Palette(PALETTES[0]), horizon, ScalarRNG(np.random.default_rng(seed))
    )


def test_no_people_give_distractors_only():
    assert all(group.spec is None for group in place([], 0))


@pytest.mark.parametrize("interaction", range(VOCABULARY.num_interactions))
def test_first_group_is_always_placed(interaction):
    for seed in range(8):
        for horizon in (46, 72):
            placed = place([PersonSpec(interaction)], seed, horizon)
            assert [group.spec.interaction for group in placed if group.spec] == [interaction]


def test_groups_are_inside_ordered_and_separate():
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
