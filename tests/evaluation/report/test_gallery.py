import base64
import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from evaluation.analysis.comparison import compare
from evaluation.hico.matching import match_detections
from evaluation.predictions import read_predictions
from evaluation.report.gallery import (
    NUM_RANDOM,
    NUM_SEEN,
    build_gallery,
    interaction_indices,
    per_image_ap,
    select_images,
)
from evaluation.results import read_results
from pipeline.datasets.dataset import open_dataset
from pipeline.images import read_image
from pipeline.utils.errors import InputError


@pytest.fixture(scope="module")
def gallery_inputs(toy, runs):
    """Arguments of `build_gallery`; the control has no detections on most images."""
    results = [read_results(runs / name / "results.json") for name in ("distilled", "control")]
    comparison = compare(results, toy)
    dataset = open_dataset(runs / "toy")
    files = {record.id: record.path for record in dataset.records("test")}
    entries = [
        (entry, read_predictions(entry.results[0].predictions, toy)) for entry in comparison.entries
    ]
    entries[1][1][:] = entries[1][1][:5]
    annotations = dataset.load("test").annotations
    return comparison, annotations, entries, lambda image_id: read_image(files[image_id])


def all_items(gallery_rows):
    return [item for gallery_row in gallery_rows for item in gallery_row.items]


def test_build_gallery(gallery_inputs):
    gallery_rows = build_gallery(*gallery_inputs)
    assert next(iter(gallery_rows)).title == "Best"
    items = all_items(gallery_rows)
    assert len(items) >= 12
    for item in items:
        titles = [drawing.title for drawing in item.images]
        assert titles == ["Ground truth", "Distilled", "No distillation"]
        assert all(item.image_id in drawing.alt for drawing in item.images)
        for drawing in item.images:
            data = base64.b64decode(drawing.data_uri.partition(",")[2])
            assert Image.open(io.BytesIO(data)).size == drawing.image.size == (512, 512)
    alts = " ".join(drawing.alt for item in items for drawing in item.images)
    assert "(unseen, correct)" in alts
    assert "No distillation: nothing" in alts
    for gallery_row in gallery_rows:
        expected = "AP " if "seen actions only" in gallery_row.title else "unseen AP "
        for item in gallery_row.items:
            assert item.images[0].note == ""
            assert all(drawing.note.startswith(expected) for drawing in item.images[1:])


def test_only_available_images(gallery_inputs):
    there = {item.image_id for item in gallery_inputs[1][::3]}
    items = all_items(build_gallery(*gallery_inputs, there))
    assert items and {item.image_id for item in items} <= there
    assert build_gallery(*gallery_inputs, ()) == []


def test_verbs_without_object_are_not_drawn(gallery_inputs):
    comparison, annotations, entries, load_image = gallery_inputs
    lead, detections = entries[0]

    def alone(item, **fields):
        hois = np.concatenate([[[0, -1, 0]], item.hois])
        return replace(item, hois=hois, **fields)

    changed = [alone(item) for item in annotations]
    found = [alone(item, scores=np.append(1, item.scores)) for item in detections]
    items = all_items(build_gallery(comparison, changed, [(lead, found)], load_image))
    plain = all_items(build_gallery(comparison, annotations, [(lead, detections)], load_image))
    assert [drawing.alt for item in items for drawing in item.images] == [
        drawing.alt for item in plain for drawing in item.images
    ]


def test_unreadable_images_are_left_out(gallery_inputs):
    comparison, annotations, entries, load_image = gallery_inputs

    def some(image_id):
        if int(image_id[-5]) % 2:
            raise InputError(f"{image_id}: expected a whole image")
        return load_image(image_id)

    everything = all_items(build_gallery(*gallery_inputs))
    items = all_items(build_gallery(comparison, annotations, entries, some))
    assert [item.image_id for item in items] == [
        item.image_id for item in everything if int(item.image_id[-5]) % 2 == 0
    ]


def test_unseen_and_seen_detections_are_counted_separately(toy, gallery_inputs, annotate, detect):
    """Of both groups, as many detections are drawn as there are labels."""
    comparison, entries = gallery_inputs[0], gallery_inputs[2]
    truth = annotate("a.jpg", ("ride", "horse"), ("kick", "ball"))
    guesses = [("ride", "horse", 0.9), ("kick", "ball", 0.2, 0, 1), ("hold", "ball", 0.8, 0, 1)]
    found = detect("a.jpg", *sorted(guesses, key=lambda guess: -guess[2]))
    image = Image.new("RGB", (64, 64))
    (gallery_row,) = build_gallery(comparison, [truth], [(entries[0][0], [found])], lambda _: image)
    assert gallery_row.items[0].images[1].alt == (
        "a.jpg, Distilled: ride horse (correct) and kick ball (unseen, correct)"
    )


KICK, HOLD, PULL = ("kick", "ball"), ("hold", "ball"), ("pull", "box")


def unseen_kick(toy):
    return [int(toy.interaction_ids[toy.verbs.index("kick"), toy.objects.index("ball")])]


def whole(annotations, detections, vocabulary):
    part = match_detections(annotations, detections, vocabulary).matched
    return part


def test_per_image_ap_of_nothing(toy):
    assert per_image_ap(whole([], [], toy), 0).shape == (0,)


def test_per_image_ap(toy, annotate, detect):
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
    part = whole(annotations, detections, toy)
    assert per_image_ap(part, 5) == pytest.approx(expected, nan_ok=True)
    # Only detections and labels of unseen interactions are counted.
    kick = unseen_kick(toy)
    expected = [1, 0, 1, 1, np.nan]
    assert per_image_ap(part, 5, kick) == pytest.approx(expected, nan_ok=True)


def test_select_nothing(toy):
    assert select_images([], np.zeros(0), np.zeros(0), toy, ()) == []


def test_select_gallery_rows(toy, annotate):
    annotations = [annotate(f"{i}.jpg", KICK if i % 2 else HOLD) for i in range(60)]
    whole = np.linspace(0, 1, 60)
    unseen = np.where(np.arange(60) % 2, 1 - whole, np.nan)
    gallery_rows = {
        title: images
        for title, _, images in select_images(annotations, unseen, whole, toy, unseen_kick(toy))
    }
    names = ["Best", "Worst", "Drawn at random", "Drawn at random, seen actions only"]
    assert list(gallery_rows) == names
    random, seen_only = gallery_rows[names[2]], gallery_rows[names[3]]
    assert (len(random), len(seen_only)) == (NUM_RANDOM, NUM_SEEN) and NUM_RANDOM + NUM_SEEN == 12
    # There is one unseen action, so one best and one worst image, by the AP of the unseen.
    left = [index for index in range(1, 60, 2) if index not in random]
    assert gallery_rows["Best"] == left[:1]
    assert gallery_rows["Worst"] == left[-1:]
    chosen = [index for images in gallery_rows.values() for index in images]
    assert len(set(chosen)) == len(chosen)
    assert all(index % 2 == 0 for index in seen_only)
    assert all(index % 2 for index in random)
    # The random images do not depend on the AP.
    again = select_images(annotations, unseen[::-1] * 0, 1 - whole, toy, unseen_kick(toy))
    assert [images for title, _, images in again if title == names[2]] == [random]


def test_select_without_unseen_actions(toy, annotate):
    annotations = [annotate("a.jpg", KICK), annotate("b.jpg", PULL), annotate("c.jpg")]
    quality = np.array([0.2, 0.9, np.nan])
    gallery_rows = select_images(annotations, quality, quality, toy, ())
    assert [(title, images) for title, _, images in gallery_rows] == [("Drawn at random", [0, 1])]
    many = [annotate(f"{i}.jpg", KICK) for i in range(30)]
    quality = np.linspace(0, 1, 30)
    gallery_rows = {
        title: images for title, _, images in select_images(many, quality, quality, toy, ())
    }
    assert list(gallery_rows) == ["Best", "Worst", "Drawn at random"]
    assert len(gallery_rows["Drawn at random"]) == 12


def test_interaction_indices_of_verbs_without_object(toy, annotate):
    annotation = annotate("a.jpg", KICK)
    hois = np.array([[0, 1, toy.verbs.index("kick")], [0, -1, 0], [0, 0, 0]])
    annotation = type(annotation)("a.jpg", annotation.boxes, annotation.labels, hois)
    assert interaction_indices(annotation, toy) == [*unseen_kick(toy), -1, -1]
