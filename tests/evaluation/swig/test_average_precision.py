import json
from dataclasses import replace

import numpy as np
import pytest

from benchmarks.swig_evaluation import plain_loop
from evaluation.hico.average_precision import summarize
from evaluation.swig.average_precision import MAX_DETECTIONS, evaluate_swig, swig_iou
from evaluation.swig.predictions import read_published
from pipeline.annotations.load import load_annotations
from pipeline.annotations.swig import SwigImage
from pipeline.splits import load_split
from pipeline.types import Detections
from pipeline.vocabulary import load_vocabulary

PERSON, THING = [0.0, 0.0, 10.0, 20.0], [30.0, 0.0, 40.0, 10.0]
NEXT = [100.0, 0.0, 110.0, 20.0]


@pytest.fixture(scope="module")
def swig():
    return load_vocabulary("swig-hoi")


def image(interaction, pairs, number=0):
    """Ground truth of one interaction: `pairs` of person and object boxes."""
    boxes = np.array(pairs, dtype=np.float64).reshape(-1, 4)
    rows = np.arange(len(boxes)).reshape(-1, 2)
    interactions = np.full(len(rows), interaction)
    return SwigImage(number, f"{number}.jpg", (500, 400), boxes, rows, interactions)


def detect(vocabulary, interaction, pairs, scores, number=0):
    """Detections of one interaction in an image."""
    verb, label = vocabulary.interactions[interaction]
    boxes = np.array(pairs, dtype=np.float64).reshape(-1, 4)
    rows = np.arange(len(boxes)).reshape(-1, 2)
    return Detections(
        f"{number}.jpg",
        boxes,
        np.tile([vocabulary.person, label], len(rows)),
        np.column_stack([rows, np.full(len(rows), verb)]).astype(np.int64),
        np.array(scores, dtype=np.float64),
    )


def ap(images, detections, vocabulary, interaction):
    scores = evaluate_swig(images, detections, vocabulary)
    return scores.average_precision[interaction], scores.max_recall[interaction]


@pytest.mark.golden("swig_metrics_*.json")
def test_golden_swig(golden_file, swig):
    folder, name = golden_file.parent, golden_file.stem.removeprefix("swig_metrics_")
    expected = json.loads(golden_file.read_text())
    truth = load_annotations(folder / f"swig_annotations_{name}.json", swig, "test")
    found = read_published(folder / f"swig_predictions_{name}.json", truth.swig_images, swig)
    scores = evaluate_swig(truth.swig_images, found, swig)
    metrics = summarize(scores, swig, load_split(swig, "swig").unseen)
    for group in ("full", "unseen", "rare", "non_rare"):
        assert metrics[group] == pytest.approx(expected.pop(group), abs=1e-9)
    per_class = expected.pop("per_class")
    assert per_class and not expected
    rows = np.array(list(per_class), dtype=int)
    wanted = np.array(list(per_class.values()), dtype=float)
    assert scores.average_precision[rows] == pytest.approx(wanted[:, 0], abs=1e-9)
    assert scores.max_recall[rows] == pytest.approx(wanted[:, 1], abs=1e-9, nan_ok=True)
    others = np.setdiff1d(np.array(swig.evaluated), rows)
    assert (scores.average_precision[others] == 0).all()


def test_areas_exclude_the_last_pixel():
    first = np.array([[0, 0, 10, 10], [0, 0, 10, 10], [0, 0, 10, 10], [5, 5, 5, 9]], dtype=float)
    second = np.array([[0, 0, 10, 5], [10, 0, 20, 10], [8, 8, 2, 2], [0, 0, 9, 9]], dtype=float)
    # Touching boxes, an inverted one and one without area overlap nothing.
    assert swig_iou(first, second).tolist() == [0.5, 0, 0, 0]


def test_a_taken_pair_is_not_replaced_by_the_next_best(swig):
    """The second detection fits both pairs, and the first one is the better of them."""
    truth = [image(0, [[PERSON, THING], [[0, 0, 10, 16], THING]])]
    found = detect(swig, 0, [[PERSON, THING], [[0, 0, 10, 19], THING]], [0.9, 0.8])
    # One of two pairs: the precision is 1 up to a recall of 5 / 10.
    assert ap(truth, [found], swig, 0) == (pytest.approx(6 / 11), 0.5)


def test_repeated_labels_count(swig):
    truth = [image(0, [[PERSON, THING], [PERSON, THING]])]
    found = detect(swig, 0, [[PERSON, THING], [PERSON, THING]], [0.9, 0.8])
    assert ap(truth, [found], swig, 0) == (pytest.approx(6 / 11), 0.5)


def test_recall_thresholds_are_tenths(swig):
    """3 of 10 pairs reach the recall 3 / 10, which HICO-DET's float next to it is above."""
    pairs = [[[x, 0, x + 10, 20], [x, 30, x + 10, 50]] for x in range(0, 200, 20)]
    found = detect(swig, 0, pairs[:3], [0.9, 0.8, 0.7])
    assert ap([image(0, pairs)], [found], swig, 0) == (pytest.approx(4 / 11), 0.3)


def test_only_the_best_detections_count(swig):
    pairs = np.broadcast_to([NEXT, THING], (MAX_DETECTIONS, 2, 4))
    wrong = detect(swig, 0, pairs, np.linspace(1, 0.5, MAX_DETECTIONS))
    right = detect(swig, 0, [[PERSON, THING]], [0.1], number=1)
    truth = [image(0, [], 0), image(0, [[PERSON, THING]], 1)]
    assert ap(truth, [wrong, right], swig, 0) == (0, 0)
    fewer = replace(wrong, hois=wrong.hois[1:], scores=wrong.scores[1:])
    assert ap(truth, [fewer, right], swig, 0) == (pytest.approx(1 / MAX_DETECTIONS), 1)


def test_classes_without_detections_or_labels(swig):
    absent = next(i for i in range(swig.num_interactions) if i not in set(swig.evaluated))
    truth = [image(0, [[PERSON, THING]]), image(absent, [[PERSON, THING]], 1)]
    found = [detect(swig, 1, [[PERSON, THING]], [0.5]), detect(swig, absent, [NEXT, THING], [0.9])]
    scores = evaluate_swig(truth, found, swig)
    assert scores.average_precision[[0, 1, 2]].tolist() == [0, 0, 0]
    assert np.isnan(scores.average_precision[absent])
    assert scores.max_recall[0] == 0 and np.isnan(scores.max_recall[[1, 2, absent]]).all()
    assert np.isfinite(scores.average_precision).sum() == len(swig.evaluated) == 5539


def test_detections_on_images_without_labels_and_unknown_ones_are_wrong(swig):
    truth = [image(0, [[PERSON, THING]]), image(0, [], 1)]
    right = detect(swig, 0, [[PERSON, THING]], [0.5])
    assert ap(truth, [right], swig, 0) == (pytest.approx(1), 1)
    for number in (1, 77):
        wrong = detect(swig, 0, [[PERSON, THING]], [0.9], number)
        assert ap(truth, [right, wrong], swig, 0) == (pytest.approx(0.5), 1)


def test_no_detections(swig):
    scores = evaluate_swig([image(0, [[PERSON, THING]])], [], swig)
    assert scores.mean_ap() == 0
    assert evaluate_swig([image(0, [])], [], swig).mean_ap() == 0


@pytest.mark.parametrize("seed", range(2))
def test_agrees_with_a_plain_loop(swig, seed):
    """Crowded images, jittered boxes, equal scores, repeated labels."""
    rng = np.random.default_rng(seed)
    classes = swig.evaluated[:4]
    images, detections = [], []
    for number in range(40):
        pairs = np.concatenate([rng.uniform(0, 60, (6, 2, 2)), rng.uniform(80, 140, (6, 2, 2))], -1)
        pairs = pairs[rng.integers(0, 6, 7)]
        one = image(0, pairs, number)
        images.append(replace(one, interactions=rng.choice(classes, len(pairs))))
        rows = rng.integers(0, len(pairs), 30)
        found = detect(
            swig, 0, pairs[rows] + rng.normal(0, 6, (30, 2, 4)), rng.integers(0, 9, 30) / 9, number
        )
        wanted = np.where(rng.random(30) < 0.8, images[-1].interactions[rows], classes[0])
        verbs, labels = np.array(swig.interactions)[wanted].T
        found.labels[1::2], found.hois[:, 2] = labels, verbs
        detections.append(found)
    scores = evaluate_swig(images, detections, swig)
    expected = plain_loop(images, detections, swig)
    assert 0.05 < min(expected[row] for row in classes) < 1
    for interaction, value in expected.items():
        assert scores.average_precision[interaction] == pytest.approx(value, abs=1e-12)
