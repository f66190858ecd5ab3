from dataclasses import replace

import pytest
import torch
from torchvision.ops import box_convert, box_iou

from student.data.targets import Targets
from student.losses.criterion import proposal_losses
from student.models.proposal_queries import (
    ProposalHead,
    ProposalOutputs,
    grid_cell_centres,
    select_top_cells,
)

PERSON, CLASSES = 2, 5


def head(channels=8, seed=0):
    torch.manual_seed(seed)
    return ProposalHead(channels, CLASSES, PERSON)


@pytest.mark.parametrize(("height", "width"), [(16, 16), (5, 9), (1, 1)])
def test_shapes_and_ranges(height, width):
    dense = head()(torch.randn(3, 8, height, width))
    assert dense.logits.shape == (3, CLASSES, height, width)
    assert dense.boxes.shape == (3, 2, 4, height, width)
    assert (dense.boxes[:, :, 2:] > 0).all() and (dense.boxes[:, :, 2:] < 1).all()


def test_untrained_cells_mark_nothing_and_look_around_themselves():
    dense = head()(torch.randn(1, 8, 16, 16))
    assert 0.005 < dense.logits.sigmoid().mean() < 0.08
    offset = (dense.boxes[:, :, :2] - grid_cell_centres(16, 16, torch.device("cpu"))).abs()
    assert offset.max() <= 2 / 16 and 0.15 < dense.boxes[:, :, 2:].mean() < 0.25


def test_people_and_things_have_branches_of_their_own():
    model, features = head(), torch.randn(1, 8, 4, 4)
    before = model(features)
    with torch.no_grad():
        model.branches[0][0].weight.add_(0.5)
    after = model(features)
    others = [label for label in range(CLASSES) if label != PERSON]
    assert torch.equal(before.logits[:, others], after.logits[:, others])
    assert torch.equal(before.boxes[:, 1], after.boxes[:, 1])
    assert not torch.equal(before.logits[:, PERSON], after.logits[:, PERSON])
    assert not torch.equal(before.boxes[:, 0], after.boxes[:, 0])


def test_centres_of_cells():
    centres = grid_cell_centres(2, 4, torch.device("cpu"))
    assert centres[0].tolist() == [[0.125, 0.375, 0.625, 0.875]] * 2
    assert centres[1].tolist() == [[0.25] * 4, [0.75] * 4]


def test_best_cells_are_the_planted_peaks():
    logits = torch.full((2, 3, 8, 8), -6.0)
    planted = [(0, 1, 2, 3, 4.0), (0, 2, 6, 6, 3.0), (0, 1, 7, 0, 2.0), (1, 0, 0, 0, 5.0)]
    for image, label, row, column, value in planted:
        logits[image, label, row, column] = value
    logits[0, 1, 2, 4] = 3.9  # beside the best peak, hence none
    boxes = torch.arange(2 * 4 * 64).float().view(2, 4, 8, 8)
    found = select_top_cells(logits, boxes, 3)
    assert found.labels[0].tolist() == [1, 2, 1] and found.labels[1, 0] == 0
    torch.testing.assert_close(found.scores[0], torch.tensor([4.0, 3.0, 2.0]).sigmoid())
    places = [(2, 3), (6, 6), (7, 0)]
    for row, place in enumerate(places):
        assert torch.equal(found.boxes[0, row], boxes[0, :, place[0], place[1]])


def test_no_more_cells_than_there_are():
    found = select_top_cells(torch.zeros(1, 2, 1, 2), torch.zeros(1, 4, 1, 2), 10)
    assert found.scores.shape == found.labels.shape == (1, 4)
    assert found.boxes.shape == (1, 4, 4)


def found(boxes, labels):
    """The targets of a batch in whose images a detector found these boxes."""
    return replace(
        Targets(*[torch.zeros(0)] * 7),
        detected_boxes=torch.cat(boxes),
        detected_labels=torch.cat(labels),
        detected_images=torch.cat([torch.full_like(one, row) for row, one in enumerate(labels)]),
    )


def nothing(images):
    return found([torch.zeros(0, 4)] * images, [torch.zeros(0, dtype=torch.int64)] * images)


def test_images_without_boxes_have_finite_losses():
    dense = head()(torch.randn(2, 8, 6, 6))
    losses = proposal_losses(dense, nothing(2), PERSON)
    assert losses["proposal_box"] == 0 and 0 < losses["proposal_class"] < 10
    (losses["proposal_class"] + losses["proposal_box"]).backward()


BOXES = [
    torch.tensor([[0.3, 0.4, 0.2, 0.5], [0.35, 0.55, 0.4, 0.2], [0.8, 0.8, 0.3, 0.3]]),
    torch.zeros(0, 4),
    torch.tensor([[0.6, 0.3, 0.3, 0.4]]),
]
LABELS = [torch.tensor([PERSON, 0, 4]), torch.zeros(0, dtype=torch.int64), torch.tensor([PERSON])]


def test_perfect_answers_cost_next_to_nothing():
    logits = torch.full((3, CLASSES, 8, 8), -20.0)
    boxes = torch.rand(3, 2, 4, 8, 8)
    for image, (own, labels) in enumerate(zip(BOXES, LABELS, strict=True)):
        for box, label in zip(own, labels, strict=True):
            column, row = (int(box[axis] * 8) for axis in (0, 1))
            logits[image, label, row, column] = 20
            boxes[image, int(label != PERSON), :, row, column] = box
    losses = proposal_losses(
        ProposalOutputs(logits, boxes, torch.ones(3, 2)), found(BOXES, LABELS), PERSON
    )
    assert losses["proposal_box"] < 1e-5 and losses["proposal_class"] < 1e-5


@pytest.mark.parametrize("where", [(0.0, 0.0), (1.0, 1.0), (-0.1, 1.2)])
def test_centres_on_the_edge_belong_to_the_nearest_cell(where):
    box = torch.tensor([[*where, 0.2, 0.2]])
    logits, boxes = torch.zeros(1, CLASSES, 4, 4), torch.full((1, 2, 4, 4, 4), 0.5)
    dense = ProposalOutputs(logits, boxes, torch.ones(1, 2))
    losses = proposal_losses(dense, found([box], [torch.tensor([0])]), PERSON)
    assert all(torch.isfinite(loss) for loss in losses.values())


def among_larger(maps, stride=8):
    """Maps of single images as one padded batch, with the mask at image size."""
    height, width = (max(one.shape[axis] for one in maps) for axis in (-2, -1))
    batch = torch.randn(len(maps), maps[0].shape[1], height, width)
    padding = torch.ones(len(maps), stride * height, stride * width, dtype=torch.bool)
    for row, one in enumerate(maps):
        batch[row, :, : one.shape[2], : one.shape[3]] = one[0]
        padding[row, : stride * one.shape[2], : stride * one.shape[3]] = False
    return batch, padding


SIZES = [(7, 11), (13, 5), (13, 11), (3, 12)]


def test_an_image_among_larger_ones_is_answered_as_alone():
    model = head()
    maps = [torch.randn(1, 8, *size) for size in SIZES]
    together = model(*among_larger(maps))
    assert together.valid_cells().sum((1, 2, 3)).tolist() == [h * w for h, w in SIZES]
    torch.testing.assert_close(
        together.grid_sizes(), torch.tensor([[w, h] for h, w in SIZES]).float()
    )
    for row, one in enumerate(maps):
        alone = model(one)
        height, width = one.shape[-2:]
        for name in ("logits", "boxes"):
            found = getattr(together, name)[row, ..., :height, :width]
            torch.testing.assert_close(found, getattr(alone, name)[0], rtol=1e-4, atol=1e-5)


def test_padding_costs_nothing():
    model = head()
    maps = [torch.randn(1, 8, *size) for size in SIZES[:3]]
    together = proposal_losses(model(*among_larger(maps)), found(BOXES, LABELS), PERSON)
    sums = {"proposal_class": 0, "proposal_box": 0}
    for one, boxes, labels in zip(maps, BOXES, LABELS, strict=True):
        for name, loss in proposal_losses(model(one), found([boxes], [labels]), PERSON).items():
            sums[name] += loss.item() * max(len(labels), 1)
    for name, loss in together.items():
        assert loss.item() == pytest.approx(sums[name] / 4, rel=1e-4)


def test_a_mask_without_padding_changes_nothing():
    model, features = head(), torch.randn(2, 8, 6, 9)
    without, masked = model(features), model(features, torch.zeros(2, 48, 72, dtype=torch.bool))
    assert torch.equal(without.logits, masked.logits) and torch.equal(without.boxes, masked.boxes)


def test_it_learns_planted_boxes():
    model = head(16)
    torch.manual_seed(1)
    features = torch.randn(3, 16, 8, 8)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    first = None
    for _ in range(150):
        losses = proposal_losses(model(features), found(BOXES, LABELS), PERSON)
        total = losses["proposal_class"] + losses["proposal_box"]
        first = first or total.item()
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert total < 0.1 * first
    dense = model(features)
    people = select_top_cells(dense.logits[:, PERSON : PERSON + 1], dense.boxes[:, 0], 1)
    for image in (0, 2):
        corners = (box_convert(b, "cxcywh", "xyxy") for b in (people.boxes[image], BOXES[image]))
        assert box_iou(*corners)[0, 0] > 0.6 and people.scores[image, 0] > 0.5
    assert people.scores[1, 0] < 0.3
