"""Every function of `scenery` draws repeatably and on the right side of the horizon."""

import numpy as np
import pytest
from PIL import Image, ImageDraw

from pipeline.toy import scenery
from pipeline.toy.canvas import IMAGE_SIZE, Canvas
from pipeline.toy.rng import ScalarRNG

FEATURES = [
    *(getattr(scenery, name) for name in ("sun", "stars", "clouds", "hills", "mountains", "trees")),
    *(getattr(scenery, name) for name in ("autumn_trees", "pines", "cacti", "sea", "houses")),
    *(getattr(scenery, name) for name in ("wallpaper", "windows", "planks", "rug", "wallbars")),
    *(getattr(scenery, name) for name in ("paving", "flowers", "leaves", "pebbles", "drifts")),
    *(getattr(scenery, name) for name in ("tufts", "stones", "posts", "flakes")),
    scenery.court,
]
ABOVE = {"sun", "stars", "clouds", "hills", "mountains", "houses", "wallpaper", "windows"}
BELOW = {"planks", "court", "flowers", "leaves", "pebbles"}


def painted(feature, seed, edge=60, scale=2):
    """(scale * IMAGE_SIZE, scale * IMAGE_SIZE) bool: pixels that a feature changes."""
    canvas = Image.new("RGB", (IMAGE_SIZE * scale, IMAGE_SIZE * scale), (120, 130, 140))
    before = np.asarray(canvas).copy()
    feature(
        Canvas(
            canvas,
            ImageDraw.Draw(canvas),
            ImageDraw.Draw(canvas, "RGBA"),
            edge,
            ScalarRNG(np.random.default_rng(seed)),
            scale,
            (200, 210, 240),
            (120, 190, 120),
            (90, 160, 90),
        )
    )
    return (np.asarray(canvas) != before).any(2)


@pytest.mark.parametrize("feature", FEATURES, ids=lambda feature: feature.__name__)
def test_features_are_drawn_above_or_below_the_horizon(feature):
    changed = np.stack([painted(feature, seed) for seed in range(12)])
    assert changed.any()
    if feature.__name__ in ABOVE:
        assert not changed[:, 2 * 60 + 8 :].any()
    if feature.__name__ in BELOW:
        assert not changed[:, : 2 * 60 - 8].any()


@pytest.mark.parametrize("edge", [40, 75])
@pytest.mark.parametrize("feature", FEATURES, ids=lambda feature: feature.__name__)
def test_features_are_repeatable(feature, edge):
    assert np.array_equal(painted(feature, 3, edge), painted(feature, 3, edge))
