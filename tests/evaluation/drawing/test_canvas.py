import numpy as np
import pytest
from PIL import ImageFont

from evaluation.drawing.canvas import LabelLine, font_size, load_font, place_labels

LABEL = [LabelLine("sit on chair 0.50", True)]


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


IMAGE_SIZE = (400, 300)


def overlaps(places, sizes):
    boxes = np.hstack([places, places + sizes])
    pairs = [(i, j) for i in range(len(boxes)) for j in range(i)]
    corner = [np.maximum(boxes[i, :2], boxes[j, :2]) for i, j in pairs]
    far = [np.minimum(boxes[i, 2:], boxes[j, 2:]) for i, j in pairs]
    return sum((f - c > 0).all() for c, f in zip(corner, far, strict=True))


def test_no_labels():
    none = np.zeros((0, 4))
    assert place_labels(none, np.zeros((0, 2)), IMAGE_SIZE, none, 2).shape == (0, 2)


def test_one_label_sits_on_its_box():
    anchor = np.array([[100.0, 100, 180, 200]])
    (place,) = place_labels(anchor, np.array([[60.0, 20]]), IMAGE_SIZE, anchor, 2)
    assert place[1] + 20 == pytest.approx(100, abs=4)
    assert 100 <= place[0] <= 120


@pytest.mark.parametrize("seed", range(5))
def test_crowds_do_not_overlap(seed):
    rng = np.random.default_rng(seed)
    corner = rng.uniform(0, 300, (10, 2)) * [1, 0.7]
    anchors = np.hstack([corner, corner + rng.uniform(20, 90, (10, 2))])
    sizes = np.column_stack([rng.uniform(60, 120, 10), rng.choice([18.0, 36.0], 10)])
    places = place_labels(anchors, sizes, IMAGE_SIZE, anchors, 2)
    assert overlaps(places, sizes) == 0
    assert (places >= 0).all()
    assert (places + sizes <= IMAGE_SIZE).all()


def test_same_place_many_times():
    anchors = np.tile([150.0, 100, 200, 200], (8, 1))
    sizes = np.tile([100.0, 20], (8, 1))
    assert overlaps(place_labels(anchors, sizes, IMAGE_SIZE, anchors, 2), sizes) == 0


def test_label_wider_than_the_image():
    anchor = np.array([[10.0, 10, 20, 20]])
    (place,) = place_labels(anchor, np.array([[900.0, 20]]), IMAGE_SIZE, anchor, 2)
    assert place[0] == 0
