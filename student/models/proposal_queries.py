"""Queries made of pairs that the student's own proposal head finds.

Every pairing of a likely person with a likely object becomes a query whose boxes are the
decoder's reference. Queries are about something from the first step on, which lets small students
converge in minutes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn import functional as F
from torchvision.ops import box_convert, roi_align

from student.config import ModelConfig
from student.models.padding import get_valid_ratios
from student.models.queries import QueryInputs

ROI_SIZE = 4
MIN_PEOPLE = 4


class ProposalQueries(nn.Module):
    """Queries made of pairs: the likeliest people with the likeliest objects.

    Twice as many objects as people are taken, and as many as it needs to make enough pairs of them.

    Args:
        config: Q, d, the classes and which of them is people.
        channels: of the stride-8 feature map.
    """

    def __init__(self, config: ModelConfig, channels: int) -> None:
        super().__init__()
        self.num_queries, self.person = config.num_queries, config.person
        self.pair_people = config.pair_people
        self.num_people = max(MIN_PEOPLE, math.ceil(math.sqrt(config.num_queries / 2)))
        self.num_objects = 2 * self.num_people
        num_objects, hidden_dim, person = config.num_objects, config.hidden_dim, config.person
        self.head = ProposalHead(channels, num_objects, person)
        self.reduce = nn.Conv2d(channels, hidden_dim // 2, 1)
        region = hidden_dim // 2 * ROI_SIZE**2
        self.content = nn.Sequential(
            nn.Linear(2 * region, hidden_dim),
            nn.ReLU(inplace=True),
            nn.Linear(hidden_dim, hidden_dim),
        )
        self.interaction_content = nn.Sequential(
            nn.Linear(region, hidden_dim), nn.ReLU(inplace=True), nn.Linear(hidden_dim, hidden_dim)
        )
        self.label = nn.Embedding(num_objects, hidden_dim)
        self.place = nn.Sequential(
            nn.Linear(12, hidden_dim), nn.ReLU(inplace=True), nn.Linear(hidden_dim, hidden_dim)
        )
        self.content_norm = nn.LayerNorm(hidden_dim)
        self.interaction_norm = nn.LayerNorm(hidden_dim)

    def forward(
        self, maps: dict[str, Tensor], padding: Tensor | None, padding_invariant: bool = False
    ) -> QueryInputs:
        """Makes an image's queries, with reference boxes.

        Args:
            maps: `stride8` (B, C, h, w) among them.
            padding: (B, H, W) bool at image size, True on padding, or None. Boxes are relative to
                the images without it, and what lies in it is not looked at.
            padding_invariant: see `HOIDetector.forward`.
        """
        features = maps["stride8"]
        proposals = self.head(features, padding)
        people, objects = self._select_cells(proposals)
        scores = people.scores.unsqueeze(2) * objects.scores.unsqueeze(1)
        if self.pair_people:
            # People follow the objects in the same order: nobody is paired with themselves.
            count = people.scores.shape[1]
            themselves = torch.eye(count, dtype=scores.dtype, device=scores.device)
            scores = scores - functional.pad(themselves, (scores.shape[2] - count, 0))
        count = min(self.num_queries, scores[0].numel())
        index = scores.flatten(1).topk(count, dim=1).indices
        rows = index // scores.shape[2], index % scores.shape[2]
        humans = people.boxes.gather(1, rows[0].unsqueeze(-1).expand(-1, -1, 4))
        things = objects.boxes.gather(1, rows[1].unsqueeze(-1).expand(-1, -1, 4))
        labels = objects.labels.gather(1, rows[1])
        reduced = self.reduce(features)
        if padding is not None:
            reduced = reduced * proposals.valid_cells()
        union = union_cxcywh(humans, things)
        crop = padding_invariant and padding is not None
        regions = [self._pool(reduced, boxes, proposals, crop) for boxes in (humans, things, union)]
        positions = self.place(pair_spatial_features(humans, things)) + self.label(labels)
        content = self.content_norm(self.content(torch.cat(regions[:2], -1)))
        interaction = self.interaction_norm(self.interaction_content(regions[2]))
        return QueryInputs(
            target=content,
            positions=positions,
            human_reference=humans,
            object_reference=things,
            interaction_target=interaction,
            outputs={"proposals": proposals},
        )

    @torch.no_grad()
    def _select_cells(self, proposals: ProposalOutputs) -> tuple[TopCells, TopCells]:
        """The likeliest people, and what they may be paired with."""
        logits = proposals.logits.masked_fill(~proposals.valid_cells(), -torch.inf)
        only = logits[:, self.person : self.person + 1].clone()
        logits[:, self.person] = -torch.inf
        people = select_top_cells(only, proposals.boxes[:, 0], self.num_people)
        objects = select_top_cells(logits, proposals.boxes[:, 1], self.num_objects)
        if not self.pair_people:
            return people, objects
        return people, TopCells(
            boxes=torch.cat([objects.boxes, people.boxes], 1),
            scores=torch.cat([objects.scores, people.scores], 1),
            labels=torch.cat([objects.labels, torch.full_like(people.labels, self.person)], 1),
        )

    def _pool(
        self, features: Tensor, boxes: Tensor, proposals: ProposalOutputs, padding_invariant: bool
    ) -> Tensor:
        """Features of regions.

        Args:
            features: (B, channels, h, w).
            boxes: (B, Q, 4) cxcywh in [0, 1].
            proposals: tells how many cells the images fill.
            padding_invariant: the map ends for each image where that does.

        Returns:
            (B, Q, channels * REGION_SIZE^2).
        """
        cells = proposals.grid_sizes()
        corners = box_convert(boxes, "cxcywh", "xyxy") * cells.repeat(1, 2).unsqueeze(1)
        # A model that diverged: roi_align reads outside of the map where a box is not a number.
        # The boxes themselves stay as they are, so that the losses say that they are not finite.
        corners = corners.where(corners.isfinite(), 0)
        # Image numbers as a column, not a list of boxes per image: an exported graph has to take
        # any number of images.
        image = torch.arange(boxes.shape[0], device=boxes.device).to(corners).view(-1, 1, 1)
        regions = torch.cat([image.expand(-1, boxes.shape[1], 1), corners], -1).flatten(0, 1)
        if padding_invariant:
            ends = (cells - CELL_TOLERANCE).ceil().long().flip(1)
            pooled = roi_align_unpadded(features.float(), regions, ROI_SIZE, ends)
        else:
            pooled = roi_align(features.float(), regions, ROI_SIZE, sampling_ratio=1, aligned=True)
        return pooled.flatten(1).view(*boxes.shape[:2], -1)


def union_cxcywh(first: Tensor, second: Tensor) -> Tensor:
    """Smallest boxes (..., 4) around both, cxcywh."""
    a, b = box_convert(first, "cxcywh", "xyxy"), box_convert(second, "cxcywh", "xyxy")
    corners = torch.cat(
        [torch.minimum(a[..., :2], b[..., :2]), torch.maximum(a[..., 2:], b[..., 2:])], -1
    )
    return box_convert(corners, "xyxy", "cxcywh")


def pair_spatial_features(humans: Tensor, objects: Tensor) -> Tensor:
    """(..., 12): both boxes in the picture, and the object seen from the person.

    Args:
        humans, objects: (..., 4) cxcywh in [0, 1].
    """
    size = humans[..., 2:].clamp(min=1e-3)
    offset = (objects[..., :2] - humans[..., :2]) / size
    ratio = (objects[..., 2:].clamp(min=1e-3) / size).log()
    return torch.cat([humans, objects, offset.clamp(-4, 4), ratio.clamp(-4, 4)], -1)


PEAK_WINDOW = 3
PRIOR_PROBABILITY = 0.02
# Part of a cell that an image has to fill before the cell counts as its own.
CELL_TOLERANCE = 1e-3


@dataclass(frozen=True, eq=False)
class ProposalOutputs:
    """The proposal head's answer on a map of h x w cells.

    Attributes:
        logits: (B, C, h, w) one channel for every object class.
        boxes: (B, 2, 4, h, w) cxcywh in [0, 1] of the image without its padding: box of the person
            (0) and of the object (1) centred in the cell.
        valid_ratios: (B, 2) share of the map's width and height that the image fills; padding does
            the rest.
    """

    logits: Tensor
    boxes: Tensor
    valid_ratios: Tensor

    def grid_sizes(self) -> Tensor:
        """(B, 2) float, how many columns and rows of cells the image fills."""
        return grid_sizes(self.logits, self.valid_ratios)

    def valid_cells(self) -> Tensor:
        """(B, 1, h, w) bool, the cell holds some of the image."""
        return valid_cells(self.logits, self.valid_ratios)


class ProposalHead(nn.Module):
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

    def forward(self, features: Tensor, padding: Tensor | None = None) -> ProposalOutputs:
        """Answers for every cell of a map.

        Args:
            features: (B, channels, h, w).
            padding: (B, H, W) bool at image size, True on padding, or None.
        """
        valid_ratios = get_valid_ratios(padding, features)
        people, objects = (
            _apply_masked(branch, features, None if padding is None else valid_ratios)
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
            own = valid_ratios.view(-1, 2, 1, 1)
            centre = grid_cell_centres(height, width, features.device) / own
            step = 1 / grid_sizes(features, valid_ratios).view(-1, 2, 1, 1)
            # Sizes start at a fifth of the picture; centres stay within two cells of their own.
            size = torch.sigmoid(raw[:, 2:] - 1.4)
            boxes.append(torch.cat([centre + 2 * step * torch.tanh(raw[:, :2] / 2), size], 1))
        return ProposalOutputs(
            logits=logits, boxes=torch.stack(boxes, 1), valid_ratios=valid_ratios
        )


def _apply_masked(branch: nn.Module, features: Tensor, valid_ratios: Tensor | None) -> Tensor:
    """The branch's answer as if cells of padding were not there."""
    inside = None if valid_ratios is None else valid_cells(features, valid_ratios)
    for layer in branch.children():
        if inside is not None and isinstance(layer, nn.Conv2d):
            features = features * inside
        features = layer(features)
    return features


def grid_sizes(features: Tensor, valid_ratios: Tensor) -> Tensor:
    """(B, 2) float, columns and rows of a map (B, C, h, w) that images with these ratios fill."""
    height, width = features.shape[-2:]
    return _scale_ratios(valid_ratios, width, height)


def _scale_ratios(valid_ratios: Tensor, width: float, height: float) -> Tensor:
    """(B, 2) ratios times a width and a height.

    Not by a tensor of the two: it would be copied to the device, and some versions of torch take
    it for a constant when they trace a graph for images of any size.
    """
    return torch.stack([valid_ratios[:, 0] * width, valid_ratios[:, 1] * height], 1)


def valid_cells(features: Tensor, valid_ratios: Tensor) -> Tensor:
    """(B, 1, h, w) bool, cells of a map (B, C, h, w) that hold some of their image."""
    height, width = features.shape[-2:]
    columns, rows = grid_sizes(features, valid_ratios).view(-1, 2, 1, 1).unbind(1)
    x = torch.arange(width, device=features.device)
    y = torch.arange(height, device=features.device).unsqueeze(1)
    return ((x < columns - CELL_TOLERANCE) & (y < rows - CELL_TOLERANCE)).unsqueeze(1)


def grid_cell_centres(height: int, width: int, device: torch.device) -> Tensor:
    """(2, h, w) centres (x, y) of the cells of a map, in [0, 1]."""
    x = (torch.arange(width, device=device) + 0.5) / width
    y = (torch.arange(height, device=device) + 0.5) / height
    return torch.stack([x.expand(height, width), y.unsqueeze(1).expand(height, width)])


@dataclass(frozen=True, eq=False)
class TopCells:
    """The best cells of the proposal head's outputs: boxes (B, K, 4) cxcywh, scores and labels (B,
    K)."""

    boxes: Tensor
    scores: Tensor
    labels: Tensor


def select_top_cells(logits: Tensor, boxes: Tensor, count: int) -> TopCells:
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
    return TopCells(boxes.flatten(2).transpose(1, 2).gather(1, where), top, labels)


def roi_align_unpadded(features: Tensor, regions: Tensor, bins: int, ends: Tensor) -> Tensor:
    """What `torchvision.ops.roi_align` computes with one aligned sample a bin (Mask R-CNN 3), on
    each image's own part of the map.

    Args:
        features: (B, C, h, w).
        regions: (R, 5) image number, then xyxy in cells.
        bins: of a region, along each side.
        ends: (B, 2) int64, rows and columns of the map that are the image's.

    Returns:
        (R, C, bins, bins).
    """
    image = regions[:, 0].long()
    height, width = features.shape[-2:]
    rows, columns = ends[image].unsqueeze(-1).unbind(1)
    y, inside_y = _bin_centres(regions[:, 2], regions[:, 4], bins, rows)
    x, inside_x = _bin_centres(regions[:, 1], regions[:, 3], bins, columns)
    (top, bottom, down), (left, right, across) = (
        _interpolation_cells(y, rows),
        _interpolation_cells(x, columns),
    )
    cells = features.permute(0, 2, 3, 1).flatten(0, 2)

    def at(row: Tensor, column: Tensor) -> Tensor:
        """(R, bins, bins, C) features at (R, bins) rows and columns."""
        place = (image[:, None] * height + row) * width
        return cells[place[:, :, None] + column[:, None, :]]

    across, down = across[:, None, :, None], down[:, :, None, None]
    upper = at(top, left) * (1 - across) + at(top, right) * across
    lower = at(bottom, left) * (1 - across) + at(bottom, right) * across
    pooled = upper * (1 - down) + lower * down
    inside = (inside_y[:, :, None] & inside_x[:, None, :])[..., None]
    return (pooled * inside).permute(0, 3, 1, 2)


def _bin_centres(start: Tensor, end: Tensor, bins: int, cells: Tensor) -> tuple[Tensor, Tensor]:
    """(R, bins) centres of the bins of (R,) intervals in cell centres' coordinates, and whether
    they lie within a cell of the (R, 1) cells that there are."""
    middle = (torch.arange(bins, device=start.device) + 0.5) / bins
    places = start[:, None] - 0.5 + middle * (end - start)[:, None]
    return places, (places >= -1) & (places <= cells)


def _interpolation_cells(places: Tensor, cells: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The cells before and after places, and how far these are on the way."""
    places = places.clamp(min=0)
    before = torch.minimum(places.floor().long(), cells - 1)
    after = torch.minimum(before + 1, cells - 1)
    return before, after, (places - before).clamp(max=1)
