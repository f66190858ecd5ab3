"""Sketches, objects, people in their actions, and backgrounds."""

from dataclasses import astuple

import numpy as np
import pytest
from PIL import Image, ImageDraw

from pipeline.toy import scenery
from pipeline.toy.actions import ACTIONS, DECORATION, draw_action
from pipeline.toy.canvas import IMAGE_SIZE, OUTLINE_WIDTH, Canvas, Sketch, arc, enclosing_box
from pipeline.toy.objects import OBJECT_KINDS, make_object
from pipeline.toy.palette import PALETTES, Palette, oklch_to_rgb
from pipeline.toy.people import POSES, sample_appearance
from pipeline.toy.rng import ScalarRNG
from pipeline.toy.scene_spec import toy_vocabulary
from pipeline.toy.scenery import BACKGROUNDS, draw_background

VOCABULARY = toy_vocabulary()
RED = (220, 30, 30)
FEATURES = {
    feature for each in BACKGROUNDS.values() for feature in (*each.features, *each.foreground)
}
ABOVE = {scenery.sun, scenery.clouds, scenery.hills, scenery.houses, scenery.windows}
BELOW = {scenery.flowers, scenery.pebbles}


def seeded(seed):
    return ScalarRNG(np.random.default_rng(seed))


def painted(sketch, **options):
    """Box of the pixels that a sketch changes on a 40x40 image, in image pixels."""
    canvas = Image.new("RGB", (160, 160), "white")
    sketch.paint(ImageDraw.Draw(canvas), 4, **options)
    changed = np.any(np.asarray(canvas) != 255, axis=2)
    rows, columns = np.flatnonzero(changed.any(1)), np.flatnonzero(changed.any(0))
    return tuple(np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]) / 4)


SKETCHES = {
    "disc": Sketch().disc(20 + 15j, 6, RED),
    "ring": Sketch().ring(20 + 15j, 6, 2, RED),
    "limb": Sketch().line(10 + 10j, 25 + 30j, 3, RED, 0.5),
    "path": Sketch().path([8 + 8j, 20 + 9j, 30 + 25j], 2, RED),
    "polygon": Sketch().polygon([8 + 8j, 30 + 12j, 15 + 30j], RED),
    "round polygon": Sketch().polygon([8 + 8j, 30 + 12j, 15 + 30j], RED, 2),
    "ellipse": Sketch().polygon(arc(20 + 20j, 12, 5, 0, 360), RED),
    "layers": Sketch().disc(10 + 10j, 3, RED).new_layer().disc(30 + 30j, 4, RED),
}


@pytest.mark.parametrize("sketch", SKETCHES.values(), ids=SKETCHES)
@pytest.mark.parametrize("outline", [0.0, OUTLINE_WIDTH])
def test_bounds_are_tight_to_what_is_painted(sketch, outline):
    assert painted(sketch, outline=outline) == pytest.approx(sketch.bounds(outline), abs=0.5)


def test_details_have_no_outline():
    sketch = Sketch().new_layer(outlined=False).disc(20 + 20j, 5, RED)
    assert painted(sketch) == pytest.approx((15, 15, 25, 25), abs=0.4)
    sketch.new_layer().disc(20 + 20j, 5, RED)
    assert painted(sketch) == pytest.approx((14.45, 14.45, 25.55, 25.55), abs=0.4)


@pytest.mark.parametrize("name", OBJECT_KINDS)
def test_objects_stand_on_the_ground_in_the_given_size(name):
    def make(seed=0, smallest=0.0, factor=1.0):
        return make_object(name, Palette(PALETTES[0]), seeded(seed), smallest, factor)

    for seed in range(3):
        left, top, right, bottom = make(seed).box
        assert bottom == pytest.approx(0, abs=0.02) and top < 0 and left < 0 < right
    left, top, right, bottom = make(smallest=3.0).box
    assert max(right - left, bottom - top) >= 3.0 - 1e-9
    usual, double = make(), make(factor=2.0)
    assert double.box == pytest.approx([2 * number for number in usual.box])
    for anchor in ("seat", "grip", "handle", "tie"):
        assert getattr(double, anchor) == pytest.approx(2 * getattr(usual, anchor))


def boxes(verb, name, seed=0, in_hand=None):
    """Boxes of one group by owner, in units of the body height."""
    rng, palette = seeded(seed), Palette(PALETTES[0])
    obj = make_object(name, palette, rng, 0.3)
    second = in_hand and make_object(in_hand, palette, rng, 0.3)
    found = {}
    for owner, sketch in draw_action(verb, obj, sample_appearance(palette, rng), rng, second):
        found.setdefault(owner, []).append(sketch.bounds())
    return {owner: enclosing_box(part_boxes) for owner, part_boxes in found.items()}


def gap(first, second):
    """Horizontal distance of two boxes, negative if they overlap."""
    return max(second[0] - first[2], first[0] - second[2])


def test_every_verb_and_object_has_a_drawing():
    assert set(ACTIONS) == set(VOCABULARY.verbs) <= set(POSES)
    assert {*OBJECT_KINDS, "person"} == set(VOCABULARY.objects)


@pytest.mark.parametrize(("verb", "label"), VOCABULARY.interactions)
def test_positions_of_person_and_object(verb, label):
    verb = VOCABULARY.verbs[verb]
    for seed in range(3):
        found = boxes(verb, VOCABULARY.objects[label], seed)
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
        # Ropes and streaks belong to neither.
        assert DECORATION in found or verb not in ("pull", "throw")


@pytest.mark.parametrize("verb", ["ride", "sit_on"])
@pytest.mark.parametrize("in_hand", ["ball", "umbrella", "box", "skateboard", "dog"])
def test_second_object_is_held(verb, in_hand):
    found = boxes(verb, "horse", in_hand=in_hand)
    assert gap(found[0], found[2]) < 0
    assert found[2][3] < -0.3


def test_poses_differ_by_more_than_the_jitter():
    angles = np.array([np.hstack(astuple(pose)) for pose in POSES.values()])
    differences = np.abs(angles[:, None] - angles).max(2)
    assert (differences[~np.eye(len(angles), dtype=bool)] > 20).all()


@pytest.mark.parametrize(
    ("lch", "rgb"),
    [
        ((0.628, 0.2577, 29.23), (255, 0, 0)),
        ((0.8664, 0.2948, 142.5), (0, 255, 0)),
        ((0.9, 0.4, 200), (0, 255, 255)),
    ],
)
def test_oklch_to_rgb_of_known_colours(lch, rgb):
    assert oklch_to_rgb(*lch) == pytest.approx(rgb, abs=2)


@pytest.mark.parametrize("colours", PALETTES)
def test_accents_of_a_palette_differ(colours):
    assert len(set(Palette(colours).accents(seeded(1), 3))) == 3


@pytest.mark.parametrize("feature", sorted(FEATURES, key=lambda feature: feature.__name__))
def test_features_are_drawn_above_or_below_the_horizon(feature):
    changed = np.zeros((12, 2 * IMAGE_SIZE, 2 * IMAGE_SIZE), bool)
    for seed in range(12):
        image = Image.new("RGB", (IMAGE_SIZE * 2, IMAGE_SIZE * 2), (120, 130, 140))
        before = np.asarray(image).copy()
        colours = (200, 210, 240), (120, 190, 120), (90, 160, 90)
        feature(Canvas(image, 2, 60, seeded(seed), *colours))
        changed[seed] = (np.asarray(image) != before).any(2)
    assert changed.any()
    if feature in ABOVE:
        assert not changed[:, 128:].any()
    if feature in BELOW:
        assert not changed[:, :112].any()


@pytest.mark.parametrize("name", BACKGROUNDS)
def test_backgrounds_depend_on_the_seed_and_sky_and_ground_differ(name):
    first, again, other = (
        np.asarray(draw_background(BACKGROUNDS[name], 60, seeded(seed), 3).image)
        for seed in (1, 1, 2)
    )
    assert first.shape == (3 * IMAGE_SIZE, 3 * IMAGE_SIZE, 3)
    assert np.array_equal(first, again) and not np.array_equal(first, other)
    sky, ground = first[:60].astype(float).mean((0, 1)), first[240:].astype(float).mean((0, 1))
    assert np.abs(sky - ground).max() > 15
