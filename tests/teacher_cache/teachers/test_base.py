from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.types import Pairs
from pipeline.utils.errors import InputError
from teacher_cache.reader.soft_targets import object_actions
from teacher_cache.teachers.base import Teacher, TeacherImage, softmax_over_actions

CPU = torch.device("cpu")


class Constant(Teacher):
    """Returns what it was made with, and keeps what it was given."""

    name = "constant"

    def __init__(self, scores, **attributes):
        super().__init__(CPU)
        self.scores, self.images = scores, []
        for name, value in attributes.items():
            setattr(self, name, value)

    def score(self, images, pairs, vocabulary):
        self.images += images
        return self.scores(pairs, vocabulary) if callable(self.scores) else self.scores


@pytest.fixture
def batch(vocabulary):
    """Two images, the second without pairs; the first has three with two regions."""
    boxes = np.array([[0, 0, 4, 4]] * 3, np.float32)
    ones = np.ones(3, np.float32)
    labels = np.flatnonzero(object_actions(vocabulary).any(axis=1))[:3]
    pairs = Pairs(boxes, boxes, labels, ones, ones, np.ones(3, np.uint8))
    none = Pairs(*(getattr(pairs, name)[:0] for name in vars(pairs)))
    pixels = Image.new("RGB", (8, 6), (255, 0, 0))
    first = TeacherImage("first.jpg", pixels, boxes[:2], np.array([0, 1, 1]))
    second = replace(first, image_id="second.jpg", region_boxes=boxes[:0])
    return [first, second], [pairs, none]


def uniform(pairs, vocabulary):
    labels = np.concatenate([each.object_labels for each in pairs])
    return softmax_over_actions(np.zeros((len(labels), vocabulary.num_verbs)), pairs, vocabulary)


def score(teacher, batch, vocabulary):
    (scores,) = teacher.score_batches([batch], vocabulary)
    return scores


def test_images_with_pairs_are_scored_and_cropped_if_asked(batch, vocabulary):
    teacher = Constant(uniform)
    probabilities, embeddings = score(teacher, batch, vocabulary)
    assert probabilities.dtype == np.float32 and embeddings is None
    np.testing.assert_allclose(probabilities.sum(1), 1, atol=1e-6)
    assert [image.image_id for image in teacher.images] == ["first.jpg"]
    assert teacher.images[0].regions is None
    cropping = Constant(uniform, image_size=5)
    score(cropping, batch, vocabulary)
    assert cropping.images[0].regions.shape == (2, 3, 5, 5)
    assert (cropping.images[0].regions[:, 0] == 255).all()


def test_tensors_and_embeddings(batch, vocabulary):
    teacher = Constant(lambda *args: (torch.from_numpy(uniform(*args)), torch.ones(2, 9) * 7))
    probabilities, embeddings = score(teacher, batch, vocabulary)
    np.testing.assert_array_equal(probabilities, score(Constant(uniform), batch, vocabulary)[0])
    np.testing.assert_allclose(embeddings, np.full((2, 9), 1 / 3), atol=1e-6)


def test_verbs_without_interaction_become_0(batch, vocabulary):
    ones = np.ones((3, vocabulary.num_verbs))
    found, _ = score(Constant(ones, probabilities="independent"), batch, vocabulary)
    np.testing.assert_array_equal(found, object_actions(vocabulary)[batch[1][0].object_labels])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda values: values[:-1], "shape .3, "),
        (lambda values: values / 2, "sum to 1 over the object's actions"),
        (lambda values: values * np.nan, "probabilities from 0 to 1"),
        (lambda values: (values, np.ones((3, 2))), "embeddings of shape .2, D., found .3, 2."),
        (lambda values: (values, None, None), "a tuple of these and embeddings, found a tuple of"),
        (lambda values: None, "shape .3, .*, found NoneType"),
        (lambda values: [[1], [1, 2]], "shape .3, .*, found list"),
        (lambda values: {"a": 1}, "shape .3, .*, found dict"),
        (lambda values: values.astype(str), "of real numbers, found an array of <U"),
        (lambda values: values + 1j, "of real numbers, found an array of complex"),
        (lambda values: torch.from_numpy(values + 1j), "numbers, found an array of complex"),
        (lambda values: values * np.float64(1e60), "probabilities from 0 to 1 .*, found .*inf"),
    ],
)
def test_other_scores_are_refused(batch, vocabulary, change, message):
    teacher = Constant(lambda *args: change(uniform(*args)))
    with pytest.raises(InputError, match=f"teacher constant: first.jpg: expected .*{message}"):
        score(teacher, batch, vocabulary)


def test_the_width_of_embeddings_stays_the_same(batch, vocabulary):
    widths = iter((4, 5))
    teacher = Constant(lambda *args: (uniform(*args), np.ones((2, next(widths)))))
    score(teacher, batch, vocabulary)
    with pytest.raises(InputError, match=r"embeddings of shape \(2, 4\), found \(2, 5\)"):
        score(teacher, batch, vocabulary)


def test_no_probability_is_minus_0(batch, vocabulary):
    zeros = np.full((3, vocabulary.num_verbs), -0.0)
    found, _ = score(Constant(zeros, probabilities="independent"), batch, vocabulary)
    assert not np.signbit(found).any()


def test_what_a_teacher_writes_into_arrays_is_lost(batch, vocabulary):
    class Writing(Constant):
        def score(self, images, pairs, vocabulary):
            pairs[0].human_boxes[:] = images[0].region_boxes[:] = -1
            return super().score(images, pairs, vocabulary)

    score(Writing(uniform), batch, vocabulary)
    assert (batch[1][0].human_boxes >= 0).all() and (batch[0][0].region_boxes >= 0).all()


def test_errors_of_the_users_code_are_one_line(batch, vocabulary):
    with pytest.raises(InputError, match=r"teacher constant: score: .*ZeroDivisionError: .*py:\d+"):
        score(Constant(lambda *_: 1 / 0), batch, vocabulary)


@pytest.mark.parametrize(
    "attributes",
    [
        {"probabilities": "logits"},
        {"image_size": 0},
        {"image_size": "big"},
        {"image_size": 10**6},
        {"interpolation": "cubic"},
        {"name": None},
    ],
)
def test_other_attributes_are_refused(attributes):
    with pytest.raises(InputError, match=f"teacher.*{next(iter(attributes))}.*: expected"):
        Constant(None, **attributes).check_attributes()


def test_the_fingerprint():
    teacher = Constant(None, plugin_settings={"bins": "8"}, image_size=32)
    assert teacher.fingerprint_parts() == {
        "teacher": "constant",
        "teacher.settings.bins": "8",
        "teacher.image_size": 32,
        "teacher.interpolation": "bicubic",
    }
    teacher = Constant(None, probabilities="independent", fingerprint=lambda: {"scales": (1, 2)})
    assert teacher.fingerprint_parts() == {
        "teacher": "constant",
        "teacher.scales": [1, 2],
        "probabilities": "independent",
    }
    with pytest.raises(InputError, match="teacher constant: fingerprint: "):
        Constant(None, fingerprint=lambda: {"file": object()}).fingerprint_parts()
