import numpy as np
import pytest
from PIL import Image

from evaluation.drawing.canvas import (
    CORRECT_COLOUR,
    LABEL_COLOUR,
    MARGIN_COLOUR,
    PAIR_COLOURS,
    UNSEEN_COLOUR,
    WHITE,
    WRONG_COLOUR,
    Canvas,
    measure_labels,
)
from evaluation.drawing.interactions import add_legend, draw_interactions
from pipeline.types import Annotation, Detections

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
    assert count(image, PAIR_COLOURS[0]) > 500
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
    assert count(image, PAIR_COLOURS[0]) > 100


def test_boxes_outside_and_without_area(toy, detect):
    found = detect("a.jpg", ("kick", "ball", 0.5, -500.0), ("hold", "ball", 0.5, 300.0))
    found.boxes[2] = [5, 5, 5, 5]
    assert draw_interactions(grey_image(), found, toy).size == (512, 384)


def crowd(toy, size, num_pairs, seed=0):
    """Detections of people and a ball beside each, in an image of a given size."""
    rng = np.random.default_rng(seed)
    centres = rng.uniform(0.05, 0.95, (num_pairs, 2))
    shift = rng.uniform(-0.15, 0.15, (num_pairs, 2))
    middles = np.concatenate([centres, np.clip(centres + shift, 0, 1)])
    sides = rng.uniform(0.03, 0.3, (2 * num_pairs, 2))
    boxes = np.clip(np.hstack([middles - sides / 2, middles + sides / 2]), 0, 1) * [*size, *size]
    balls = np.full(num_pairs, toy.objects.index("ball"))
    rows = np.arange(num_pairs)
    verbs = rng.choice(np.flatnonzero(toy.interaction_ids[:, balls[0]] >= 0), num_pairs)
    return Detections(
        image_id="a.jpg",
        boxes=boxes.astype(np.float32),
        labels=np.concatenate([np.full(num_pairs, toy.person), balls]),
        hois=np.column_stack([rows, rows + num_pairs, verbs]),
        scores=np.linspace(0.95, 0.05, num_pairs, dtype=np.float32),
    )


@pytest.fixture
def drawn_labels(monkeypatch):
    """Labels, (N, 2) corners, (N, 2) sizes and size of the overlay of the last drawing."""
    drawn = {}
    draw_labels = Canvas.draw_labels

    def record(canvas, labels, corners, em):
        sizes = measure_labels([label.lines for label in labels], em)
        drawn.update(labels=labels, corners=corners, sizes=sizes, image_size=canvas.overlay.size)
        draw_labels(canvas, labels, corners, em)

    monkeypatch.setattr(Canvas, "draw_labels", record)
    return drawn


@pytest.mark.parametrize(
    "size", [(640, 480), (480, 640), (512, 512), (1116, 600), (3000, 2000), (4000, 500), (300, 900)]
)
@pytest.mark.parametrize("seed", range(2))
def test_labels_of_fifteen_pairs(toy, drawn_labels, assert_apart, size, seed):
    """They overlap neither each other nor the edge of the image, and each has its own colour."""
    found = crowd(toy, size, 15, seed)
    image = draw_interactions(grey_image(*size), found, toy, unseen=range(0, 40, 3))
    assert image.size == size
    labels = drawn_labels.pop("labels")
    assert len(labels) == len({label.colour for label in labels}) == 15
    assert_apart(**drawn_labels)


@pytest.mark.parametrize(("size", "number"), [((640, 480), 15), ((300, 900), 15), ((9, 6), 15)])
def test_the_lowest_scores_are_left_out(toy, drawn_labels, assert_apart, size, number):
    draw_interactions(grey_image(*size), crowd(toy, size, 200), toy)
    *labels, note = drawn_labels.pop("labels")
    assert len(labels) == number
    assert min(float(label.lines[0].text[-4:]) for label in labels) > 0.88
    assert note.lines[0].text == f"and {200 - number} more pairs"
    assert_apart(**drawn_labels)


@pytest.mark.parametrize("size", [(12, 290), (290, 12), (1, 1), (2, 9), (427, 163)])
def test_a_label_of_many_lines_and_the_note(toy, drawn_labels, assert_apart, size):
    """The label may need all of a small image; the note that a pair is left out has room too."""
    balls = np.full(3, toy.objects.index("ball"))
    verbs = np.flatnonzero(toy.interaction_ids[:, balls[0]] >= 0)
    found = Detections(
        image_id="a.jpg",
        boxes=np.array([[0, 0, *size], [0, 0, *size], [0, 0, 1, 1], [0, 0, 1, 0.5]], np.float32),
        labels=np.array([toy.person, *balls]),
        hois=np.array([[0, 1 + pair, verb] for pair in range(3) for verb in verbs]),
        scores=np.linspace(0.9, 0.1, 3 * len(verbs), dtype=np.float32),
    )
    for long_side in (None, 128):
        draw_interactions(grey_image(*size), found, toy, range(0, 40, 3), long_side=long_side)
        *_, note = drawn_labels.pop("labels")
        assert long_side is None or note.lines[0].text.startswith("and ")
        assert_apart(**drawn_labels)


def test_lines_and_letters_grow_with_the_image(toy, drawn_labels):
    """A drawing of a large image is the large drawing of a small one."""
    for factor in (1, 6):
        size = (640 * factor, 480 * factor)
        image = draw_interactions(grey_image(*size), crowd(toy, size, 4), toy)
        sizes = drawn_labels["sizes"] / drawn_labels["image_size"]
        share = count(image, PAIR_COLOURS[0], 2) / (size[0] * size[1])
        if factor == 1:
            small = sizes, share
    np.testing.assert_allclose(sizes, small[0], rtol=0.05)
    assert share == pytest.approx(small[1], rel=0.25)


def test_nearly_equal_boxes_are_one_person(toy, drawn_labels):
    """So are those of objects, whatever their classes."""
    boxes = np.array([[10, 10, 60, 90], [10, 11, 60, 90], [50, 50, 80, 80], [90, 10, 110, 30]])
    boxes = np.vstack([boxes, [50, 51, 80, 80]])
    verbs = np.flatnonzero(toy.interaction_ids[:, toy.objects.index("ball")] >= 0)
    ball = toy.objects.index("ball")
    found = Detections(
        image_id="a.jpg",
        boxes=boxes.astype(np.float32),
        labels=np.array([toy.person, toy.person, ball, ball, toy.objects.index("box")]),
        hois=np.array([[0, 2, verbs[0]], [1, 2, verbs[1]], [1, 3, verbs[0]], [0, 4, verbs[1]]]),
        scores=np.array([0.5, 0.9, 0.7, 0.4], np.float32),
    )
    draw_interactions(grey_image(), found, toy)
    first, second = drawn_labels["labels"]
    assert [line.text[-4:] for line in first.lines] == ["0.90", "0.50", "0.40"]
    np.testing.assert_array_equal(first.boxes[0], second.boxes[0])


def test_a_box_of_two_pairs_has_both_colours(toy, annotate):
    content = annotate("a.jpg", ("kick", "ball"), ("hold", "ball"))
    content.hois[1] = [0, content.hois[1, 1], content.hois[1, 2]]
    image = draw_interactions(grey_image(), content, toy)
    x1, y1, _, y2 = (content.boxes[content.hois[0, 0]] * 4).astype(int)
    box = image.crop((x1, y1, x1 + 3, y2))
    assert min(count(box, colour) for colour in PAIR_COLOURS[:2]) > 10


def test_margin_of_narrow_images(toy, annotate):
    """The label has room beside the image."""
    content = annotate("a.jpg", ("kick", "ball"))
    for given, expected in (((12, 900), (192, 900)), ((1600, 8), (1600, 192))):
        image = draw_interactions(grey_image(*given), content, toy)
        assert image.size == expected
        last = (expected[0] - 1, expected[1] - 1)
        assert image.getpixel(last) == MARGIN_COLOUR
        middle = (expected[0] // 2, last[1]) if given[0] < given[1] else (last[0], expected[1] // 2)
        assert image.getpixel(middle) == GREY


@pytest.mark.parametrize("size", [(512, 384), (384, 512), (3000, 2000), (512, 60), (120, 512)])
def test_legend_has_marks_without_colour_and_a_star(size):
    given = Image.new("RGB", size, GREY)
    image = add_legend(given)
    assert given.size == size and image.width == size[0]
    # In proportion to the image.
    assert 0.01 * max(size) < image.height - size[1] < 0.2 * max(size)
    assert image.crop((0, 0, *size)).getcolors() == [(size[0] * size[1], GREY)]
    strip = image.crop((0, size[1], size[0], image.height))
    for colour in (WHITE, UNSEEN_COLOUR):
        assert count(strip, colour, 40) > 3
    # Those of people and objects would be misleading in one pair's colour.
    colours = [colour for colour in PAIR_COLOURS if colour != WHITE]
    assert count(strip.crop((0, 0, strip.height, strip.height)), colours[0], 40) == 0
    # The last letter has room.
    background = np.asarray(strip, int)[:, -1]
    assert np.abs(background - background[0]).max() <= 8
