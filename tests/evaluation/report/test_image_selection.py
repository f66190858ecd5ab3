import numpy as np
import pytest

from evaluation.hico.matching import match_detections
from evaluation.report.gallery import (
    NUM_RANDOM,
    NUM_SEEN,
    interaction_indices,
    per_image_ap,
    select_images,
)

KICK, HOLD, PULL = ("kick", "ball"), ("hold", "ball"), ("pull", "box")


def unseen_kick(toy):
    return [int(toy.interaction_ids[toy.verbs.index("kick"), toy.objects.index("ball")])]


def whole(annotations, detections, vocabulary):
    (part,) = match_detections(annotations, detections, vocabulary).batches
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
    # Only what is said and labelled about unseen interactions counts.
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
    # One unseen action only, so one best and one worst picture, by the AP of the unseen.
    left = [index for index in range(1, 60, 2) if index not in random]
    assert gallery_rows["Best"] == left[:1]
    assert gallery_rows["Worst"] == left[-1:]
    chosen = [index for images in gallery_rows.values() for index in images]
    assert len(set(chosen)) == len(chosen)
    assert all(index % 2 == 0 for index in seen_only)
    assert all(index % 2 for index in random)
    # Drawn blindly: the quality has no say.
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
