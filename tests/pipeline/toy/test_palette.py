import numpy as np
import pytest

from pipeline.toy.palette import PALETTES, Palette, blend, oklch_to_rgb
from pipeline.toy.rng import ScalarRNG


@pytest.mark.parametrize(
    ("lch", "rgb"),
    [
        ((0.0, 0.0, 0.0), (0, 0, 0)),
        ((1.0, 0.0, 0.0), (255, 255, 255)),
        ((0.628, 0.2577, 29.23), (255, 0, 0)),
        ((0.8664, 0.2948, 142.5), (0, 255, 0)),
        ((0.452, 0.3132, 264.05), (0, 0, 255)),
        ((0.9, 0.4, 200), (0, 255, 255)),
    ],
)
def test_oklch_to_rgb_of_known_colours(lch, rgb):
    assert oklch_to_rgb(*lch) == pytest.approx(rgb, abs=2)


def test_blend():
    assert blend((0, 10, 20), (100, 110, 120), 0.5) == (50, 60, 70)


@pytest.mark.parametrize("colours", PALETTES)
def test_accents_of_a_palette_differ(colours):
    first, again = (
        Palette(colours).accents(ScalarRNG(np.random.default_rng(1)), 3) for _ in range(2)
    )
    assert len(set(first)) == 3 and first == again
