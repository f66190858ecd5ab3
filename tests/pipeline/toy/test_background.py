import numpy as np
import pytest

from pipeline.toy.canvas import IMAGE_SIZE
from pipeline.toy.rng import ScalarRNG
from pipeline.toy.scene import BACKGROUNDS, draw_background, smooth_noise


def canvas_of(name, seed, scale=3):
    rng = ScalarRNG(np.random.default_rng(seed))
    canvas = draw_background(BACKGROUNDS[name], 60, rng, scale)
    for feature in BACKGROUNDS[name].foreground:
        feature(canvas)
    return np.asarray(canvas.image)


@pytest.mark.parametrize("name", BACKGROUNDS)
def test_places_are_repeatable_and_vary(name):
    first, again, other = (canvas_of(name, seed) for seed in (1, 1, 2))
    assert first.shape == (3 * IMAGE_SIZE, 3 * IMAGE_SIZE, 3)
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize("name", BACKGROUNDS)
def test_sky_and_ground_differ(name):
    pixels = canvas_of(name, 0).astype(float)
    sky, ground = pixels[:90].mean((0, 1)), pixels[240:].mean((0, 1))
    assert np.abs(sky - ground).max() > 15


@pytest.mark.parametrize("cells", [2, 6, 24])
def test_noise_is_smooth_and_bounded(cells):
    noise = smooth_noise(ScalarRNG(np.random.default_rng(0)), cells)
    assert noise.shape == (IMAGE_SIZE, IMAGE_SIZE)
    assert np.abs(noise).max() <= 1.0
    assert np.abs(np.diff(noise, axis=0)).max() < 4 * cells / IMAGE_SIZE
