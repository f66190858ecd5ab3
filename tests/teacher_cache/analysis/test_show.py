from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from evaluation.drawing.canvas import LABEL_COLOUR, PAIR_COLOURS
from pipeline.datasets.dataset import open_dataset
from pipeline.utils.errors import InputError
from teacher_cache.analysis.show import (
    PairView,
    draw_pairs,
    find_image,
    make_pair_view,
    select_pairs,
    show_image,
)
from teacher_cache.reader.cache import open_cache
from teacher_cache.reader.format import ANNOTATED

FIRST = "toy_train_00000001.jpg"


@pytest.fixture
def show(finished, shared_dataset, tmp_path):
    """`show(**changes)` draws the first image into `tmp_path / "shown.png"`."""

    def run(**changes):
        given = {"cache": finished, "image": FIRST, "dataset": shared_dataset}
        show_image(**{**given, "out": tmp_path / "shown.png", **changes})

    return run


def test_the_drawing_and_its_lines(show, finished, tmp_path, capsys):
    show()
    lines = capsys.readouterr().out.splitlines()
    with Image.open(tmp_path / "shown.png") as image:
        assert image.format == "PNG" and image.size[0] > image.size[1] >= 900
    outputs = open_cache(finished)[FIRST]
    assert lines[0].startswith(f"{FIRST}: {len(outputs.pairs)} pairs")
    assert len(lines) == 1 + min(8, len(outputs.pairs))
    assert "annotated: " in lines[1] and "proposed (person 0." in lines[-1]
    show(top=1, pairs=2, overwrite=True)
    title, *lines = capsys.readouterr().out.splitlines()
    assert title.endswith(f", {len(outputs.pairs) - 2} not drawn")
    assert len(lines) == 2 and "," not in lines[0].split("; ")[1]


def test_pairs_are_ordered_by_source_and_score(finished):
    cache = open_cache(finished)
    for image in cache.image_ids:
        outputs = cache[image]
        order = select_pairs(outputs, 100)
        assert sorted(order) == list(range(len(outputs.pairs)))
        sources = outputs.pairs.sources[order]
        assert (np.diff(sources.astype(int)) >= 0).all()
        scores = (outputs.pairs.human_scores * outputs.pairs.object_scores)[order]
        assert (np.diff(scores[sources != ANNOTATED]) <= 0).all()


def test_the_view_of_a_pair(finished, shared_dataset, vocabulary):
    annotation = open_dataset(shared_dataset).load("train").annotations[0]
    outputs = open_cache(finished)[FIRST]
    view = make_pair_view(0, annotation, outputs, vocabulary, top=2)
    human, _, verb = annotation.hois[0]
    name = vocabulary.verbs[verb].replace("_", " ")
    assert "annotated" in view.title and name in view.title
    np.testing.assert_array_equal(view.human_box, annotation.boxes[human])
    np.testing.assert_array_equal(view.region[:2], np.minimum(view.human_box, view.object_box)[:2])
    best = np.sort(outputs.probabilities[0])[::-1][:2]
    assert [probability for _, probability, _ in view.actions] == pytest.approx(best.tolist())
    assert all(is_label == (action == name) for action, _, is_label in view.actions)


def test_an_image_is_found_by_its_path(finished):
    cache = open_cache(finished)
    assert find_image(cache, f"some/folder/{FIRST}") == FIRST
    with pytest.raises(InputError, match=r"one of 7 images, such as .*_00000001\.jpg"):
        find_image(cache, "toy_train_000000001.jpg")


def test_an_image_that_could_not_be_read(show, dataset, build):
    (dataset / "images/train2015" / FIRST).unlink()
    with pytest.raises(InputError, match="could not be read when the cache was built: no such"):
        show(cache=build(dataset).path, dataset=dataset)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"out": Path("shown.txt")}, r"expected a name that ends in \.png"),
        ({"image": "absent.jpg"}, "expected one of 7 images"),
        ({"dataset": Path("nowhere")}, "no such dataset folder"),
        ({"cache": Path("nowhere")}, "expected a cache folder"),
    ],
)
def test_bad_input(show, tmp_path, changes, text):
    with pytest.raises(InputError, match=text) as caught:
        show(**changes)
    assert "\n" not in str(caught.value) and not list(tmp_path.iterdir())


def test_another_dataset_is_refused_and_files_are_kept(show, dataset, change_annotations, tmp_path):
    out = tmp_path / "shown.png"
    out.write_text("mine")
    with pytest.raises(InputError, match="--overwrite"):
        show()
    change_annotations()
    with pytest.raises(InputError, match="does not fit this dataset: annotations"):
        show(dataset=dataset, overwrite=True)
    assert out.read_text() == "mine"
    show(overwrite=True)
    assert out.read_bytes().startswith(b"\x89PNG")


VIEW = PairView(
    human_box=np.array([10, 10, 40, 60], np.float32),
    object_box=np.array([50, 40, 85, 70], np.float32),
    region=np.array([10, 10, 95, 75], np.float32),
    title="horse, annotated: ride",
    actions=(("ride", 0.75, True), ("sit on", 0.25, False)),
)
GREY = Image.new("L", (100, 80), 128)


def draw(*pairs, image=GREY):
    """The figure, and the axes of the image and of the list."""
    figure = draw_pairs(image, "a.jpg", pairs)
    figure.canvas.draw()
    return figure, *figure.axes


@pytest.mark.parametrize(
    ("size", "drawn_size"),
    [((100, 80), (900, 720)), ((1000, 500), (1000, 500)), ((80, 3200), (64, 1600))],
)
@pytest.mark.parametrize("pairs", [(), (VIEW,)])
def test_size_of_the_drawing(size, drawn_size, pairs):
    figure, axis, _ = draw(*pairs, image=Image.new("L", size))
    legend = round(axis.bbox.height) - drawn_size[1]
    assert axis.bbox.width == pytest.approx(drawn_size[0])
    assert 15 <= legend <= 100 if pairs else legend == 0
    assert figure.bbox.width > drawn_size[0] and figure.bbox.height >= drawn_size[1]


def test_boxes_and_bars():
    _, axis, texts = draw(VIEW, replace(VIEW, object_box=VIEW.object_box - 30))
    (shown,) = axis.images
    pixels = np.asarray(shown.get_array(), int)
    for box, colour in ((VIEW.object_box, 0), (VIEW.object_box - 30, 1)):
        x1, y1, x2, y2 = (9 * box).astype(int)
        for edge in (pixels[(y1 + y2) // 2, x1 + 2], pixels[(y1 + y2) // 2, x2 - 3]):
            np.testing.assert_allclose(edge, PAIR_COLOURS[colour], atol=3)
    # Bars are in frames of full width.
    widths = [bar.get_width() for bar in texts.patches]
    assert np.array(widths) / widths[0] == pytest.approx([1, 0.75, 1, 0.25] * 2)
    lines = [text.get_text() for text in texts.texts]
    assert lines[:6] == ["a.jpg", "1", VIEW.title, "ride", "0.75 ✓", "sit on"]


@pytest.mark.parametrize("box", [[0, 0, 0, 0], [-1e30, np.nan, np.inf, 1e30]])
def test_boxes_without_area_and_outside(box):
    given = replace(VIEW, object_box=np.array(box, np.float32), actions=())
    _, axis, _ = draw(given)
    (shown,) = axis.images
    height, width, channels = shown.get_array().shape
    assert (width, channels) == (900, 3) and 720 < height < 770


def test_a_legend_explains_marks_and_regions():
    _, axis, _ = draw(VIEW)
    strip = np.asarray(axis.images[0].get_array(), int)[720:]
    np.testing.assert_array_equal(strip[1, 1], LABEL_COLOUR)
    is_white = (strip > 230).all(2)
    # White marks of a person, an object and a region; none has a pair's colour.
    assert is_white.sum() > 300 and (strip.max(2) - strip.min(2)).max() < 40
