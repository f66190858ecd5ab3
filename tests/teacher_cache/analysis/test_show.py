from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.datasets.dataset import open_dataset
from pipeline.utils.errors import InputError
from teacher_cache.analysis.show import (
    ShowConfig,
    find_image,
    make_pair_view,
    select_pairs,
    show_image,
)
from teacher_cache.build import build_cache
from teacher_cache.reader.cache import open_cache
from teacher_cache.reader.format import ANNOTATED

FIRST = "toy_train_00000001.jpg"


@pytest.fixture
def config(finished, shared_dataset, tmp_path):
    return ShowConfig(finished, FIRST, shared_dataset, tmp_path / "shown.png")


def test_the_picture_and_its_lines(config, capsys):
    show_image(config)
    lines = capsys.readouterr().out.splitlines()
    with Image.open(config.out) as image:
        assert image.format == "PNG" and image.size[0] > image.size[1] >= 900
    outputs = open_cache(config.cache)[FIRST]
    assert lines[0].startswith(f"{FIRST}: {len(outputs.pairs)} pairs")
    assert len(lines) == 1 + min(8, len(outputs.pairs))
    assert "annotated: " in lines[1] and "proposed (person 0." in lines[-1]


@pytest.mark.parametrize("top, pairs", [(1, 1), (2, 3), (50, 500)])
def test_how_much_is_shown(config, top, pairs, capsys):
    show_image(replace(config, top=top, pairs=pairs))
    lines = capsys.readouterr().out.splitlines()
    num_pairs = len(open_cache(config.cache)[FIRST].pairs)
    assert len(lines) == 1 + min(pairs, num_pairs)
    assert ("not drawn" in lines[0]) == (pairs < num_pairs)
    assert len(lines[1].split("; ")[1].split(", ")) <= top


def test_annotated_pairs_come_first_and_the_surest_proposals_next(finished):
    cache = open_cache(finished)
    for image in cache.image_ids:
        outputs = cache[image]
        order = select_pairs(outputs, 100)
        assert sorted(order) == list(range(len(outputs.pairs)))
        sources = outputs.pairs.sources[order]
        assert (np.diff(sources.astype(int)) >= 0).all()
        scores = (outputs.pairs.human_scores * outputs.pairs.object_scores)[order]
        assert (np.diff(scores[sources != ANNOTATED]) <= 0).all()


def test_a_pair_as_it_is_drawn(finished, shared_dataset, vocabulary):
    dataset = open_dataset(shared_dataset)
    annotation = dataset.load("train").annotations[0]
    outputs = open_cache(finished)[FIRST]
    view = make_pair_view(0, annotation, outputs, dataset, top=2)
    human, _, verb = annotation.hois[0]
    said = vocabulary.verbs[verb].replace("_", " ")
    assert view.annotated and said in view.title
    np.testing.assert_array_equal(view.human_box, annotation.boxes[human])
    np.testing.assert_array_equal(view.region[:2], np.minimum(view.human_box, view.object_box)[:2])
    best = np.sort(outputs.probabilities[0])[::-1][:2]
    assert [probability for _, probability, _ in view.actions] == pytest.approx(best.tolist())
    assert all(right == (name == said) for name, _, right in view.actions)


def test_an_image_may_be_named_by_its_path(finished):
    cache = open_cache(finished)
    assert find_image(cache, f"some/folder/{FIRST}") == FIRST
    with pytest.raises(InputError, match=r"one of 7 images, such as .*_00000001\.jpg"):
        find_image(cache, "toy_train_000000001.jpg")


def test_an_image_that_could_not_be_read(dataset, build_config, tmp_path):
    (dataset / "images/train2015" / FIRST).unlink()
    config = build_config(dataset)
    build_cache(config)
    wanted = ShowConfig(config.out, FIRST, dataset, tmp_path / "shown.png")
    with pytest.raises(InputError, match="could not be read when the cache was built: no such"):
        show_image(wanted)


@pytest.mark.parametrize(
    "changes, text",
    [
        ({"out": Path("shown.txt")}, r"expected a name that ends in \.png"),
        ({"image": "nobody.jpg"}, "expected one of 7 images"),
        ({"dataset": Path("nowhere")}, "no such dataset folder"),
        ({"cache": Path("nowhere")}, "expected a cache folder"),
    ],
)
def test_bad_input(config, changes, text):
    with pytest.raises(InputError, match=text) as caught:
        show_image(replace(config, **changes))
    assert "\n" not in str(caught.value) and not config.out.exists()


def test_another_dataset_and_nothing_overwritten(config, dataset):
    config.out.write_text("mine")
    with pytest.raises(InputError, match="--overwrite"):
        show_image(config)
    file = dataset / "annotations/trainval_hico.json"
    file.write_text(file.read_text() + "\n")
    with pytest.raises(InputError, match="does not fit this dataset: annotations"):
        show_image(replace(config, dataset=dataset, overwrite=True))
    assert config.out.read_text() == "mine"
    show_image(replace(config, overwrite=True))
    assert config.out.read_bytes().startswith(b"\x89PNG")
