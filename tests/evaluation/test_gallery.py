import base64
import io

import numpy as np
import pytest
from PIL import Image

from evaluation.comparison import compare
from evaluation.gallery import build_gallery, pick, picture_ap
from evaluation.predictions import read_predictions
from evaluation.results import read_results
from pipeline.datasets import open_dataset
from pipeline.images import read_image

KICK, HOLD, PULL = ("kick", "ball"), ("hold", "ball"), ("pull", "box")


def unseen_kick(world):
    return [int(world.interaction_ids[world.verbs.index("kick"), world.objects.index("ball")])]


def test_picture_ap_of_nothing(world):
    assert picture_ap([], [], world).shape == (0,)


def test_picture_ap(world, annotate, detect):
    annotations = [annotate(f"{i}.jpg", KICK, HOLD) for i in range(4)] + [annotate("4.jpg")]
    detections = [
        detect("0.jpg", (*KICK, 0.5), (*HOLD, 0.9)),
        detect("1.jpg"),
        # Wrong, right, right: (1/2 + 2/3) / 2.
        detect("2.jpg", (*HOLD, 0.3, 0, 1), (*KICK, 0.5, 0, 0), (*PULL, 0.7)),
        # Right, wrong: 1/2.
        detect("3.jpg", (*KICK, 0.5), (*PULL, 0.4)),
        detect("4.jpg", (*KICK, 0.5)),
    ]
    expected = [1, 0, (1 / 2 + 2 / 3) / 2, 1 / 2, np.nan]
    assert picture_ap(annotations, detections, world) == pytest.approx(expected, nan_ok=True)


def test_pick_nothing(world):
    assert pick([], np.zeros(0), world, ()) == []


def test_pick_shelves(world, annotate):
    annotations = [annotate(f"{i}.jpg", KICK if i % 2 else HOLD) for i in range(40)]
    quality = np.linspace(0, 1, 40)
    shelves = {
        title: images for title, _, images in pick(annotations, quality, world, unseen_kick(world))
    }
    assert list(shelves) == ["Best", "Drawn at random", "Worst", "Seen actions only"]
    # One unseen action only, so one best and one worst picture.
    assert shelves["Best"] == [39]
    assert shelves["Worst"] == [1 if 1 not in shelves["Drawn at random"] else 3]
    assert len(shelves["Drawn at random"]) == 6
    chosen = [index for images in shelves.values() for index in images]
    assert len(set(chosen)) == len(chosen)
    assert all(index % 2 == 0 for index in shelves["Seen actions only"])
    assert all(index % 2 for name in list(shelves)[:3] for index in shelves[name])


def test_pick_without_unseen_actions(world, annotate):
    annotations = [annotate("a.jpg", KICK), annotate("b.jpg", PULL), annotate("c.jpg")]
    shelves = pick(annotations, np.array([0.2, 0.9, np.nan]), world, ())
    assert [(title, images) for title, _, images in shelves] == [("Best", [1, 0])]


def test_build_gallery(world, runs):
    results = [read_results(runs / name / "results.json") for name in ("distilled", "control")]
    comparison = compare(results, world)
    dataset = open_dataset(runs / "world")
    annotations = dataset.load("test").annotations
    files = {record.id: record.path for record in dataset.records("test")}
    contestants = [
        (one, read_predictions(one.results[0].predictions, world)) for one in comparison.contestants
    ]
    # The control says nothing about some pictures.
    contestants[1][1][:] = contestants[1][1][:5]
    shelves = build_gallery(
        comparison, annotations, contestants, lambda image_id: read_image(files[image_id])
    )
    cards = [card for shelf in shelves for card in shelf.cards]
    assert len(cards) >= 8
    for name, pictures in cards:
        assert [one.title for one in pictures] == ["Ground truth", "Distilled", "No distillation"]
        assert all(name in one.alt for one in pictures)
        for one in pictures:
            image = Image.open(io.BytesIO(base64.b64decode(one.source.partition(",")[2])))
            assert image.size == (one.width, one.height) == (512, 512)
    alts = " ".join(one.alt for _, pictures in cards for one in pictures)
    assert "(unseen, right)" in alts
    assert "No distillation: nothing" in alts
