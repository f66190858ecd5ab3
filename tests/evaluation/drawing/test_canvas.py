import pytest
from PIL import Image, ImageFont

from evaluation.drawing.canvas import (
    MAX_LABEL_SHARE,
    PAIR_COLOURS,
    LabelLine,
    fit_labels,
    load_font,
    measure_labels,
    tile_images,
)

LABEL = [LabelLine("sit on chair 0.50", True)]


@pytest.mark.parametrize(
    ("size", "labels", "least", "most"),
    [
        ((512, 512), [LABEL], 14, 14),
        # One pair in a photograph: 3 % of its width.
        ((640, 480), [LABEL], 18, 18),
        ((640, 480), [LABEL] * 15, 12, 18),
        ((6000, 4000), [LABEL] * 5, 160, 170),
        # A long label has to fit into a narrow image.
        ((240, 2400), [LABEL], 11, 20),
        ((2400, 240), [LABEL], 11, 18),
        # Many labels are at least half as large as few ones.
        ((1000, 1000), [LABEL * 4] * 30, 13, 15),
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


def test_tiles_are_in_rows():
    colours = ("red", "lime", "blue")
    images = [Image.new("RGB", (8, 6 + place), colour) for place, colour in enumerate(colours)]
    sheet = tile_images(images, 2, 1, "white")
    assert sheet.size == (17, 7 + 1 + 8)
    places = {(0, 0): "red", (9, 6): "lime", (8, 0): "white", (0, 6): "white", (0, 8): "blue"}
    for place, colour in places.items():
        assert sheet.getpixel(place) == Image.new("RGB", (1, 1), colour).getpixel((0, 0))
