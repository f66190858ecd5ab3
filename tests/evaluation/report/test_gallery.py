import base64
import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from evaluation.analysis.comparison import compare
from evaluation.predictions import read_predictions
from evaluation.report.gallery import build_gallery
from evaluation.results import read_results
from pipeline.datasets.dataset import open_dataset
from pipeline.images import read_image
from pipeline.utils.errors import InputError


@pytest.fixture(scope="module")
def material(toy, runs):
    """What `build_gallery` is given; the control says nothing about most pictures."""
    results = [read_results(runs / name / "results.json") for name in ("distilled", "control")]
    comparison = compare(results, toy)
    dataset = open_dataset(runs / "toy")
    files = {record.id: record.path for record in dataset.records("test")}
    entries = [
        (one, read_predictions(one.results[0].predictions, toy)) for one in comparison.entries
    ]
    entries[1][1][:] = entries[1][1][:5]
    annotations = dataset.load("test").annotations
    return comparison, annotations, entries, lambda image_id: read_image(files[image_id])


def items_of(gallery_rows):
    return [card for gallery_row in gallery_rows for card in gallery_row.items]


def test_build_gallery(material):
    gallery_rows = build_gallery(*material)
    assert next(iter(gallery_rows)).title == "Best"
    cards = items_of(gallery_rows)
    assert len(cards) >= 12
    for card in cards:
        titles = [one.title for one in card.images]
        assert titles == ["Ground truth", "Distilled", "No distillation"]
        assert all(card.image_id in one.alt for one in card.images)
        for one in card.images:
            data = base64.b64decode(one.data_uri.partition(",")[2])
            assert Image.open(io.BytesIO(data)).size == one.image.size == (512, 512)
    alts = " ".join(one.alt for card in cards for one in card.images)
    assert "(unseen, correct)" in alts
    assert "No distillation: nothing" in alts
    for gallery_row in gallery_rows:
        expected = "AP " if "seen actions only" in gallery_row.title else "unseen AP "
        for card in gallery_row.items:
            assert card.images[0].note == ""
            assert all(one.note.startswith(expected) for one in card.images[1:])


def test_only_pictures_that_are_there(material):
    there = {item.image_id for item in material[1][::3]}
    cards = items_of(build_gallery(*material, there))
    assert cards and {card.image_id for card in cards} <= there
    assert build_gallery(*material, ()) == []


def test_verbs_without_object_stay_out(material):
    comparison, annotations, entries, load_image = material
    lead, detections = entries[0]

    def alone(item, **fields):
        hois = np.concatenate([[[0, -1, 0]], item.hois])
        return replace(item, hois=hois, **fields)

    told = [alone(item) for item in annotations]
    found = [alone(item, scores=np.append(1, item.scores)) for item in detections]
    cards = items_of(build_gallery(comparison, told, [(lead, found)], load_image))
    plain = items_of(build_gallery(comparison, annotations, [(lead, detections)], load_image))
    assert [one.alt for card in cards for one in card.images] == [
        one.alt for card in plain for one in card.images
    ]


def test_unreadable_pictures_are_left_out(material):
    comparison, annotations, entries, load_image = material

    def some(image_id):
        if int(image_id[-5]) % 2:
            raise InputError(f"{image_id}: expected a whole image")
        return load_image(image_id)

    everything = items_of(build_gallery(*material))
    cards = items_of(build_gallery(comparison, annotations, entries, some))
    assert [card.image_id for card in cards] == [
        card.image_id for card in everything if int(card.image_id[-5]) % 2 == 0
    ]


def test_unseen_actions_are_not_hidden_behind_guesses_about_others(toy, material, annotate, detect):
    """They score lower; both kinds show as many detections as there are labels."""
    comparison, entries = material[0], material[2]
    truth = annotate("a.jpg", ("ride", "horse"), ("kick", "ball"))
    guesses = [("ride", "horse", 0.9), ("kick", "ball", 0.2, 0, 1), ("hold", "ball", 0.8, 0, 1)]
    found = detect("a.jpg", *sorted(guesses, key=lambda guess: -guess[2]))
    picture = Image.new("RGB", (64, 64))
    (gallery_row,) = build_gallery(
        comparison, [truth], [(entries[0][0], [found])], lambda _: picture
    )
    assert gallery_row.items[0].images[1].alt == (
        "a.jpg, Distilled: ride horse (correct) and kick ball (unseen, correct)"
    )
