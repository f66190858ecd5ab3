import numpy as np
import pytest
from PIL import Image

from pipeline.toy import scenery
from pipeline.toy.canvas import IMAGE_SIZE, Canvas
from pipeline.toy.rng import ScalarRNG
from pipeline.toy.scenery import BACKGROUNDS, draw_background, smooth_noise

SCALE = 2
FEATURES = {
    feature for each in BACKGROUNDS.values() for feature in (*each.features, *each.foreground)
}
ABOVE = {scenery.sun, scenery.clouds, scenery.hills, scenery.houses, scenery.windows}
BELOW = {scenery.flowers, scenery.pebbles}


def painted(feature, seed, horizon=60):
    """(SCALE * IMAGE_SIZE, SCALE * IMAGE_SIZE) bool: pixels that a feature changes."""
    image = Image.new("RGB", (IMAGE_SIZE * SCALE, IMAGE_SIZE * SCALE), (120, 130, 140))
    before = np.asarray(image).copy()
    rng = ScalarRNG(np.random.default_rng(seed))
    feature(Canvas(image, SCALE, horizon, rng, (200, 210, 240), (120, 190, 120), (90, 160, 90)))
    return (np.asarray(image) != before).any(2)


@pytest.mark.parametrize("feature", sorted(FEATURES, key=lambda feature: feature.__name__))
def test_features_are_drawn_above_or_below_the_horizon(feature):
    changed = np.stack([painted(feature, seed) for seed in range(12)])
    assert changed.any() and np.array_equal(changed[3], painted(feature, 3))
    if feature in ABOVE:
        assert not changed[:, SCALE * 60 + 8 :].any()
    if feature in BELOW:
        assert not changed[:, : SCALE * 60 - 8].any()


def pixels_of(name, seed, scale=3):
    canvas = draw_background(BACKGROUNDS[name], 60, ScalarRNG(np.random.default_rng(seed)), scale)
    return np.asarray(canvas.image)


@pytest.mark.parametrize("name", BACKGROUNDS)
def test_backgrounds_depend_on_the_seed_and_sky_and_ground_differ(name):
    first, again, other = (pixels_of(name, seed) for seed in (1, 1, 2))
    assert first.shape == (3 * IMAGE_SIZE, 3 * IMAGE_SIZE, 3)
    assert np.array_equal(first, again) and not np.array_equal(first, other)
    sky, ground = first[:60].astype(float).mean((0, 1)), first[240:].astype(float).mean((0, 1))
    assert np.abs(sky - ground).max() > 15


@pytest.mark.parametrize("cells", [2, 6, 24])
def test_noise_is_smooth_and_bounded(cells):
    noise = smooth_noise(ScalarRNG(np.random.default_rng(0)), cells)
    assert noise.shape == (IMAGE_SIZE, IMAGE_SIZE)
    assert np.abs(noise).max() <= 1.0
    assert np.abs(np.diff(noise, axis=0)).max() < 4 * cells / IMAGE_SIZE
