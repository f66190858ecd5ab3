import numpy as np
import pytest

from pipeline.toy.objects import OBJECT_KINDS, make_object
from pipeline.toy.palette import PALETTES, Palette
from pipeline.toy.rng import ScalarRNG
from pipeline.toy.scene_spec import toy_vocabulary


def make(name, seed=0, smallest=0.0, size_factor=1.0):
    palette = Palette(PALETTES[0])
    return make_object(name, palette, ScalarRNG(np.random.default_rng(seed)), smallest, size_factor)


def test_every_object_except_person_has_a_drawing():
    assert {*OBJECT_KINDS, "person"} == set(toy_vocabulary().objects)


@pytest.mark.parametrize("name", OBJECT_KINDS)
@pytest.mark.parametrize("seed", range(3))
def test_objects_stand_on_the_ground_around_their_origin(name, seed):
    left, top, right, bottom = make(name, seed).box
    assert bottom == pytest.approx(0, abs=0.02)
    assert top < 0
    assert left < 0 < right


@pytest.mark.parametrize("name", OBJECT_KINDS)
def test_objects_have_a_minimum_size(name):
    left, top, right, bottom = make(name, smallest=3.0).box
    assert max(right - left, bottom - top) >= 3.0 - 1e-9


@pytest.mark.parametrize("name", OBJECT_KINDS)
def test_size_factor_scales_box_and_anchors(name):
    usual, double = make(name), make(name, size_factor=2.0)
    assert double.box == pytest.approx([2 * number for number in usual.box])
    for anchor in ("seat", "grip", "handle", "tie"):
        assert getattr(double, anchor) == pytest.approx(2 * getattr(usual, anchor))
