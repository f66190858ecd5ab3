from dataclasses import replace

import numpy as np
import pytest
import torch

from pipeline.splits import load_split
from pipeline.types import Annotation
from student.config import LossConfig, MatcherConfig
from student.losses import Criterion
from student.targets import Targets
from student.trust import object_trust
from teacher_cache.format import ImageAnswers
from teacher_cache.pairing import annotated_pairs

PERSON, HORSE, BALL = 0, 1, 4
RIDE, CARRY, HOLD, KICK, PULL, THROW, POINT = 0, 2, 3, 4, 6, 8, 9
BOXES = np.array([[0, 0, 20, 40], [5, 20, 60, 60], [30, 0, 40, 10]], dtype=np.float32)


def image(hois, answers):
    """An annotated image, and the teacher's best actions of its pairs."""
    labels = np.array([PERSON, HORSE, BALL])
    annotation = Annotation("a", BOXES, labels, np.array(hois).reshape(-1, 3))
    pairs = annotated_pairs(annotation)
    table = np.full((len(pairs), 11), 0.01, dtype=np.float32)
    for row, verb in enumerate(answers):
        table[row, verb] = 0.9
    none = np.zeros(len(pairs), int)
    return annotation, ImageAnswers(pairs, table, none, np.zeros((1, 4)), None)


@pytest.fixture
def split(vocabulary):
    return load_split(vocabulary, "ua")


def test_nothing_to_judge_by_is_trusted(vocabulary, split):
    assert object_trust([], split, vocabulary).tolist() == [1.0] * (vocabulary.num_objects + 1)


def test_objects_are_trusted_as_their_seen_labels_tell(vocabulary, split):
    held = [
        image([[0, 1, RIDE], [0, 2, HOLD]], [RIDE, THROW]),
        image([[0, 1, PULL], [0, 2, THROW]], [PULL, THROW]),
    ]
    trust = object_trust(held, split, vocabulary, shrinkage=4.0)
    assert trust[HORSE] == pytest.approx((2 + 4 * 0.75) / 6)
    assert trust[BALL] == pytest.approx((1 + 4 * 0.75) / 6)
    others = np.delete(trust[:-1], [HORSE, BALL])
    np.testing.assert_allclose(others, 0.75, err_msg="the mean, where an object has no pair")
    assert trust[-1] == 1


def test_an_unseen_action_that_is_likelier_is_no_mistake(vocabulary, split):
    annotation, answers = image([[0, 2, HOLD]], [HOLD])
    answers.probabilities[0, KICK] = 0.95
    assert object_trust([(annotation, answers)], split, vocabulary)[BALL] == 1


def test_unseen_labels_change_nothing(vocabulary, split):
    held = [image([[0, 2, HOLD], [0, 2, KICK], [0, 1, RIDE]], [THROW, RIDE])]
    (annotation, answers) = held[0]
    other = replace(annotation, hois=np.array([[0, 2, HOLD], [0, 2, CARRY], [0, 1, RIDE]]))
    wanted = object_trust(held, split, vocabulary)
    np.testing.assert_array_equal(object_trust([(other, answers)], split, vocabulary), wanted)
    only_unseen = [*held, image([[0, 2, KICK]], [THROW])]
    np.testing.assert_array_equal(object_trust(only_unseen, split, vocabulary), wanted)


def outputs(queries, objects, verbs):
    generator = torch.Generator().manual_seed(0)
    boxes = torch.tensor([[0.3, 0.3, 0.2, 0.2], [0.7, 0.7, 0.2, 0.2]])
    return {
        "pred_object_logits": torch.randn(1, queries, objects + 1, generator=generator),
        "pred_verb_logits": torch.randn(1, queries, verbs, generator=generator),
        "pred_human_boxes": boxes[None],
        "pred_object_boxes": boxes.flip(0)[None],
        "pred_interactive_logits": torch.randn(1, queries, 2, generator=generator),
        "aux_outputs": [],
    }


def candidates(labels, soft):
    """One candidate on each of the two queries."""
    boxes = torch.tensor([[0.3, 0.3, 0.2, 0.2], [0.7, 0.7, 0.2, 0.2]])
    none = torch.zeros(2, dtype=torch.bool)
    hard = torch.zeros(soft.shape, dtype=torch.bool)
    return Targets(boxes, boxes.flip(0), torch.tensor(labels), hard, soft, none, ~none)


def test_the_loss_of_an_answer_is_weighed_by_its_object():
    soft = torch.tensor([[0.2, 0.8, 0.0], [0.6, 0.4, 0.0]])
    given, targets = outputs(2, 2, 3), [candidates([0, 1], soft)]
    asked = torch.tensor([True, True, False])
    config = LossConfig(soft_normalisation="answers")

    def losses(trust):
        weights = None if trust is None else torch.tensor(trust)
        matcher = MatcherConfig(interactive_threshold=0.0)
        return Criterion(matcher, config, asked, weights)(given, targets).by_name

    plain = losses(None)
    assert losses([1.0, 1.0, 1.0])["verb_soft"].item() == plain["verb_soft"].item()
    first, second = (losses(trust)["verb_soft"].item() for trust in ([1.0, 0, 1], [0.0, 1, 1]))
    assert min(first, second) > 0
    assert first + second == pytest.approx(plain["verb_soft"].item(), rel=1e-5)
    mixed = losses([0.5, 0.9, 1.0])
    assert mixed["verb_soft"].item() == pytest.approx(0.5 * first + 0.9 * second, rel=1e-5)
    for name in plain.keys() - {"verb_soft"}:
        assert torch.equal(mixed[name], plain[name]), name
