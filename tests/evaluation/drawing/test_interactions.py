import numpy as np
import pytest
from PIL import Image

from evaluation.drawing.canvas import (
    CORRECT_COLOUR,
    LABEL_COLOUR,
    OBJECT_COLOUR,
    PERSON_COLOUR,
    UNSEEN_COLOUR,
    WRONG_COLOUR,
)
from evaluation.drawing.interactions import add_legend, draw_interactions
from pipeline.types import Annotation

GREY = (120, 120, 120)


def grey_image(width=128, height=96):
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
    image = draw_interactions(grey_image(*size), annotate("a.jpg"), toy, long_side=long_side)
    assert image.size == expected
    assert image.mode == "RGB"


def test_nothing_to_draw_leaves_the_image(toy, annotate, detect):
    for content in (annotate("a.jpg"), detect("a.jpg")):
        image = draw_interactions(grey_image(), content, toy)
        assert count(image, GREY) == image.width * image.height


@pytest.mark.parametrize("unseen", [False, True])
def test_draws_person_object_and_label(toy, annotate, unseen):
    given = grey_image()
    content = annotate("a.jpg", ("kick", "ball"))
    kick = int(toy.interaction_ids[toy.verbs.index("kick"), toy.objects.index("ball")])
    image = draw_interactions(given, content, toy, unseen={kick} if unseen else ())
    assert count(image, PERSON_COLOUR) > 100
    assert count(image, OBJECT_COLOUR) > 100
    assert (count(image, UNSEEN_COLOUR, 30) > 500) == unseen
    assert (count(image, LABEL_COLOUR, 30) > 500) != unseen
    # The given image is not changed.
    assert given.getcolors() == [(128 * 96, GREY)]
    assert draw_interactions(given.convert("L"), content, toy).mode == "RGB"


def test_correct_and_wrong_ones_are_drawn_differently(toy, detect):
    found = detect("a.jpg", ("kick", "ball", 0.5))
    right, wrong = (
        draw_interactions(grey_image(), found, toy, tp_mask=np.array([hit]))
        for hit in (True, False)
    )
    assert count(right, CORRECT_COLOUR) > 20 > count(wrong, CORRECT_COLOUR)
    assert count(wrong, WRONG_COLOUR) > 20 > count(right, WRONG_COLOUR)


def test_verb_without_object(toy):
    boxes, labels = np.array([[10, 10, 60, 90]], dtype=np.float32), np.array([toy.person])
    hois = np.array([[0, -1, toy.verbs.index("kick")]])
    image = draw_interactions(grey_image(), Annotation("a.jpg", boxes, labels, hois), toy)
    assert count(image, PERSON_COLOUR) > 100
    assert count(image, OBJECT_COLOUR) == 0


def test_boxes_outside_and_without_area(toy, detect):
    found = detect("a.jpg", ("kick", "ball", 0.5, -500.0), ("hold", "ball", 0.5, 300.0))
    found.boxes[2] = [5, 5, 5, 5]
    assert draw_interactions(grey_image(), found, toy).size == (512, 384)


@pytest.mark.parametrize("size", [(512, 384), (384, 512), (3000, 2000), (512, 60), (120, 512)])
def test_legend_has_colours_and_star(size):
    given = Image.new("RGB", size, GREY)
    image = add_legend(given)
    assert given.size == size and image.width == size[0]
    # In proportion to the image.
    assert 0.01 * max(size) < image.height - size[1] < 0.2 * max(size)
    assert image.crop((0, 0, *size)).getcolors() == [(size[0] * size[1], GREY)]
    strip = image.crop((0, size[1], size[0], image.height))
    for colour in (PERSON_COLOUR, OBJECT_COLOUR, UNSEEN_COLOUR):
        assert count(strip, colour, 40) > 3
    # The last letter has room.
    background = np.asarray(strip, int)[:, -1]
    assert np.abs(background - background[0]).max() <= 8
