import numpy as np
import pytest
from PIL import Image

from evaluation.drawing.canvas import OBJECT_COLOUR, PERSON_COLOUR, UNSEEN_COLOUR
from evaluation.drawing.interactions import add_legend

GREY = (120, 120, 120)


def near(image, colour):
    return int((np.abs(np.asarray(image, int) - colour).max(axis=2) <= 40).sum())


@pytest.mark.parametrize("size", [(512, 384), (384, 512), (3000, 2000), (512, 60), (120, 512)])
def test_a_strip_below_tells_colours_and_star(size):
    image = add_legend(Image.new("RGB", size, GREY))
    assert image.width == size[0] and size[1] < image.height < size[1] + 0.2 * max(size)
    assert image.crop((0, 0, *size)).getcolors() == [(size[0] * size[1], GREY)]
    strip = image.crop((0, size[1], size[0], image.height))
    assert all(near(strip, colour) > 3 for colour in (PERSON_COLOUR, OBJECT_COLOUR, UNSEEN_COLOUR))
    # The last letter has room.
    background = np.asarray(strip, int)[:, -1]
    assert np.abs(background - background[0]).max() <= 8


def test_letters_follow_the_picture():
    heights = [add_legend(Image.new("RGB", (s, s))).height - s for s in (512, 1024, 2048)]
    assert heights[0] < heights[1] < heights[2]


def test_the_picture_given_is_left_alone():
    image = Image.new("RGB", (512, 384), GREY)
    add_legend(image)
    assert image.size == (512, 384)


def test_a_picture_too_narrow_for_any_legend():
    assert add_legend(Image.new("RGB", (1, 900), GREY)).width == 1
