import dataclasses

import numpy as np
import pytest
import torch

from pipeline.types import Detections
from pipeline.vocabulary import Vocabulary
from student.inference.postprocess import SelectionConfig, select_detections

VOCABULARY = Vocabulary(
    name="small",
    verbs=("ride", "hold", "see"),
    verb_ings=("riding", "holding", "seeing"),
    objects=("person", "horse", "cup"),
    category_ids=(1, 19, 47),
    interactions=((0, 1), (1, 2), (2, 0), (2, 1)),
)
FAR = -1000.0


def outputs(labels, verbs, boxes=None, dtype=torch.float32):
    """Outputs of queries with certain object classes and the given verb logits."""
    objects = torch.full((1, len(labels), 4), FAR)
    objects[0, torch.arange(len(labels)), torch.tensor(labels)] = 0.0
    boxes = torch.tensor([[0.5, 0.5, 0.5, 0.5]] * len(labels)) if boxes is None else boxes
    return {
        "pred_object_logits": objects.to(dtype),
        "pred_verb_logits": torch.tensor([verbs]).to(dtype),
        "pred_human_boxes": boxes[None],
        "pred_object_boxes": boxes[None] / 2,
    }


def test_scores_are_products_and_other_pairs_are_left_out():
    found = outputs([1, 2], [[0.0, 9.0, 1.0], [9.0, -1.0, 9.0]])
    found["pred_object_logits"][0, 0] = torch.tensor([FAR, 0.0, FAR, 0.0])
    (detections,) = select_detections(found, ["a.jpg"], [(100, 200)], VOCABULARY)
    named = {
        (int(detections.labels[o]), int(v)): score
        for (_, o, v), score in zip(detections.hois, detections.scores, strict=True)
    }
    sigmoid = 1 / (1 + np.exp(-np.array([0.0, 1.0, -1.0])))
    expected = {(1, 0): sigmoid[0] / 2, (1, 2): sigmoid[1] / 2, (2, 1): sigmoid[2]}
    assert named == pytest.approx(expected)
    assert (np.diff(detections.scores) <= 0).all()
    assert detections.labels.reshape(-1, 2)[:, 0].tolist() == [0, 0]


def test_no_pair_is_never_the_object():
    found = outputs([3], [[1.0, 1.0, 1.0]])
    found["pred_object_logits"][0, 0] = torch.tensor([0.0, 1.0, 0.5, 50.0])
    (detections,) = select_detections(found, ["a.jpg"], [(10, 10)], VOCABULARY)
    assert detections.labels.tolist() == [0, 1]
    assert (detections.scores < 1e-20).all() and len(detections.scores) == 2


def test_boxes_are_clipped_pixels_of_the_original_image():
    boxes = torch.tensor([[0.5, 0.5, 0.5, 0.5], [0.9, 0.1, 0.4, 0.4]])
    found = outputs([1, 1], [[1.0, FAR, FAR], [2.0, FAR, FAR]], boxes)
    (detections,) = select_detections(found, ["a.jpg"], [(100, 200)], VOCABULARY, max_detections=2)
    humans, objects = (
        detections.boxes[detections.hois[:, 0]],
        detections.boxes[detections.hois[:, 1]],
    )
    np.testing.assert_allclose(humans, [[70, 0, 100, 60], [25, 50, 75, 150]], atol=1e-4)
    np.testing.assert_allclose(objects, [[35, 0, 55, 30], [12.5, 25, 37.5, 75]], atol=1e-4)
    assert detections.boxes.dtype == np.float32 and detections.scores.dtype == np.float32


@pytest.mark.parametrize(("most", "kept"), [(0, 0), (1, 1), (3, 3), (100, 4)])
def test_only_the_highest_scores_are_kept(most, kept):
    found = outputs([1, 1], [[3.0, 1.0, 0.0], [2.0, 1.0, -1.0]])
    (detections,) = select_detections(found, ["a.jpg"], [(10, 10)], VOCABULARY, max_detections=most)
    sigmoid = 1 / (1 + np.exp(-np.array([3.0, 2.0, 0.0, -1.0])))
    np.testing.assert_allclose(detections.scores, sigmoid[:kept], rtol=1e-6)
    assert detections.hois.shape == (kept, 3)
    assert len(detections.boxes) == len(detections.labels) == 2 * len(set(detections.hois[:, 0]))


def test_verbs_without_object_in_a_vocabulary_with_roles():
    roles = ({"action": "ride", "roles": ["obj"], "verbs": ["ride"]},)
    found = outputs([1, 3], [[1.0, FAR, FAR], [2.0, FAR, 3.0]])
    found["pred_object_logits"][0, 0] = torch.tensor([FAR, 1.0, FAR, 0.0])
    plain, *_ = select_detections(found, ["a.jpg"], [(10, 10)], VOCABULARY)
    assert (plain.hois[:, 1] >= 0).all()
    (detections,) = select_detections(
        found, ["a.jpg"], [(10, 10)], dataclasses.replace(VOCABULARY, roles=roles), max_detections=4
    )
    rows = zip(detections.hois.tolist(), detections.scores.tolist(), strict=True)
    named = {(int(h), int(o), int(v)): round(score, 4) for (h, o, v), score in rows}
    sigmoid = 1 / (1 + np.exp(-np.array([1.0, 2.0, 3.0])))
    assert named == {
        (0, 1, 0): round(sigmoid[0] * sigmoid[0], 4),
        (0, -1, 0): round(sigmoid[0] * (1 - sigmoid[0]), 4),
        (2, -1, 0): round(sigmoid[1], 4),
        (2, -1, 2): round(sigmoid[2], 4),
    }


def test_no_interaction_is_left_out_before_the_best_are_taken(toy):
    verbs = [toy.verbs.index(name) for name in ("no_interaction", "hold", "no_interaction", "kick")]
    found = Detections(
        image_id="a.jpg",
        boxes=np.zeros((2, 4), np.float32),
        labels=np.array([toy.person, toy.objects.index("ball")]),
        hois=np.array([(0, 1, verb) for verb in verbs]),
        scores=np.array([0.9, 0.8, 0.7, 0.6], np.float32),
    )
    kept = SelectionConfig(top=2).select(found, toy)
    assert kept.hois[:, 2].tolist() == [verbs[1], verbs[3]] and len(kept.boxes) == 2
    np.testing.assert_array_equal(kept.scores, found.scores[[1, 3]])
    every = SelectionConfig(no_interaction=True).select(found, toy)
    assert every.hois[:, 2].tolist() == verbs
    # A vocabulary without this verb.
    found = dataclasses.replace(found, hois=found.hois % 3)
    assert len(SelectionConfig().select(found, VOCABULARY).hois) == 4
