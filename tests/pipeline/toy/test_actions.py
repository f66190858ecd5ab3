import numpy as np
import pytest

from pipeline.toy.actions import ACTIONS, DECORATION, draw_action
from pipeline.toy.canvas import enclosing_box
from pipeline.toy.objects import make_object
from pipeline.toy.palette import PALETTES, Palette
from pipeline.toy.people import sample_appearance
from pipeline.toy.rng import ScalarRNG
from pipeline.toy.scene_spec import toy_vocabulary

VOCABULARY = toy_vocabulary()
NAMES = [
    (VOCABULARY.verbs[verb], VOCABULARY.objects[label]) for verb, label in VOCABULARY.interactions
]


def boxes(verb, name, seed=0, in_hand=None):
    """Boxes of one group by owner, in units of the body height."""
    rng, palette = ScalarRNG(np.random.default_rng(seed)), Palette(PALETTES[0])
    obj = make_object(name, palette, rng, 0.3)
    second = in_hand and make_object(in_hand, palette, rng, 0.3)
    found = {}
    for owner, sketch in draw_action(verb, obj, sample_appearance(palette, rng), rng, second):
        found.setdefault(owner, []).append(sketch.bounds())
    return {owner: enclosing_box(part_boxes) for owner, part_boxes in found.items()}


def gap(first, second):
    """Horizontal distance of two boxes, negative if they overlap."""
    return max(second[0] - first[2], first[0] - second[2])


def test_every_verb_has_an_action():
    assert set(ACTIONS) == set(VOCABULARY.verbs)


@pytest.mark.parametrize(("verb", "name"), NAMES)
def test_positions_of_person_and_object(verb, name):
    for seed in range(3):
        found = boxes(verb, name, seed)
        left, top, right, bottom = enclosing_box(found.values())
        assert bottom < 0.08 and right - left < 3.0 and bottom - top < 2.3
        person, obj = found[0], found[1]
        if verb in ("pull", "point", "throw", "no_interaction"):
            assert gap(person, obj) > 0.0
        else:
            assert gap(person, obj) < 0.05
        if verb == "carry":
            assert (obj[1] + obj[3]) / 2 < person[1] + 0.1, "above the head"
        if verb == "jump":
            assert person[3] < -0.1 and (person[1] + person[3]) / 2 < obj[1], "above the object"


@pytest.mark.parametrize("verb", ["pull", "throw"])
def test_ropes_and_streaks_are_decoration(verb):
    assert DECORATION in boxes(verb, "box")


@pytest.mark.parametrize("verb", ["ride", "sit_on"])
@pytest.mark.parametrize("in_hand", ["ball", "umbrella", "box", "skateboard", "dog"])
def test_second_object_is_held(verb, in_hand):
    found = boxes(verb, "horse", in_hand=in_hand)
    assert gap(found[0], found[2]) < 0
    assert found[2][3] < -0.3
