from dataclasses import replace

import pytest
import torch
from torchvision.ops import roi_align

from student.config import get_preset
from student.data.targets import Targets
from student.losses.criterion import proposal_losses
from student.models.proposal_queries import (
    ProposalHead,
    ProposalOutputs,
    ProposalQueries,
    grid_cell_centres,
    pair_spatial_features,
    roi_align_unpadded,
    select_top_cells,
    union_cxcywh,
)

CONFIG = get_preset("toy", 5, 7, 2).model


@pytest.fixture
def queries():
    torch.manual_seed(0)
    return ProposalQueries(CONFIG, channels=6)


def maps(batch=2, height=8, width=8):
    return {"stride8": torch.randn(batch, 6, height, width)}


@pytest.mark.parametrize(
    ("size", "num_queries", "count"),
    [
        ((8, 8), 20, 20),
        ((8, 8), 33, 33),
        ((16, 16), 300, 300),
        ((1, 1), 20, 5),  # one cell holds one person and an object of every class
        ((1, 1), 3, 3),
    ],
)
def test_number_and_reference_boxes_of_queries(size, num_queries, count):
    torch.manual_seed(0)
    queries = ProposalQueries(replace(CONFIG, num_queries=num_queries), channels=6)
    start = queries(maps(2, *size), None)
    for values in (start.target, start.positions, start.interaction_target):
        assert values.shape == (2, count, CONFIG.hidden_dim)
    proposals = start.outputs["proposals"]
    for reference, branch in ((start.human_reference, 0), (start.object_reference, 1)):
        assert reference.shape == (2, count, 4)
        cells = proposals.boxes[:, branch].flatten(2).transpose(1, 2)
        for image in range(2):
            assert all((cells[image] == box).all(1).any() for box in reference[image])


class FakeProposalHead(torch.nn.Module):
    """A proposal head that predicts some boxes, given as (label, row, column, logit).

    All coordinates of their boxes are a tenth of the logit.
    """

    def __init__(self, *peaks):
        super().__init__()
        self.peaks = peaks

    def forward(self, features, padding):
        logits = torch.full((1, 5, 8, 8), -9.0)
        boxes = torch.full((1, 2, 4, 8, 8), 0.25)
        for label, row, column, value in self.peaks:
            logits[0, label, row, column] = value
            boxes[0, int(label != 2), :, row, column] = value / 10
        return ProposalOutputs(logits, boxes, torch.ones(1, 2))


def run_with_labels(queries):
    """The queries of an image, and their object classes."""
    seen = []
    queries.label.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))
    return queries(maps(1), None), seen[0][0]


def test_queries_are_sorted_by_score(queries):
    queries.head = FakeProposalHead((2, 3, 3, 4.0), (0, 3, 4, 3.0), (4, 6, 1, 2.0))
    start, labels = run_with_labels(queries)
    assert labels[:2].tolist() == [0, 4] and not (labels == 2).any()
    torch.testing.assert_close(start.human_reference[0, :2], torch.full((2, 4), 0.4))
    torch.testing.assert_close(start.object_reference[0, :2], torch.tensor([[0.3] * 4, [0.2] * 4]))


def test_query_losses_do_not_reach_the_proposal_head(queries):
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
        proposal_boxes=torch.rand(4, 4),
        proposal_labels=torch.tensor([2, 0, 2, 0]),
        proposal_images=torch.tensor([0, 0, 1, 1]),
    )
    sum(proposal_losses(start.outputs["proposals"], targets, 2).values()).backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in queries.head.parameters())


def test_boxes_and_features_of_pairs():
    human = torch.tensor([[0.4, 0.5, 0.2, 0.4], [0.5, 0.5, 1.0, 1.0]])
    objects = torch.tensor([[0.5, 0.3, 0.4, 0.1], [0.5, 0.5, 0.1, 0.1]])
    union = torch.tensor([[0.5, 0.475, 0.4, 0.45], [0.5, 0.5, 1.0, 1.0]])
    torch.testing.assert_close(union_cxcywh(human, objects), union)
    values = pair_spatial_features(human, objects)
    torch.testing.assert_close(values[:, :8], torch.cat([human, objects], 1))
    expected = torch.tensor([0.5, -0.5, torch.tensor(2.0).log(), torch.tensor(0.25).log()])
    torch.testing.assert_close(values[0, 8:], expected)
    empty = pair_spatial_features(torch.zeros(1, 4), torch.ones(1, 4))
    assert torch.isfinite(empty).all() and empty.abs().max() <= 4


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


def pad_maps(maps, stride=8):
    """Maps of single images as one padded batch, with the mask at image size."""
    height, width = (max(one.shape[axis] for one in maps) for axis in (-2, -1))
    batch = torch.randn(len(maps), maps[0].shape[1], height, width)
    padding = torch.ones(len(maps), stride * height, stride * width, dtype=torch.bool)
    for row, one in enumerate(maps):
        batch[row, :, : one.shape[2], : one.shape[3]] = one[0]
        padding[row, : stride * one.shape[2], : stride * one.shape[3]] = False
    return batch, padding


@pytest.mark.parametrize("pair_people", [False, True])
def test_queries_of_a_padded_image_are_those_it_has_alone(pair_people):
    torch.manual_seed(0)
    queries = ProposalQueries(replace(CONFIG, pair_people=pair_people), channels=6)
    small_boxes(queries.head)
    alone = [torch.randn(1, 6, 7, 11), torch.randn(1, 6, 13, 5)]
    batch, padding = pad_maps(alone)
    batched = parts(queries({"stride8": batch}, padding))
    for row, one in enumerate(alone):
        for name, value in parts(queries({"stride8": one}, None)).items():
            torch.testing.assert_close(batched[name][row], value[0], rtol=1e-3, atol=1e-4)
    masked = parts(queries({"stride8": alone[0]}, torch.zeros(1, 56, 88, dtype=torch.bool)))
    for name, value in parts(queries({"stride8": alone[0]}, None)).items():
        assert torch.equal(masked[name], value)


@pytest.mark.parametrize("pair_people", [False, True])
def test_people_are_paired_with_other_people(pair_people):
    torch.manual_seed(0)
    queries = ProposalQueries(replace(CONFIG, pair_people=pair_people), channels=6)
    queries.head = FakeProposalHead((2, 3, 3, 4.0), (2, 6, 6, 3.0), (4, 1, 1, 2.0))
    start, labels = run_with_labels(queries)
    found = torch.stack([start.human_reference[0, :, 0], start.object_reference[0, :, 0]], 1)
    expected = [[0.4, 0.3], [0.3, 0.4]] if pair_people else []
    expected += [[0.4, 0.2], [0.3, 0.2]]
    # Two people are as likely a pair one way round as the other.
    first_pairs = torch.tensor(sorted(found[: len(expected)].tolist()))
    torch.testing.assert_close(first_pairs, torch.tensor(sorted(expected)))
    assert labels[: len(expected)].tolist() == [2, 2, 4, 4][-len(expected) :]
    assert bool((labels == 2).any()) == pair_people
    themselves = (found[:, 0] == found[:, 1]) & (found[:, 0] > 0.25) & (labels == 2)
    assert not themselves.any()


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_boxes_that_are_not_finite_raise_no_error(queries, value):
    """Pooled features are finite, while reference boxes and hence the losses are not."""
    for head in queries.head.boxes:
        torch.nn.init.constant_(head.bias, value)
    start = queries(maps(), None)
    if value is torch.nan:
        assert start.human_reference.isnan().any() and start.object_reference.isnan().any()
    assert start.target.shape == (2, CONFIG.num_queries, CONFIG.hidden_dim)


PERSON, CLASSES = 2, 5


def proposal_head(channels=8, seed=0):
    torch.manual_seed(seed)
    return ProposalHead(channels, channels, CLASSES, PERSON)


def test_untrained_head_has_low_scores_and_boxes_around_the_cells():
    proposals = proposal_head()(torch.randn(3, 8, 16, 20))
    assert proposals.logits.shape == (3, CLASSES, 16, 20)
    assert 0.005 < proposals.logits.sigmoid().mean() < 0.08
    centres = grid_cell_centres(16, 20, torch.device("cpu"))
    offset = (proposals.boxes[:, :, :2] - centres).abs()
    assert offset.max() <= 2 / 16 and 0.15 < proposals.boxes[:, :, 2:].mean() < 0.25


@pytest.mark.parametrize(("channels", "width"), [(512, 256), (96, 96), (24, 24)])
def test_the_head_is_no_wider_than_the_transformer(channels, width):
    hidden_dim = 256 if channels == 512 else 96
    queries = ProposalQueries(replace(CONFIG, hidden_dim=hidden_dim), channels)
    assert queries.head.object_logits.in_channels == width
    assert queries.head.branches[0][0].in_channels == channels


def test_people_and_objects_have_separate_branches():
    model, features = proposal_head(), torch.randn(1, 8, 4, 4)
    before = model(features)
    with torch.no_grad():
        model.branches[0][0].weight.add_(0.5)
    after = model(features)
    others = [label for label in range(CLASSES) if label != PERSON]
    assert torch.equal(before.logits[:, others], after.logits[:, others])
    assert torch.equal(before.boxes[:, 1], after.boxes[:, 1])
    assert not torch.equal(before.logits[:, PERSON], after.logits[:, PERSON])
    assert not torch.equal(before.boxes[:, 0], after.boxes[:, 0])


def test_grid_cell_centres():
    centres = grid_cell_centres(2, 4, torch.device("cpu"))
    assert centres[0].tolist() == [[0.125, 0.375, 0.625, 0.875]] * 2
    assert centres[1].tolist() == [[0.25] * 4, [0.75] * 4]


def test_top_cells_are_local_maxima():
    logits = torch.full((2, 3, 8, 8), -6.0)
    peaks = [(0, 1, 2, 3, 4.0), (0, 2, 6, 6, 3.0), (0, 1, 7, 0, 2.0), (1, 0, 0, 0, 5.0)]
    for image, label, row, column, value in peaks:
        logits[image, label, row, column] = value
    logits[0, 1, 2, 4] = 3.9  # beside the best peak, hence none
    boxes = torch.arange(2 * 4 * 64).float().view(2, 4, 8, 8)
    found = select_top_cells(logits, boxes, 3)
    assert found.labels[0].tolist() == [1, 2, 1] and found.labels[1, 0] == 0
    torch.testing.assert_close(found.scores[0], torch.tensor([4.0, 3.0, 2.0]).sigmoid())
    places = [(2, 3), (6, 6), (7, 0)]
    for row, place in enumerate(places):
        assert torch.equal(found.boxes[0, row], boxes[0, :, place[0], place[1]])


def detections(boxes, labels):
    """The targets of a batch in whose images the detector found these boxes."""
    return replace(
        Targets(*[torch.zeros(0)] * 7),
        proposal_boxes=torch.cat(boxes),
        proposal_labels=torch.cat(labels),
        proposal_images=torch.cat([torch.full_like(one, row) for row, one in enumerate(labels)]),
    )


@pytest.mark.parametrize(
    "boxes", [[], [[0.0, 0.0, 0.2, 0.2]], [[1.0, 1.0, 0.2, 0.2]], [[-0.1, 1.2, 0.2, 0.2]]]
)
def test_proposal_losses_without_boxes_and_of_centres_on_the_border(boxes):
    targets = detections(
        [torch.tensor(boxes).view(-1, 4)], [torch.zeros(len(boxes), dtype=torch.int64)]
    )
    losses = proposal_losses(proposal_head()(torch.randn(1, 8, 4, 4)), targets, PERSON)
    assert all(torch.isfinite(loss) for loss in losses.values())
    assert (losses["proposal_box"] == 0) == (not boxes) and 0 < losses["proposal_class"] < 10
    (losses["proposal_class"] + losses["proposal_box"]).backward()


DETECTED_BOXES = [
    torch.tensor([[0.3, 0.4, 0.2, 0.5], [0.35, 0.55, 0.4, 0.2], [0.8, 0.8, 0.3, 0.3]]),
    torch.zeros(0, 4),
    torch.tensor([[0.6, 0.3, 0.3, 0.4]]),
]
DETECTED_LABELS = [
    torch.tensor([PERSON, 0, 4]),
    torch.zeros(0, dtype=torch.int64),
    torch.tensor([PERSON]),
]


def test_proposal_losses_of_perfect_outputs_are_almost_zero():
    logits = torch.full((3, CLASSES, 8, 8), -20.0)
    boxes = torch.rand(3, 2, 4, 8, 8)
    for image, (boxes_of_image, labels) in enumerate(
        zip(DETECTED_BOXES, DETECTED_LABELS, strict=True)
    ):
        for box, label in zip(boxes_of_image, labels, strict=True):
            column, row = (int(box[axis] * 8) for axis in (0, 1))
            logits[image, label, row, column] = 20
            boxes[image, int(label != PERSON), :, row, column] = box
    losses = proposal_losses(
        ProposalOutputs(logits, boxes, torch.ones(3, 2)),
        detections(DETECTED_BOXES, DETECTED_LABELS),
        PERSON,
    )
    assert losses["proposal_box"] < 1e-5 and losses["proposal_class"] < 1e-5


SIZES = [(7, 11), (13, 5), (13, 11), (3, 12)]


def test_proposals_of_a_padded_image_are_those_it_has_alone():
    model = proposal_head()
    maps = [torch.randn(1, 8, *size) for size in SIZES]
    batched = model(*pad_maps(maps))
    assert batched.valid_cells().sum((1, 2, 3)).tolist() == [h * w for h, w in SIZES]
    torch.testing.assert_close(
        batched.grid_sizes(), torch.tensor([[w, h] for h, w in SIZES]).float()
    )
    for row, one in enumerate(maps):
        alone = model(one)
        height, width = one.shape[-2:]
        for name in ("logits", "boxes"):
            found = getattr(batched, name)[row, ..., :height, :width]
            torch.testing.assert_close(found, getattr(alone, name)[0], rtol=1e-4, atol=1e-5)


def test_padding_has_no_proposal_loss():
    model = proposal_head()
    maps = [torch.randn(1, 8, *size) for size in SIZES[:3]]
    batched = proposal_losses(
        model(*pad_maps(maps)), detections(DETECTED_BOXES, DETECTED_LABELS), PERSON
    )
    sums = {"proposal_class": 0, "proposal_box": 0}
    for one, boxes, labels in zip(maps, DETECTED_BOXES, DETECTED_LABELS, strict=True):
        for name, loss in proposal_losses(
            model(one), detections([boxes], [labels]), PERSON
        ).items():
            sums[name] += loss.item() * max(len(labels), 1)
    for name, loss in batched.items():
        assert loss.item() == pytest.approx(sums[name] / 4, rel=1e-4)


ROI_BOXES = [
    [0.0, 0.0, 7.0, 9.0],
    [2.2, 3.1, 2.4, 6.0],
    [3.0, 4.0, 3.0, 4.0],
    # Beyond the edges, near and far.
    [-0.4, -0.6, 0.2, 0.2],
    [-4.0, -3.0, 12.0, 13.0],
    [6.0, 8.0, 9.0, 12.0],
    [20.0, 20.0, 30.0, 30.0],
    [5.0, 5.0, 1.0, 1.0],
]


@pytest.mark.parametrize(("height", "width"), [(9, 7), (1, 1), (16, 20)])
@pytest.mark.parametrize("more", [0, 3])
def test_roi_align_unpadded_equals_torchvision_on_the_unpadded_map(height, width, more):
    generator = torch.Generator().manual_seed(0)
    ends = torch.tensor([[height, width], [max(1, height - 2), width], [height, max(1, width - 3)]])
    features = torch.randn(3, 5, height + more, width + more, generator=generator)
    boxes = torch.cat([torch.tensor(ROI_BOXES), torch.rand(50, 4, generator=generator) * 14 - 3])
    image = torch.randint(0, 3, (len(boxes), 1), generator=generator)
    found = roi_align_unpadded(features, torch.cat([image.float(), boxes], 1), 4, ends)
    for number, (rows, columns) in enumerate(ends.tolist()):
        in_image = image[:, 0] == number
        part = features[number, None, :, :rows, :columns]
        expected = roi_align(part, [boxes[in_image]], 4, sampling_ratio=1, aligned=True)
        torch.testing.assert_close(found[in_image], expected, atol=1e-5, rtol=0)
