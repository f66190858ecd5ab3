import numpy as np
import pytest
from PIL import Image, ImageFont

from evaluation.drawing import canvas as draw
from evaluation.drawing.canvas import (
    OBJECT_COLOUR,
    PERSON_COLOUR,
    UNSEEN_COLOUR,
    LabelLine,
    font_size,
    load_font,
)
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
def test_size(toy, annotate, size, long_side, expected):
    image = draw_annotation(picture(*size), annotate("a.jpg"), toy, long_side=long_side)
    assert image.size == expected
    assert image.mode == "RGB"


def test_nothing_to_draw_leaves_the_picture(toy, annotate, detect):
    for image in (
        draw_annotation(picture(), annotate("a.jpg"), toy),
        draw_detections(picture(), detect("a.jpg"), toy),
    ):
        assert count(image, GREY) == image.width * image.height


def test_draws_person_object_and_label(toy, annotate):
    image = draw_annotation(picture(), annotate("a.jpg", ("kick", "ball")), toy)
    assert count(image, PERSON_COLOUR) > 100
    assert count(image, OBJECT_COLOUR) > 100
    assert count(image, draw.LABEL_COLOUR, 30) > 500
    assert count(image, UNSEEN_COLOUR) == 0


def test_unseen_actions_are_marked(toy, annotate):
    kick = int(toy.interaction_ids[toy.verbs.index("kick"), toy.objects.index("ball")])
    content = annotate("a.jpg", ("kick", "ball"))
    image = draw_annotation(picture(), content, toy, unseen={kick})
    assert count(image, UNSEEN_COLOUR, 30) > 500


def test_right_and_wrong_look_different(toy, detect):
    found = detect("a.jpg", ("kick", "ball", 0.5))
    right, wrong = (
        draw_detections(picture(), found, toy, tp_mask=np.array([hit])) for hit in (True, False)
    )
    assert count(right, draw.CORRECT_COLOUR) > 20 > count(wrong, draw.CORRECT_COLOUR)
    assert count(wrong, draw.WRONG_COLOUR) > 20 > count(right, draw.WRONG_COLOUR)


def test_verb_without_object(toy):
    item = Annotation(
        "a.jpg",
        np.array([[10, 10, 60, 90]], dtype=np.float32),
        np.array([toy.person]),
        np.array([[0, -1, toy.verbs.index("kick")]]),
    )
    image = draw_annotation(picture(), item, toy)
    assert count(image, PERSON_COLOUR) > 100
    assert count(image, OBJECT_COLOUR) == 0


def test_boxes_outside_and_without_area(toy, detect):
    found = detect("a.jpg", ("kick", "ball", 0.5, -500.0), ("hold", "ball", 0.5, 300.0))
    found.boxes[2] = [5, 5, 5, 5]
    assert draw_detections(picture(), found, toy).size == (512, 384)


def test_the_picture_given_is_left_alone(toy, annotate):
    image = picture()
    draw_annotation(image, annotate("a.jpg", ("kick", "ball")), toy)
    assert image.getcolors() == [(128 * 96, GREY)]


def test_grey_pictures(toy, annotate):
    image = Image.new("L", (600, 400), 100)
    assert draw_annotation(image, annotate("a.jpg", ("kick", "ball")), toy).mode == "RGB"


LABEL = [LabelLine("sit on chair 0.50", True)]


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
    assert least <= font_size(size, labels) <= most


def test_letters_without_matplotlib(monkeypatch):
    load_font.cache_clear()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert isinstance(load_font(20), ImageFont.FreeTypeFont)
    load_font.cache_clear()
