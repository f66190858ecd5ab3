import numpy as np
import pytest
from PIL import Image, ImageFont

from evaluation.drawing.canvas import (
    MAX_LABEL_SHARE,
    PAIR_COLOURS,
    LabelLine,
    face_boxes,
    fit_labels,
    load_font,
    measure_labels,
    place_labels,
    tile_images,
)

LABEL = [LabelLine("sit on chair 0.50", True)]
IMAGE_SIZE = (400, 300)


@pytest.mark.parametrize(
    ("size", "labels", "least", "most"),
    [
        ((512, 512), [LABEL], 18, 18),
        ((640, 480), [LABEL] * 15, 13, 18),
        ((6000, 4000), [LABEL] * 5, 200, 220),
        # A long label has to fit into a narrow image.
        ((240, 2400), [LABEL], 11, 20),
        ((2400, 240), [LABEL], 11, 18),
        # Many labels are at least half as large as few ones.
        ((1000, 1000), [LABEL * 4] * 30, 16, 18),
        ((100, 100), [LABEL] * 30, 11, 11),
    ],
)
def test_letters_leave_room(size, labels, least, most):
    em, num_drawn = fit_labels(labels, size)
    assert least <= em <= most
    area = measure_labels(labels, em)[:num_drawn].prod(axis=1).sum()
    assert num_drawn == 1 or area <= MAX_LABEL_SHARE * size[0] * size[1]
    assert num_drawn == len(labels) or (len(labels) >= 30 and 1 <= num_drawn <= len(PAIR_COLOURS))


def test_letters_without_matplotlib(monkeypatch):
    load_font.cache_clear()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert isinstance(load_font(20), ImageFont.FreeTypeFont)
    load_font.cache_clear()


NO_BOXES = np.zeros((0, 4))


def place(anchors, sizes, obstacles=NO_BOXES, cost=1.0):
    anchors = [anchor.reshape(-1, 4) for anchor in anchors]
    costs = np.full(len(obstacles), cost)
    return place_labels(anchors, np.array(sizes), IMAGE_SIZE, obstacles, costs, gap=2)


def test_one_label_sits_on_its_box():
    anchor = np.array([[100.0, 100, 180, 200]])
    (corner,) = place(anchor, [[60.0, 20]], anchor)
    assert corner[1] + 20 == pytest.approx(100, abs=4)
    assert 100 <= corner[0] <= 120


def test_label_beside_the_second_box_if_the_first_has_no_room():
    anchors = np.array([[[0.0, 0, 300, 300], [320, 100, 400, 200]]])
    (corner,) = place(anchors, [[60.0, 20]], anchors[0])
    assert corner[0] >= 300 and corner[1] + 20 == pytest.approx(100, abs=4)


def test_label_beside_a_face():
    person = np.array([[100.0, 0, 300, 300]])
    (face,) = face_boxes(person)
    (corner,) = place(person, [[60.0, 20]], face[None], cost=6.0)
    end = corner + np.array([60, 20])
    assert (np.minimum(end, face[2:]) <= np.maximum(corner, face[:2])).any()


def test_label_wider_than_the_image():
    anchor = np.array([[10.0, 10, 20, 20]])
    (corner,) = place(anchor, [[900.0, 20]])
    assert corner[0] == 0


@pytest.mark.parametrize("seed", range(4))
def test_crowds_do_not_overlap(seed, assert_apart):
    rng = np.random.default_rng(seed)
    # The first crowd has one box.
    corner = rng.uniform(0, 300, (10, 2)) * [1, 0.7] * min(seed, 1)
    anchors = np.hstack([corner, corner + rng.uniform(20, 90, (10, 2))])
    sizes = np.column_stack([rng.uniform(60, 120, 10), rng.choice([18.0, 36.0], 10)])
    places = place(anchors, sizes, anchors)
    assert_apart(places, sizes, IMAGE_SIZE)


def test_tiles_are_in_rows():
    colours = ("red", "lime", "blue")
    images = [Image.new("RGB", (8, 6 + place), colour) for place, colour in enumerate(colours)]
    sheet = tile_images(images, 2, 1, "white")
    assert sheet.size == (17, 7 + 1 + 8)
    places = {(0, 0): "red", (9, 6): "lime", (8, 0): "white", (0, 6): "white", (0, 8): "blue"}
    for place, colour in places.items():
        assert sheet.getpixel(place) == Image.new("RGB", (1, 1), colour).getpixel((0, 0))
