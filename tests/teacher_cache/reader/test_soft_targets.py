import numpy as np
import pytest

from pipeline.vocabulary import load_vocabulary
from teacher_cache.reader.soft_targets import action_probabilities, objects_with_actions


@pytest.mark.golden("criterion_*.npz")
def test_golden_teacher_probabilities(golden_file):
    hico = load_vocabulary("hico-det")
    values = np.load(golden_file)
    images = [name.split(".")[0] for name in values.files if name.endswith(".clip_logits")]
    assert images
    for image in images:
        found = action_probabilities(
            values[f"{image}.clip_logits"], values[f"{image}.obj_labels"], hico
        )
        assert np.abs(found - values[f"{image}.teacher_probs"]).max(initial=0) <= 1e-6


def test_no_pairs(vocabulary):
    empty = np.zeros((0, vocabulary.num_interactions), dtype=np.float32)
    assert action_probabilities(empty, np.zeros(0, dtype=np.int64), vocabulary).shape == (
        0,
        vocabulary.num_verbs,
    )


def test_an_object_without_actions_gets_zeros(vocabulary):
    logits = np.ones((1, vocabulary.num_interactions), dtype=np.float32)
    assert not action_probabilities(logits, np.array([vocabulary.person]), vocabulary).any()


def test_large_logits_do_not_overflow(vocabulary):
    """A common shift changes nothing, even where exp overflows in float32."""
    logits = np.linspace(0, 3, vocabulary.num_interactions, dtype=np.float32)[None]
    ball = np.array([vocabulary.objects.index("ball")])
    expected = action_probabilities(logits, ball, vocabulary)
    np.testing.assert_allclose(
        action_probabilities(logits + 500, ball, vocabulary), expected, rtol=1e-3
    )
    assert np.isclose(expected.sum(), 1)


def test_objects_with_actions(vocabulary):
    found = objects_with_actions(vocabulary)
    assert not found[vocabulary.person]
    assert found.sum() == vocabulary.num_objects - 1
