import numpy as np
import pytest
from PIL import Image, ImageDraw

from pipeline.toy.canvas import OUTLINE_WIDTH, Sketch, arc, enclosing_box

RED = (220, 30, 30)


def painted(sketch, scale=4, **options):
    """Box of the pixels that a sketch changes on a 40x40 image, in image pixels."""
    canvas = Image.new("RGB", (40 * scale, 40 * scale), "white")
    sketch.paint(ImageDraw.Draw(canvas), scale, **options)
    changed = np.any(np.asarray(canvas) != 255, axis=2)
    rows, columns = np.flatnonzero(changed.any(1)), np.flatnonzero(changed.any(0))
    edges = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
    return tuple(edges / scale)


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


def test_paint_at_another_origin():
    sketch = Sketch().disc(0, 4, RED)
    assert painted(sketch, origin=12 + 20j, outline=0.0) == pytest.approx((8, 16, 16, 24), abs=0.5)


def test_details_have_no_outline():
    sketch = Sketch().new_layer(outlined=False).disc(20 + 20j, 5, RED)
    assert painted(sketch) == pytest.approx((15, 15, 25, 25), abs=0.4)
    sketch.new_layer().disc(20 + 20j, 5, RED)
    assert painted(sketch) == pytest.approx((14.45, 14.45, 25.55, 25.55), abs=0.4)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, 1 + 2j),
        ({"origin": 10 + 20j}, 11 + 22j),
        ({"scale": 3.0}, 3 + 6j),
        ({"mirrored": True}, -1 + 2j),
        ({"turn": 90.0}, -2 + 1j),
        ({"mirrored": True, "turn": 90.0, "scale": 2.0, "origin": 5}, 1 - 2j),
    ],
)
def test_transformed(options, expected):
    left, top, right, bottom = Sketch().disc(1 + 2j, 0.5, RED).transformed(**options).bounds()
    assert complex(left + right, top + bottom) / 2 == pytest.approx(expected)
    assert (right - left) / 2 == pytest.approx(0.5 * options.get("scale", 1.0))


def test_arc_end_points():
    points = arc(1 + 1j, 2, 1, 180, 360, 8)
    assert points[0] == pytest.approx(-1 + 1j)
    assert points[4] == pytest.approx(1 + 0j)
    assert points[-1] == pytest.approx(3 + 1j)


def test_enclosing_box():
    assert enclosing_box([(0, 1, 2, 3), (-1, 2, 1, 9)]) == (-1, 1, 2, 9)
