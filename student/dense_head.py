"""The dense head: marks people and objects on a feature map, so that queries start at pairs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from student.boxes import overlaps
from student.distributed import average_counts
from student.padding import filled_shares
from student.targets import Targets

PEAK_WINDOW = 3
PRIOR_PROBABILITY = 0.02
# Part of a cell that an image has to fill before the cell counts as its own.
ROUNDING = 1e-3


@dataclass(frozen=True, eq=False)
class DenseOutputs:
    """The dense head's answer on a map of h x w cells.

    Attributes:
        logits: (B, C, h, w) one channel for every object class.
        boxes: (B, 2, 4, h, w) cxcywh in [0, 1] of the image without its padding: box of the person
            (0) and of the object (1) centred in the cell.
        shares: (B, 2) share of the map's width and height that the image fills; padding does the
            rest.
    """

    logits: Tensor
    boxes: Tensor
    shares: Tensor

    def cells(self) -> Tensor:
        """(B, 2) float, how many columns and rows of cells the image fills."""
        return cell_numbers(self.logits, self.shares)

    def inside(self) -> Tensor:
        """(B, 1, h, w) bool, the cell holds some of the image."""
        return inside_cells(self.logits, self.shares)


class DenseHead(nn.Module):
    """Marks the centres of people and objects and gives their boxes.

    People and objects have branches of their own: a rider and the horse share a cell.

    Args:
        channels: of the feature map.
        num_objects: classes, people included.
        person: class index of people.
    """

    def __init__(self, channels: int, num_objects: int, person: int) -> None:
        super().__init__()
        self.person = person
        self.branches = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(channels, channels, 3, padding=1),
                nn.ReLU(inplace=True),
                nn.Conv2d(channels, channels, 3, padding=1),
                nn.ReLU(inplace=True),
            )
            for _ in range(2)
        )
        self.person_logit = nn.Conv2d(channels, 1, 1)
        self.object_logits = nn.Conv2d(channels, num_objects, 1)
        self.boxes = nn.ModuleList(nn.Conv2d(channels, 4, 1) for _ in range(2))
        prior = torch.logit(torch.tensor(PRIOR_PROBABILITY)).item()
        for layer in (self.person_logit, self.object_logits):
            assert layer.bias is not None
            nn.init.constant_(layer.bias, prior)

    def forward(self, features: Tensor, padding: Tensor | None = None) -> DenseOutputs:
        """Answers for every cell of a map.

        Args:
            features: (B, channels, h, w).
            padding: (B, H, W) bool at image size, True on padding, or None.
        """
        shares = filled_shares(padding, features)
        people, objects = (
            _without_padding(branch, features, None if padding is None else shares)
            for branch in self.branches
        )
        logits = self.object_logits(objects)
        logits = torch.cat(
            [logits[:, : self.person], self.person_logit(people), logits[:, self.person + 1 :]], 1
        ).float()
        height, width = features.shape[-2:]
        boxes = []
        for head, branch in zip(self.boxes, (people, objects), strict=True):
            raw = head(branch).float()
            own = shares.view(-1, 2, 1, 1)
            centre = cell_centres(height, width, features.device) / own
            step = 1 / cell_numbers(features, shares).view(-1, 2, 1, 1)
            # Sizes start at a fifth of the picture; centres stay within two cells of their own.
            size = torch.sigmoid(raw[:, 2:] - 1.4)
            boxes.append(torch.cat([centre + 2 * step * torch.tanh(raw[:, :2] / 2), size], 1))
        return DenseOutputs(logits=logits, boxes=torch.stack(boxes, 1), shares=shares)


def _without_padding(branch: nn.Module, features: Tensor, shares: Tensor | None) -> Tensor:
    """The branch's answer as if cells of padding were not there."""
    inside = None if shares is None else inside_cells(features, shares)
    for layer in branch.children():
        if inside is not None and isinstance(layer, nn.Conv2d):
            features = features * inside
        features = layer(features)
    return features


def cell_numbers(features: Tensor, shares: Tensor) -> Tensor:
    """(B, 2) float, columns and rows of a map (B, C, h, w) that images with these shares fill."""
    height, width = features.shape[-2:]
    return _of_sides(shares, width, height)


def _of_sides(shares: Tensor, width: float, height: float) -> Tensor:
    """(B, 2) shares times a width and a height.

    Not by a tensor of the two: it would be copied to the device, and some versions of torch take
    it for a constant when they trace a graph for images of any size.
    """
    return torch.stack([shares[:, 0] * width, shares[:, 1] * height], 1)


def inside_cells(features: Tensor, shares: Tensor) -> Tensor:
    """(B, 1, h, w) bool, cells of a map (B, C, h, w) that hold some of their image."""
    height, width = features.shape[-2:]
    columns, rows = cell_numbers(features, shares).view(-1, 2, 1, 1).unbind(1)
    x = torch.arange(width, device=features.device)
    y = torch.arange(height, device=features.device).unsqueeze(1)
    return ((x < columns - ROUNDING) & (y < rows - ROUNDING)).unsqueeze(1)


def cell_centres(height: int, width: int, device: torch.device) -> Tensor:
    """(2, h, w) centres (x, y) of the cells of a map, in [0, 1]."""
    x = (torch.arange(width, device=device) + 0.5) / width
    y = (torch.arange(height, device=device) + 0.5) / height
    return torch.stack([x.expand(height, width), y.unsqueeze(1).expand(height, width)])


@dataclass(frozen=True, eq=False)
class Candidates:
    """The best cells of a dense answer: boxes (B, K, 4) cxcywh, scores and labels (B, K)."""

    boxes: Tensor
    scores: Tensor
    labels: Tensor


def best_cells(logits: Tensor, boxes: Tensor, count: int) -> Candidates:
    """The `count` best local maxima over classes and cells.

    Args:
        logits: (B, C, h, w).
        boxes: (B, 4, h, w) cxcywh.
        count: K, at most C * h * w.
    """
    scores = logits.sigmoid()
    peaks = F.max_pool2d(scores, PEAK_WINDOW, stride=1, padding=PEAK_WINDOW // 2)
    scores = torch.where(scores == peaks, scores, scores * 1e-3)
    cells = logits.shape[-2] * logits.shape[-1]
    entries = scores[0].numel()
    # Not min(): an exported graph knows that its images have enough cells, and how many come out.
    top, index = scores.flatten(1).topk(count if count <= entries else entries, dim=1)
    labels = index // cells
    where = (index - labels * cells).unsqueeze(-1).expand(-1, -1, 4)
    return Candidates(boxes.flatten(2).transpose(1, 2).gather(1, where), top, labels)


def dense_losses(dense: DenseOutputs, targets: Targets, person: int) -> dict[str, Tensor]:
    """Losses of the dense head against a detector's boxes.

    Centres are marked by a Gaussian bump and scored by a focal loss that forgives the bump's
    slope; boxes are compared in the centre cell (CenterNet, arXiv 1904.07850, section 4).

    Args:
        dense: the head's answer.
        targets: of the batch, with the detector's boxes.
        person: class index of people.

    Returns:
        `dense_class` and `dense_box`, each divided by the number of boxes in the batch, which is
        averaged over processes.
    """
    batch, num_classes, height, width = dense.logits.shape
    device = dense.logits.device
    image, label, box = targets.detected_images, targets.detected_labels, targets.detected_boxes
    counted, processes = average_counts(torch.full((), float(len(label)), device=device))
    count = counted.clamp(min=1 / processes)
    grid = dense.cells()[image]
    cell = (box[:, :2] * grid).long().clamp(min=0)
    cell = torch.minimum(cell, (grid - ROUNDING).ceil().long() - 1)
    centres = cell_centres(height, width, device) / dense.shares[image].view(-1, 2, 1, 1)
    # The slope is as wide as a sixth of the box, at least half a cell.
    spread = torch.maximum(box[:, 2:] / 6, 0.5 / grid).view(-1, 2, 1, 1)
    offset = (centres - ((cell + 0.5) / grid).view(-1, 2, 1, 1)) / spread
    bump = torch.exp(-0.5 * offset.square().sum(1))
    heat = torch.zeros(batch * num_classes, height, width, device=device)
    rows = image * num_classes + label
    heat = heat.scatter_reduce(0, rows.view(-1, 1, 1).expand_as(bump), bump, "amax")
    heat = heat.view(batch, num_classes, height, width)
    probability = dense.logits.sigmoid()
    positive = heat >= 1 - 1e-6
    loss = torch.where(
        positive,
        -((1 - probability) ** 2) * F.logsigmoid(dense.logits),
        -((1 - heat) ** 4) * probability**2 * F.logsigmoid(-dense.logits),
    )
    loss = loss.where(dense.inside(), 0)
    branch = (label != person).long()
    predicted = dense.boxes[image, branch, :, cell[:, 1], cell[:, 0]]
    distance = (predicted - box).abs().sum() + (1 - overlaps(predicted, box)[1]).sum()
    return {"dense_class": loss.sum() / count, "dense_box": distance / count}
