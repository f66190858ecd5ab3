import numpy as np
import pytest

from pipeline.toy.palette import COATS, PALETTES, Palette, blend, oklch_to_rgb
from pipeline.toy.rng import ScalarRNG


@pytest.mark.parametrize(
    ("lch", "rgb"),
    [
        ((0.0, 0.0, 0.0), (0, 0, 0)),
        ((1.0, 0.0, 0.0), (255, 255, 255)),
        ((0.628, 0.2577, 29.23), (255, 0, 0)),
        ((0.8664, 0.2948, 142.5), (0, 255, 0)),
        ((0.452, 0.3132, 264.05), (0, 0, 255)),
    ],
)
def test_oklch_to_rgb_of_known_colours(lch, rgb):
    assert oklch_to_rgb(*lch) == pytest.approx(rgb, abs=2)


def test_oklch_to_rgb_clips_to_the_gamut():
    assert all(0 <= value <= 255 for value in oklch_to_rgb(0.9, 0.4, 200))


@pytest.mark.parametrize(
    ("share", "expected"), [(0.0, (0, 10, 20)), (1.0, (100, 110, 120)), (0.5, (50, 60, 70))]
)
def test_blend(share, expected):
    assert blend((0, 10, 20), (100, 110, 120), share) == expected


@pytest.mark.parametrize("colours", PALETTES)
def test_accents_of_a_palette_differ(colours):
    accents = Palette(colours).accents(ScalarRNG(np.random.default_rng(1)), 3)
    assert len(set(accents)) == 3


def test_same_random_numbers_give_the_same_colours():
    palette = Palette(PALETTES[0])
    first, second = (palette.natural(ScalarRNG(np.random.default_rng(2)), COATS) for _ in range(2))
    assert first == second
