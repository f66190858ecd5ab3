from dataclasses import replace

import pytest
import torch

from student.config import ModelConfig
from student.data.targets import Targets
from student.losses.criterion import proposal_losses
from student.models.detector import HOIDetector
from student.models.proposal_queries import (
    ProposalOutputs,
    ProposalQueries,
    pair_spatial_features,
    union_cxcywh,
)

CONFIG = ModelConfig.toy(num_objects=5, num_verbs=7, person=2)


@pytest.fixture
def queries():
    torch.manual_seed(0)
    return ProposalQueries(CONFIG, channels=6)


def maps(batch=2, height=8, width=8):
    return {"stride8": torch.randn(batch, 6, height, width)}


def test_shapes(queries):
    start = queries(maps(), None)
    d, count = CONFIG.hidden_dim, CONFIG.num_queries
    assert start.target.shape == start.positions.shape == (2, count, d)
    assert start.interaction_target.shape == (2, count, d)
    assert start.human_reference.shape == start.object_reference.shape == (2, count, 4)
    assert isinstance(start.outputs["proposals"], ProposalOutputs)


@pytest.mark.parametrize(
    ("size", "asked", "count"),
    [
        ((8, 8), 20, 20),
        ((8, 8), 32, 32),
        ((8, 8), 33, 33),
        ((8, 8), 64, 64),
        ((16, 16), 300, 300),
        ((1, 1), 20, 5),  # one cell holds one person and an object of every class
        ((1, 1), 3, 3),
    ],
)
def test_as_many_queries_as_asked_for_or_there_are_pairs(size, asked, count):
    queries = ProposalQueries(replace(CONFIG, num_queries=asked), channels=6)
    assert queries(maps(1, *size), None).target.shape[1] == count


def test_references_are_pairs_of_the_proposal_heads_boxes(queries):
    start = queries(maps(), None)
    dense = start.outputs["proposals"]
    for reference, branch in ((start.human_reference, 0), (start.object_reference, 1)):
        cells = dense.boxes[:, branch].flatten(2).transpose(1, 2)
        for image in range(2):
            assert all((cells[image] == box).all(1).any() for box in reference[image])


class Planted(torch.nn.Module):
    """A proposal head that sees one person and two things."""

    def forward(self, features, padding):
        logits = torch.full((1, 5, 8, 8), -9.0)
        boxes = torch.full((1, 2, 4, 8, 8), 0.25)
        for label, row, column, value in ((2, 3, 3, 4.0), (0, 3, 4, 3.0), (4, 6, 1, 2.0)):
            logits[0, label, row, column] = value
            boxes[0, int(label != 2), :, row, column] = 0.1 * (label + 1)
        return ProposalOutputs(logits, boxes, torch.ones(1, 2))


def test_the_likeliest_pairs_come_first(queries):
    queries.head = Planted()
    seen = []
    queries.label.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))
    start = queries(maps(1), None)
    assert seen[0][0, :2].tolist() == [0, 4] and not (seen[0] == 2).any()
    torch.testing.assert_close(start.human_reference[0, :2], torch.full((2, 4), 0.3))
    torch.testing.assert_close(start.object_reference[0, :2], torch.tensor([[0.1] * 4, [0.5] * 4]))


def test_the_proposal_head_learns_from_its_own_losses_only(queries):
    features = maps()
    features["stride8"].requires_grad_()
    start = queries(features, None)
    parts = (start.target, start.positions, start.interaction_target)
    parts += (start.human_reference, start.object_reference)
    sum(part.square().sum() for part in parts).backward()
    assert features["stride8"].grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in queries.head.parameters())
    targets = replace(
        Targets(*[torch.zeros(0)] * 7),
        detected_boxes=torch.rand(4, 4),
        detected_labels=torch.tensor([2, 0, 2, 0]),
        detected_images=torch.tensor([0, 0, 1, 1]),
    )
    sum(proposal_losses(start.outputs["proposals"], targets, 2).values()).backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in queries.head.parameters())


def test_the_smallest_box_around_two():
    first = torch.tensor([[0.2, 0.2, 0.2, 0.4], [0.5, 0.5, 1.0, 1.0]])
    second = torch.tensor([[0.6, 0.3, 0.2, 0.2], [0.5, 0.5, 0.1, 0.1]])
    expected = torch.tensor([[0.4, 0.2, 0.6, 0.4], [0.5, 0.5, 1.0, 1.0]])
    torch.testing.assert_close(union_cxcywh(first, second), expected)


def test_geometry_of_a_pair():
    human = torch.tensor([[0.4, 0.5, 0.2, 0.4]])
    thing = torch.tensor([[0.5, 0.3, 0.4, 0.1]])
    values = pair_spatial_features(human, thing)
    assert values.shape == (1, 12)
    torch.testing.assert_close(values[:, :8], torch.cat([human, thing], 1))
    expected = torch.tensor([[0.5, -0.5, torch.tensor(2.0).log(), torch.tensor(0.25).log()]])
    torch.testing.assert_close(values[:, 8:], expected)


def test_geometry_of_degenerate_boxes_is_finite():
    values = pair_spatial_features(torch.zeros(1, 4), torch.ones(1, 4))
    assert torch.isfinite(values).all() and values.abs().max() <= 4


def test_the_toy_student_predicts_from_pairs():
    torch.manual_seed(0)
    outputs = HOIDetector(CONFIG).eval()([torch.randn(3, 128, 128)] * 2)
    assert outputs["pred_verb_logits"].shape == (2, CONFIG.num_queries, CONFIG.num_verbs)
    assert outputs["proposals"].logits.shape == (2, 5, 16, 16)
    assert len(outputs["aux_outputs"]) == 1


def parts(start):
    return {
        "target": start.target,
        "positions": start.positions,
        "human_reference": start.human_reference,
        "object_reference": start.object_reference,
        "interaction_target": start.interaction_target,
    }


def small_boxes(head):
    """Boxes in the middle of their cells: none reaches over the edge of its image."""
    for layer in head.boxes:
        torch.nn.init.zeros_(layer.weight)
        torch.nn.init.constant_(layer.bias, -20.0)
        torch.nn.init.zeros_(layer.bias[:2])


@pytest.mark.parametrize("pair_people", [False, True])
def test_an_image_among_larger_ones_has_the_queries_it_has_alone(pair_people):
    torch.manual_seed(0)
    queries = ProposalQueries(replace(CONFIG, pair_people=pair_people), channels=6)
    small_boxes(queries.head)
    alone = [torch.randn(1, 6, 7, 11), torch.randn(1, 6, 13, 5)]
    batch, padding = torch.randn(2, 6, 13, 11), torch.ones(2, 104, 88, dtype=torch.bool)
    for row, one in enumerate(alone):
        height, width = one.shape[-2:]
        batch[row, :, :height, :width] = one[0]
        padding[row, : 8 * height, : 8 * width] = False
    together = parts(queries({"stride8": batch}, padding))
    for row, one in enumerate(alone):
        for name, value in parts(queries({"stride8": one}, None)).items():
            torch.testing.assert_close(together[name][row], value[0], rtol=1e-3, atol=1e-4)


def test_a_mask_without_padding_changes_nothing(queries):
    features = maps()
    masked = parts(queries(features, torch.zeros(2, 64, 64, dtype=torch.bool)))
    for name, value in parts(queries(features, None)).items():
        assert torch.equal(masked[name], value)


class Couple(torch.nn.Module):
    """A proposal head that sees two people and a thing."""

    def forward(self, features, padding):
        logits = torch.full((1, 5, 8, 8), -9.0)
        boxes = torch.full((1, 2, 4, 8, 8), 0.25)
        for label, row, column, value in ((2, 3, 3, 4.0), (2, 6, 6, 3.0), (4, 1, 1, 2.0)):
            logits[0, label, row, column] = value
            boxes[0, int(label != 2), :, row, column] = value / 10
        return ProposalOutputs(logits, boxes, torch.ones(1, 2))


@pytest.mark.parametrize("pair_people", [False, True])
def test_people_are_paired_with_other_people(pair_people):
    torch.manual_seed(0)
    queries = ProposalQueries(replace(CONFIG, pair_people=pair_people), channels=6)
    queries.head = Couple()
    seen = []
    queries.label.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))
    start = queries(maps(1), None)
    found = torch.stack([start.human_reference[0, :, 0], start.object_reference[0, :, 0]], 1)
    first, second, thing = 0.4, 0.3, 0.2
    with_thing, among = [[first, thing], [second, thing]], [[first, second], [second, first]]
    expected = among + with_thing if pair_people else with_thing
    # Two people are as likely a pair one way round as the other.
    first_pairs = torch.tensor(sorted(found[: len(expected)].tolist()))
    torch.testing.assert_close(first_pairs, torch.tensor(sorted(expected)))
    assert seen[0][0, : len(expected)].tolist() == [2, 2, 4, 4][-len(expected) :]
    assert bool((seen[0] == 2).any()) == pair_people
    themselves = (found[:, 0] == found[:, 1]) & (found[:, 0] > 0.25) & (seen[0][0] == 2)
    assert not themselves.any()


def test_the_detector_takes_images_of_any_size():
    torch.manual_seed(0)
    model = HOIDetector(CONFIG).eval()
    images = [torch.randn(3, 128, 128), torch.randn(3, 75, 130), torch.randn(3, 201, 90)]
    outputs = model(images)
    for name in ("pred_human_boxes", "pred_object_boxes"):
        assert outputs[name].shape == (3, CONFIG.num_queries, 4)
        assert torch.isfinite(outputs[name]).all()


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_boxes_that_are_not_numbers_end_nothing(queries, value):
    """The pooled regions are numbers, the references are not, and no loss of theirs will be."""
    for head in queries.head.boxes:
        torch.nn.init.constant_(head.bias, value)
    start = queries(maps(), None)
    if value is torch.nan:
        assert start.human_reference.isnan().any() and start.object_reference.isnan().any()
    assert start.target.shape == (2, CONFIG.num_queries, CONFIG.hidden_dim)
