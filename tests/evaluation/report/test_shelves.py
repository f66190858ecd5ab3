import numpy as np
import pytest

from evaluation.analysis.matched import match
from evaluation.report.gallery import NUM_RANDOM, NUM_SEEN, interactions_of, pick, picture_ap

KICK, HOLD, PULL = ("kick", "ball"), ("hold", "ball"), ("pull", "box")


def unseen_kick(world):
    return [int(world.interaction_ids[world.verbs.index("kick"), world.objects.index("ball")])]


def whole(annotations, detections, vocabulary):
    (part,) = match(annotations, detections, vocabulary).parts
    return part


def test_picture_ap_of_nothing(world):
    assert picture_ap(whole([], [], world), 0).shape == (0,)


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
    part = whole(annotations, detections, world)
    assert picture_ap(part, 5) == pytest.approx(expected, nan_ok=True)
    # Only what is said and labelled about unseen interactions counts.
    kick = unseen_kick(world)
    expected = [1, 0, 1, 1, np.nan]
    assert picture_ap(part, 5, kick) == pytest.approx(expected, nan_ok=True)


def test_pick_nothing(world):
    assert pick([], np.zeros(0), np.zeros(0), world, ()) == []


def test_pick_shelves(world, annotate):
    annotations = [annotate(f"{i}.jpg", KICK if i % 2 else HOLD) for i in range(60)]
    whole = np.linspace(0, 1, 60)
    unseen = np.where(np.arange(60) % 2, 1 - whole, np.nan)
    shelves = {
        title: images
        for title, _, images in pick(annotations, unseen, whole, world, unseen_kick(world))
    }
    names = ["Best", "Worst", "Drawn at random", "Drawn at random, seen actions only"]
    assert list(shelves) == names
    random, seen_only = shelves[names[2]], shelves[names[3]]
    assert (len(random), len(seen_only)) == (NUM_RANDOM, NUM_SEEN) and NUM_RANDOM + NUM_SEEN == 12
    # One unseen action only, so one best and one worst picture, by the AP of the unseen.
    left = [index for index in range(1, 60, 2) if index not in random]
    assert shelves["Best"] == left[:1]
    assert shelves["Worst"] == left[-1:]
    chosen = [index for images in shelves.values() for index in images]
    assert len(set(chosen)) == len(chosen)
    assert all(index % 2 == 0 for index in seen_only)
    assert all(index % 2 for index in random)
    # Drawn blindly: the quality has no say.
    again = pick(annotations, unseen[::-1] * 0, 1 - whole, world, unseen_kick(world))
    assert [images for title, _, images in again if title == names[2]] == [random]


def test_pick_without_unseen_actions(world, annotate):
    annotations = [annotate("a.jpg", KICK), annotate("b.jpg", PULL), annotate("c.jpg")]
    quality = np.array([0.2, 0.9, np.nan])
    shelves = pick(annotations, quality, quality, world, ())
    assert [(title, images) for title, _, images in shelves] == [("Drawn at random", [0, 1])]
    many = [annotate(f"{i}.jpg", KICK) for i in range(30)]
    quality = np.linspace(0, 1, 30)
    shelves = {title: images for title, _, images in pick(many, quality, quality, world, ())}
    assert list(shelves) == ["Best", "Worst", "Drawn at random"]
    assert len(shelves["Drawn at random"]) == 12


def test_interactions_of_verbs_without_object(world, annotate):
    annotation = annotate("a.jpg", KICK)
    hois = np.array([[0, 1, world.verbs.index("kick")], [0, -1, 0], [0, 0, 0]])
    annotation = type(annotation)("a.jpg", annotation.boxes, annotation.labels, hois)
    assert interactions_of(annotation, world) == [*unseen_kick(world), -1, -1]
