import numpy as np
import pytest
from PIL import Image, ImageFont

from evaluation.drawing.canvas import LabelLine, font_size, load_font, place_labels, tile_images

LABEL = [LabelLine("sit on chair 0.50", True)]
IMAGE_SIZE = (400, 300)


@pytest.mark.parametrize(
    ("size", "labels", "least", "most"),
    [
        ((512, 512), [], 18, 18),
        ((512, 512), [LABEL], 18, 18),
        ((6000, 4000), [LABEL] * 5, 200, 220),
        # A long label has to fit into a narrow image, and many into any.
        ((240, 2400), [LABEL], 11, 20),
        ((2400, 240), [LABEL], 11, 18),
        ((1000, 1000), [LABEL] * 30, 11, 30),
        ((100, 100), [LABEL] * 30, 11, 11),
    ],
)
def test_letters_leave_room(size, labels, least, most):
    assert least <= font_size(size, labels) <= most


def test_letters_without_matplotlib(monkeypatch):
    load_font.cache_clear()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert isinstance(load_font(20), ImageFont.FreeTypeFont)
    load_font.cache_clear()


def test_one_label_sits_on_its_box():
    anchor = np.array([[100.0, 100, 180, 200]])
    (place,) = place_labels(anchor, np.array([[60.0, 20]]), IMAGE_SIZE, anchor, 2)
    assert place[1] + 20 == pytest.approx(100, abs=4)
    assert 100 <= place[0] <= 120


def test_label_wider_than_the_image():
    anchor = np.array([[10.0, 10, 20, 20]])
    (place,) = place_labels(anchor, np.array([[900.0, 20]]), IMAGE_SIZE, anchor, 2)
    assert place[0] == 0


@pytest.mark.parametrize("seed", range(4))
def test_crowds_do_not_overlap(seed):
    rng = np.random.default_rng(seed)
    # The first crowd has one box.
    corner = rng.uniform(0, 300, (10, 2)) * [1, 0.7] * min(seed, 1)
    anchors = np.hstack([corner, corner + rng.uniform(20, 90, (10, 2))])
    sizes = np.column_stack([rng.uniform(60, 120, 10), rng.choice([18.0, 36.0], 10)])
    places = place_labels(anchors, sizes, IMAGE_SIZE, anchors, 2)
    assert (places >= 0).all() and (places + sizes <= IMAGE_SIZE).all()
    low = np.maximum(places[:, None], places)
    high = np.minimum((places + sizes)[:, None], places + sizes)
    overlaps = (high > low).all(axis=2)
    assert overlaps.sum() == len(places)


def test_tiles_are_in_rows():
    colours = ("red", "lime", "blue")
    images = [Image.new("RGB", (8, 6 + place), colour) for place, colour in enumerate(colours)]
    sheet = tile_images(images, 2, 1, "white")
    assert sheet.size == (17, 7 + 1 + 8)
    places = {(0, 0): "red", (9, 6): "lime", (8, 0): "white", (0, 6): "white", (0, 8): "blue"}
    for place, colour in places.items():
        assert sheet.getpixel(place) == Image.new("RGB", (1, 1), colour).getpixel((0, 0))
