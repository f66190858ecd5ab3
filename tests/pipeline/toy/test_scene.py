import hashlib
from dataclasses import replace

import numpy as np
import pytest

from pipeline.toy import scene
from pipeline.toy.canvas import IMAGE_SIZE
from pipeline.toy.generate import DRAWING_VERSION
from pipeline.toy.scene import annotate_scene, draw_scene
from pipeline.toy.scene_spec import toy_vocabulary

VOCABULARY = toy_vocabulary()


@pytest.fixture(scope="module")
def annotations():
    return [draw_scene(1, "train", index)[1] for index in range(150)]


@pytest.mark.parametrize("part", ["train", "test", "models"])
def test_same_arguments_give_the_same_bytes(part):
    first, second = draw_scene(3, part, 7), draw_scene(3, part, 7)
    assert first[0].tobytes() == second[0].tobytes()
    assert np.array_equal(first[1].boxes, second[1].boxes)
    assert np.array_equal(first[1].hois, second[1].hois)


def test_seed_part_and_index_change_the_image():
    arguments = [(seed, "train", index) for seed in (0, 1) for index in (0, 1)]
    arguments += [(0, "test", 0), (0, "models", 0)]
    assert len({draw_scene(*each)[0].tobytes() for each in arguments}) == len(arguments)


def test_boxes_are_inside_and_large_enough(annotations):
    boxes = np.concatenate([annotation.boxes for annotation in annotations])
    labels = np.concatenate([annotation.labels for annotation in annotations])
    sides = boxes[:, 2:] - boxes[:, :2]
    assert boxes.min() >= 0 and boxes.max() <= IMAGE_SIZE
    assert sides.max(1).min() >= 12 and sides.min(1).min() >= 7
    people = sides[labels == VOCABULARY.person, 1]
    assert people.min() >= 20 and 38 < np.median(people) < 50 and people.max() < 80


def test_labels_are_interactions_of_people_with_objects(annotations):
    for annotation in annotations:
        assert annotation.boxes.dtype == np.float32
        assert annotation.labels.dtype == annotation.hois.dtype == np.int64
        people, things, verbs = annotation.hois.T
        assert (annotation.labels[people] == VOCABULARY.person).all()
        assert (annotation.labels[things] != VOCABULARY.person).all()
        assert VOCABULARY.valid[verbs, annotation.labels[things]].all()
        assert len({tuple(row) for row in annotation.hois}) == len(annotation.hois)
        assert set(people) | set(things) == set(range(len(annotation.boxes)))


def test_numbers_of_people_and_pairs(annotations):
    pairs = np.array([len(annotation.hois) for annotation in annotations])
    people = np.array([(one.labels == VOCABULARY.person).sum() for one in annotations])
    assert set(people.tolist()) == {1, 2, 3}
    assert pairs.mean() == pytest.approx(1.9, abs=0.15)
    assert 0 < (pairs > people).mean() < 0.2


def test_boxes_are_tight_to_the_pixels(monkeypatch):
    """An image with people alone differs from an empty one inside the people's boxes only."""
    place_all = scene.place_groups
    monkeypatch.setattr(scene, "_draw_shadows", lambda canvas, group: None)
    for index in range(8):
        _, annotation = draw_scene(2, "train", index)
        with monkeypatch.context() as patch:
            patch.setattr(scene, "place_groups", lambda *arguments: place_all(*arguments)[:0])
            empty, _ = draw_scene(2, "train", index)
        with monkeypatch.context() as patch:
            patch.setattr(
                scene, "place_groups", lambda *arguments: _only_people(place_all(*arguments))
            )
            people, _ = draw_scene(2, "train", index)
        changed = np.abs(np.asarray(people, int) - np.asarray(empty, int)).max(2) > 24
        boxes = annotation.boxes[annotation.labels == VOCABULARY.person]
        inside = np.zeros_like(changed)
        for left, top, right, bottom in boxes:
            rows = slice(int(top), int(np.ceil(bottom)))
            columns = slice(int(left), int(np.ceil(right)))
            inside[rows, columns] = True
            part = changed[rows, columns]
            assert part[:3].any() and part[-3:].any()
            assert part[:, :3].any() and part[:, -3:].any()
        assert not (changed & ~inside).any()


def _only_people(groups):
    return [
        replace(group, parts=[part for part in group.parts if part[0] == 0]) for group in groups
    ]


def test_no_groups_give_an_empty_annotation():
    annotation = annotate_scene([], "x.jpg")
    assert annotation.boxes.shape == (0, 4) and annotation.hois.shape == (0, 3)


def test_drawing_version_matches_the_drawings():
    """A change of the drawings needs another `DRAWING_VERSION`, which marks older toy datasets."""
    digest = hashlib.sha256()
    for index in range(40):
        annotation = draw_scene(0, "train", index)[1]
        digest.update(np.round(annotation.boxes).astype(np.int64).tobytes())
        digest.update(annotation.hois.astype(np.int64).tobytes())
    assert (DRAWING_VERSION, digest.hexdigest()[:16]) == (2, "a6d0d6a9fdadab62")
