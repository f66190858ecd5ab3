import base64
import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from evaluation.analysis.comparison import compare
from evaluation.predictions import read_predictions
from evaluation.report.gallery import (
    NUM_RANDOM,
    NUM_SEEN,
    build_gallery,
    image_ap,
    interaction_indices,
    match_images,
    select_images,
)
from evaluation.results import read_results
from pipeline.datasets.dataset import open_dataset

KICK, HOLD, PULL = ("kick", "ball"), ("hold", "ball"), ("pull", "box")


@pytest.fixture(scope="module")
def gallery_inputs(toy, runs):
    """Arguments of `build_gallery`; the control has no detections on most images."""
    results = [read_results(runs / name / "results.json") for name in ("distilled", "control")]
    comparison = compare(results, toy)
    dataset = open_dataset(runs / "toy")
    files = {record.id: record.path for record in dataset.records("test")}
    distilled, control = (
        (entry, read_predictions(entry.results[0].predictions, toy)) for entry in comparison.entries
    )
    entries = [distilled, (control[0], control[1][:5])]
    annotations = dataset.load("test").annotations
    return comparison, annotations, entries, files


def all_items(gallery_rows):
    return [item for gallery_row in gallery_rows for item in gallery_row.items]


def test_build_gallery(gallery_inputs):
    gallery_rows = build_gallery(*gallery_inputs)
    assert gallery_rows[0].title == "Best"
    items = all_items(gallery_rows)
    assert len(items) >= 12
    for item in items:
        titles = [drawing.title for drawing in item.images]
        assert titles == ["Ground truth", "Distilled", "No distillation"]
        assert all(item.image_id in drawing.alt for drawing in item.images)
        assert {drawing.image.size for drawing in item.images} == {(512, 512)}
    data = base64.b64decode(items[0].images[0].data_uri.partition(",")[2])
    assert Image.open(io.BytesIO(data)).size == (512, 512)
    alts = " ".join(drawing.alt for item in items for drawing in item.images)
    assert "(unseen, correct)" in alts and "No distillation: nothing" in alts
    for gallery_row in gallery_rows:
        expected = "AP " if "seen actions only" in gallery_row.title else "unseen AP "
        for item in gallery_row.items:
            assert item.images[0].note == ""
            assert all(drawing.note.startswith(expected) for drawing in item.images[1:])


def test_images_that_are_missing_or_cannot_be_read_are_left_out(gallery_inputs, tmp_path):
    comparison, annotations, entries, files = gallery_inputs
    there = {item.image_id: files[item.image_id] for item in annotations[:6]}
    first = annotations[0].image_id
    (tmp_path / first).touch()
    damaged = {**there, first: tmp_path / first}
    items = all_items(build_gallery(comparison, annotations, entries[:1], damaged))
    assert items and {item.image_id for item in items} <= there.keys() - {first}
    assert build_gallery(comparison, annotations, entries, {}) == []


def test_verbs_without_object_are_not_drawn(gallery_inputs):
    comparison, annotations, entries, files = gallery_inputs
    lead, detections = entries[0]
    annotations, detections = annotations[:6], detections[:6]

    def alts(annotations, detections):
        gallery = build_gallery(comparison, annotations, [(lead, detections)], files)
        return [drawing.alt for item in all_items(gallery) for drawing in item.images]

    def with_verb(item, **fields):
        return replace(item, hois=np.concatenate([[[0, -1, 0]], item.hois]), **fields)

    changed = [with_verb(item) for item in annotations]
    found = [with_verb(item, scores=np.append(1, item.scores)) for item in detections]
    assert alts(changed, found) == alts(annotations, detections)


def test_unseen_and_seen_detections_are_counted_separately(gallery_inputs, annotate, detect):
    """Of both groups, as many detections are drawn as there are labels."""
    comparison, _, entries, files = gallery_inputs
    truth = annotate("a.jpg", ("ride", "horse"), KICK)
    found = detect("a.jpg", ("ride", "horse", 0.9), (*HOLD, 0.8, 0, 1), (*KICK, 0.2, 0, 1))
    files = {"a.jpg": next(iter(files.values()))}
    (gallery_row,) = build_gallery(comparison, [truth], [(entries[0][0], [found])], files)
    assert gallery_row.items[0].images[1].alt == (
        "a.jpg, Distilled: ride horse (correct) and kick ball (unseen, correct)"
    )


@pytest.fixture
def kick(toy):
    """The HOI index of the unseen interaction, in a list."""
    return [int(toy.interaction_ids[toy.verbs.index("kick"), toy.objects.index("ball")])]


def test_image_ap(toy, annotate, detect, kick):
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
    labels = [interaction_indices(item, toy) for item in annotations]
    # With an unseen interaction, only its detections and labels are counted.
    for unseen, expected in (
        ([], [1, 0, (1 / 2 + 2 / 3) / 2, 1 / 2, np.nan]),
        (kick, [1, 0, 1, 1, np.nan]),
    ):
        matched = match_images(detections, annotations, toy)
        ap = [image_ap(found, own, unseen) for found, own in zip(matched, labels, strict=True)]
        assert ap == pytest.approx(expected, nan_ok=True)
    assert match_images([], [], toy) == []


def select(toy, annotations, ap, unseen):
    labels = [interaction_indices(item, toy) for item in annotations]
    return {title: images for title, _, images in select_images(labels, ap, toy, unseen)}


def test_select_gallery_rows(toy, annotate, kick):
    annotations = [annotate(f"{i}.jpg", KICK if i % 2 else HOLD) for i in range(60)]
    ap = np.linspace(1, 0, 60)
    gallery_rows = select(toy, annotations, ap, kick)
    names = ["Best", "Worst", "Drawn at random", "Drawn at random, seen actions only"]
    assert list(gallery_rows) == names
    best, worst, random, seen_only = gallery_rows.values()
    assert (len(random), len(seen_only)) == (NUM_RANDOM, NUM_SEEN) and NUM_RANDOM + NUM_SEEN == 12
    assert all(index % 2 == 0 for index in seen_only) and all(index % 2 for index in random)
    # There is one unseen action, so one best and one worst image, by the AP of the unseen.
    left = [index for index in range(1, 60, 2) if index not in random]
    assert (best, worst) == (left[:1], left[-1:])
    # The random images do not depend on the AP.
    again = select(toy, annotations, 1 - ap, kick)
    assert again[names[2]] == random and again["Best"] == worst


def test_select_without_unseen_actions(toy, annotate):
    annotations = [annotate("a.jpg", KICK), annotate("b.jpg", PULL), annotate("c.jpg")]
    found = select(toy, annotations, [0.2, 0.9, np.nan], ())
    assert found == {"Drawn at random": [0, 1]}
    many = [annotate(f"{i}.jpg", KICK) for i in range(30)]
    found = select(toy, many, np.linspace(0, 1, 30), ())
    assert list(found) == ["Best", "Worst", "Drawn at random"]
    assert len(found["Drawn at random"]) == 12
    assert select(toy, [], [], ()) == {}


def test_interaction_indices_of_verbs_without_object(toy, annotate, kick):
    hois = np.array([[0, 1, toy.verbs.index("kick")], [0, -1, 0], [0, 0, 0]])
    annotation = replace(annotate("a.jpg", KICK), hois=hois)
    assert interaction_indices(annotation, toy).tolist() == [*kick, -1, -1]
