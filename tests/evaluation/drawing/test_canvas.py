import numpy as np
import pytest
from PIL import Image, ImageFont

from evaluation.drawing import canvas as draw
from evaluation.drawing.canvas import OBJECT, PERSON, UNSEEN, Line, letter_size, load_font
from evaluation.drawing.interactions import draw_annotation, draw_detections
from pipeline.types import Annotation

GREY = (120, 120, 120)


def picture(width=128, height=96):
    return Image.new("RGB", (width, height), GREY)


def count(image, colour, tolerance=12):
    return int((np.abs(np.asarray(image, int) - colour).max(axis=2) <= tolerance).sum())


@pytest.mark.parametrize(
    ("size", "long_side", "expected"),
    [
        ((128, 96), None, (512, 384)),
        ((96, 128), None, (384, 512)),
        ((800, 600), None, (800, 600)),
        ((800, 600), 400, (400, 300)),
        ((1, 900), None, (1, 900)),
        ((1600, 8), None, (1600, 8)),
    ],
)
def test_size(world, annotate, size, long_side, expected):
    image = draw_annotation(picture(*size), annotate("a.jpg"), world, long_side=long_side)
    assert image.size == expected
    assert image.mode == "RGB"


def test_nothing_to_draw_leaves_the_picture(world, annotate, detect):
    for image in (
        draw_annotation(picture(), annotate("a.jpg"), world),
        draw_detections(picture(), detect("a.jpg"), world),
    ):
        assert count(image, GREY) == image.width * image.height


def test_draws_person_object_and_label(world, annotate):
    image = draw_annotation(picture(), annotate("a.jpg", ("kick", "ball")), world)
    assert count(image, PERSON) > 100
    assert count(image, OBJECT) > 100
    assert count(image, draw.PLAIN, 30) > 500
    assert count(image, UNSEEN) == 0


def test_unseen_actions_are_marked(world, annotate):
    kick = int(world.interaction_ids[world.verbs.index("kick"), world.objects.index("ball")])
    content = annotate("a.jpg", ("kick", "ball"))
    image = draw_annotation(picture(), content, world, unseen={kick})
    assert count(image, UNSEEN, 30) > 500


def test_right_and_wrong_look_different(world, detect):
    found = detect("a.jpg", ("kick", "ball", 0.5))
    right, wrong = (
        draw_detections(picture(), found, world, hits=np.array([hit])) for hit in (True, False)
    )
    assert count(right, draw.RIGHT) > 20 > count(wrong, draw.RIGHT)
    assert count(wrong, draw.WRONG) > 20 > count(right, draw.WRONG)


def test_verb_without_object(world):
    item = Annotation(
        "a.jpg",
        np.array([[10, 10, 60, 90]], dtype=np.float32),
        np.array([world.person]),
        np.array([[0, -1, world.verbs.index("kick")]]),
    )
    image = draw_annotation(picture(), item, world)
    assert count(image, PERSON) > 100
    assert count(image, OBJECT) == 0


def test_boxes_outside_and_without_area(world, detect):
    found = detect("a.jpg", ("kick", "ball", 0.5, -500.0), ("hold", "ball", 0.5, 300.0))
    found.boxes[2] = [5, 5, 5, 5]
    assert draw_detections(picture(), found, world).size == (512, 384)


def test_the_picture_given_is_left_alone(world, annotate):
    image = picture()
    draw_annotation(image, annotate("a.jpg", ("kick", "ball")), world)
    assert image.getcolors() == [(128 * 96, GREY)]


def test_grey_pictures(world, annotate):
    image = Image.new("L", (600, 400), 100)
    assert draw_annotation(image, annotate("a.jpg", ("kick", "ball")), world).mode == "RGB"


LABEL = [Line("sit on chair 0.50", True)]


@pytest.mark.parametrize(
    ("size", "labels", "least", "most"),
    [
        ((512, 512), [], 18, 18),
        ((512, 512), [LABEL], 18, 18),
        ((6000, 4000), [LABEL] * 5, 200, 220),
        # A long label has to fit into a narrow picture, and many into any.
        ((240, 2400), [LABEL], 11, 20),
        ((2400, 240), [LABEL], 11, 18),
        ((1000, 1000), [LABEL] * 30, 11, 30),
        ((100, 100), [LABEL] * 30, 11, 11),
    ],
)
def test_letters_leave_room(size, labels, least, most):
    assert least <= letter_size(size, labels) <= most


def test_letters_without_matplotlib(monkeypatch):
    load_font.cache_clear()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert isinstance(load_font(20), ImageFont.FreeTypeFont)
    load_font.cache_clear()
