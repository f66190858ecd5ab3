from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from teacher_cache.analysis.show import PairView, draw_pairs, pair_colour

VIEW = PairView(
    human_box=np.array([10, 10, 40, 60], np.float32),
    object_box=np.array([50, 40, 85, 70], np.float32),
    region=np.array([10, 10, 95, 75], np.float32),
    title="horse, annotated: ride",
    annotated=True,
    actions=(("ride", 0.75, True), ("sit on", 0.25, False)),
)
GREY = Image.new("RGB", (100, 80), (128, 128, 128))


def has(image, colour):
    return (np.abs(np.asarray(image, dtype=int) - colour) < 24).all(-1)


def test_no_pairs():
    drawn = draw_pairs(GREY, "a.jpg: 0 pairs", [])
    assert drawn.height == 720 and drawn.width > 900
    assert has(drawn.crop((0, 0, 900, 720)), (128, 128, 128)).all()


@pytest.mark.parametrize(
    "size, shown", [((100, 80), (900, 720)), ((1000, 500), (1000, 500)), ((80, 3200), (40, 1600))]
)
def test_sizes(size, shown):
    drawn = draw_pairs(Image.new("L", size), "title", [VIEW])
    assert drawn.mode == "RGB" and drawn.height >= shown[1] and drawn.width > shown[0]


def test_bars_are_as_long_as_probabilities():
    drawn = draw_pairs(GREY, "title", [VIEW])
    beside = has(drawn.crop((900, 0, drawn.width, drawn.height)), pair_colour(1))
    rows = beside[:, 60:].sum(1)
    lengths = sorted({int(count) for count in rows if count > 10})
    assert lengths[-1] / lengths[0] == pytest.approx(3, rel=0.1)


def test_annotated_outlines_are_solid_and_proposed_ones_dashed():
    solid, dashed = (
        has(draw_pairs(GREY, "t", [replace(VIEW, annotated=annotated)]), pair_colour(1))
        for annotated in (True, False)
    )
    # The right edge of the region, at 95 x 9 pixels: nothing else lies there.
    column = slice(850, 860)
    share = [np.any(mask[150:650, column], axis=1).mean() for mask in (solid, dashed)]
    assert share[0] > 0.95 and 0.3 < share[1] < 0.9


def test_many_pairs_make_a_longer_list():
    few, many = (draw_pairs(GREY, "t", [VIEW] * number) for number in (2, 40))
    assert many.height > few.height and many.width >= few.width


def test_boxes_without_area_and_at_the_edge():
    odd = replace(
        VIEW,
        human_box=np.array([0, 0, 0, 0], np.float32),
        region=np.array([99, 79, 100, 80], np.float32),
        actions=(),
    )
    assert draw_pairs(GREY, "t", [odd] * 30).height >= 720
    outside = replace(VIEW, object_box=np.array([-1e30, np.nan, np.inf, 1e30], np.float32))
    assert draw_pairs(GREY, "t", [outside]).height >= 720
