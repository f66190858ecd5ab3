"""Decoder queries from human-object proposals: proposal head, top cells and region features.

This is an alternative to the learned queries of the paper. A CenterNet-like head predicts people
and objects on the stride-8 map, trained on the boxes of the teacher cache's detector and on the
labelled ones that it missed. The most probable people are paired with the most probable objects;
each pair is a query, and its boxes are the reference boxes of the decoder's outputs. Since every
query starts at a plausible pair, small students converge in minutes.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import box_convert, roi_align

from student.config import ModelConfig
from student.models.backbone import map_stride, proposal_map
from student.models.padding import get_valid_ratios
from student.models.queries import QueryInputs

# Output size of RoIAlign along each side.
ROI_SIZE = 4
MIN_PEOPLE = 4
# Side of the window in which a cell has to be the maximum (CenterNet's substitute of NMS).
PEAK_WINDOW = 3
# Probability that the head predicts everywhere before training, so that the focal loss of the many
# empty cells does not dominate the first steps (RetinaNet 4.1).
PRIOR_PROBABILITY = 0.02
# Fraction of a cell that an image has to fill for the cell to belong to the image. Ratios are
# float32, so that an image's size in cells can exceed a whole number by rounding.
CELL_TOLERANCE = 1e-3


class ProposalQueries(nn.Module):
    """Queries from the most probable pairs of a person and an object.

    Twice as many objects as people are selected, so that they form at least Q pairs. `channels` is
    the number of channels of the feature map that is read.
    """

    def __init__(self, config: ModelConfig, channels: int) -> None:
        super().__init__()
        self.num_queries, self.person = config.num_queries, config.person
        self.pair_people = config.pair_people
        self.num_people = max(MIN_PEOPLE, math.ceil(math.sqrt(config.num_queries / 2)))
        self.num_objects = 2 * self.num_people
        num_objects, hidden_dim, person = config.num_objects, config.hidden_dim, config.person
        self.head = ProposalHead(channels, min(channels, hidden_dim), num_objects, person)
        self.reduce = nn.Conv2d(channels, hidden_dim // 2, 1)
        region = hidden_dim // 2 * ROI_SIZE**2
        self.content = _mlp(2 * region, hidden_dim)
        self.interaction_content = _mlp(region, hidden_dim)
        self.label = nn.Embedding(num_objects, hidden_dim)
        self.place = _mlp(12, hidden_dim)
        self.content_norm = nn.LayerNorm(hidden_dim)
        self.interaction_norm = nn.LayerNorm(hidden_dim)

    def forward(
        self, maps: dict[str, Tensor], padding: Tensor | None, padded_sizes: Tensor | None = None
    ) -> QueryInputs:
        """The queries of each image, with reference boxes.

        Args:
            maps: the backbone's feature maps (B, C, h, w); only one of them is used, see
                `proposal_map`.
            padding: (B, H, W) bool at image size, True on padding, or None. Boxes are relative to
                the unpadded images, and features on padding are ignored.
            padded_sizes: (B, 2) heights and widths in pixels of which each image's map is a map of
                its own; None treats those of a batch as one.
        """
        name = proposal_map(maps)
        features, stride = maps[name], map_stride(name)
        ends = None if padded_sizes is None else (padded_sizes + stride - 1) // stride
        proposals = self.head(features, padding)
        people, objects = self._select_cells(proposals)
        scores = people.scores.unsqueeze(2) * objects.scores.unsqueeze(1)
        if self.pair_people:
            # The last objects are the people, in the same order. A product of probabilities minus 1
            # is below all others, so that no person is paired with themselves.
            count = people.scores.shape[1]
            same_person = torch.eye(count, dtype=scores.dtype, device=scores.device)
            scores = scores - F.pad(same_person, (scores.shape[2] - count, 0))
        count = min(self.num_queries, scores[0].numel())
        index = scores.flatten(1).topk(count, dim=1).indices
        person_rows, object_rows = index // scores.shape[2], index % scores.shape[2]
        human_boxes = people.boxes.gather(1, person_rows.unsqueeze(-1).expand(-1, -1, 4))
        object_boxes = objects.boxes.gather(1, object_rows.unsqueeze(-1).expand(-1, -1, 4))
        labels = objects.labels.gather(1, object_rows)

        reduced = self.reduce(features)
        if padding is not None:
            reduced = reduced * proposals.valid_cells()
        human_region, object_region, union_region = (
            self._pool(reduced, boxes, proposals, ends)
            for boxes in (human_boxes, object_boxes, union_cxcywh(human_boxes, object_boxes))
        )
        spatial = self.place(pair_spatial_features(human_boxes, object_boxes))
        content = self.content(torch.cat([human_region, object_region], -1))
        return QueryInputs(
            target=self.content_norm(content),
            positions=spatial + self.label(labels),
            human_reference=human_boxes,
            object_reference=object_boxes,
            interaction_target=self.interaction_norm(self.interaction_content(union_region)),
            outputs={"proposals": proposals},
        )

    @torch.no_grad()
    def _select_cells(self, proposals: ProposalOutputs) -> tuple[TopCells, TopCells]:
        """The most probable people, and the objects that they may be paired with."""
        logits = proposals.logits.masked_fill(~proposals.valid_cells(), -torch.inf)
        person_logits = logits[:, self.person : self.person + 1].clone()
        logits[:, self.person] = -torch.inf
        people = select_top_cells(person_logits, proposals.boxes[:, 0], self.num_people)
        objects = select_top_cells(logits, proposals.boxes[:, 1], self.num_objects)
        if not self.pair_people:
            return people, objects
        as_objects = people._replace(labels=torch.full_like(people.labels, self.person))
        both = zip(objects, as_objects, strict=True)
        return people, TopCells(*(torch.cat(parts, 1) for parts in both))

    def _pool(
        self, features: Tensor, boxes: Tensor, proposals: ProposalOutputs, ends: Tensor | None
    ) -> Tensor:
        """(B, Q, channels * ROI_SIZE^2) features of regions, by RoIAlign with one sample per bin.

        Args:
            features: (B, channels, h, w).
            boxes: (B, Q, 4) cxcywh in [0, 1] of the unpadded image.
            proposals: gives the number of cells that each image fills.
            ends: (B, 2) numbers of rows and columns of each image's own map; None for one map.
        """
        cells = proposals.grid_sizes()
        corners = box_convert(boxes, "cxcywh", "xyxy") * cells.repeat(1, 2).unsqueeze(1)
        # roi_align reads outside of the map where a box is NaN, as in a run that diverged. The
        # reference boxes keep the NaN, so that the losses become NaN and the run is stopped.
        corners = corners.where(corners.isfinite(), 0)
        # Image indices as a column instead of a list of boxes per image: an exported graph has to
        # accept any number of images.
        image = torch.arange(boxes.shape[0], device=boxes.device).to(corners).view(-1, 1, 1)
        regions = torch.cat([image.expand(-1, boxes.shape[1], 1), corners], -1).flatten(0, 1)
        if ends is not None:
            pooled = roi_align_unpadded(features.float(), regions, ROI_SIZE, ends)
        else:
            pooled = roi_align(features.float(), regions, ROI_SIZE, sampling_ratio=1, aligned=True)
        return pooled.flatten(1).view(*boxes.shape[:2], -1)


def _mlp(channels: int, hidden_dim: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(channels, hidden_dim), nn.ReLU(inplace=True), nn.Linear(hidden_dim, hidden_dim)
    )


def union_cxcywh(first: Tensor, second: Tensor) -> Tensor:
    """Smallest boxes around two (..., 4) cxcywh boxes, in the same form."""
    a, b = box_convert(first, "cxcywh", "xyxy"), box_convert(second, "cxcywh", "xyxy")
    corners = torch.cat(
        [torch.minimum(a[..., :2], b[..., :2]), torch.maximum(a[..., 2:], b[..., 2:])], -1
    )
    return box_convert(corners, "xyxy", "cxcywh")


def pair_spatial_features(humans: Tensor, objects: Tensor) -> Tensor:
    """(..., 12) features of pairs of (..., 4) cxcywh boxes: both boxes, the object's offset from
    the person in units of the person's width and height, and the logarithm of the ratio of their
    sizes.
    """
    size = humans[..., 2:].clamp(min=1e-3)
    offset = (objects[..., :2] - humans[..., :2]) / size
    ratio = (objects[..., 2:].clamp(min=1e-3) / size).log()
    return torch.cat([humans, objects, offset.clamp(-4, 4), ratio.clamp(-4, 4)], -1)


class ProposalOutputs(NamedTuple):
    """The proposal head's outputs on a map of h x w cells.

    Attributes:
        logits: (B, O, h, w) float32, one channel for every object class.
        boxes: (B, 2, 4, h, w) float32 cxcywh in [0, 1] of the unpadded image: for each cell the box
            of a person (index 0) and of an object (index 1) whose centre is in it.
        valid_ratios: (B, 2) fractions of the map's width and height that the image fills.
    """

    logits: Tensor
    boxes: Tensor
    valid_ratios: Tensor

    def grid_sizes(self) -> Tensor:
        """(B, 2) float, numbers of columns and rows of cells that the images fill."""
        return grid_sizes(self.logits, self.valid_ratios)

    def valid_cells(self) -> Tensor:
        """(B, 1, h, w) bool, False for cells that contain nothing but padding."""
        return valid_cells(self.logits, self.valid_ratios)


class ProposalHead(nn.Module):
    """Predicts centres and boxes of people and objects, as CenterNet does (arXiv 1904.07850).

    People and objects have separate branches, because a rider and the horse can be centred in the
    same cell. People are one of the `num_objects` classes, with the index `person`.

    `channels` is that of the map, `width` that of the branches. Branches as wide as the stride-8
    map of a ResNet-50 would take twice as many operations as the backbone.
    """

    def __init__(self, channels: int, width: int, num_objects: int, person: int) -> None:
        super().__init__()
        self.person = person
        self.branches = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(channels, width, 3, padding=1),
                nn.ReLU(inplace=True),
                nn.Conv2d(width, width, 3, padding=1),
                nn.ReLU(inplace=True),
            )
            for _ in range(2)
        )
        self.person_logit = nn.Conv2d(width, 1, 1)
        self.object_logits = nn.Conv2d(width, num_objects, 1)
        self.boxes = nn.ModuleList(nn.Conv2d(width, 4, 1) for _ in range(2))
        prior = torch.logit(torch.tensor(PRIOR_PROBABILITY)).item()
        for layer in (self.person_logit, self.object_logits):
            assert layer.bias is not None
            nn.init.constant_(layer.bias, prior)

    def forward(self, features: Tensor, padding: Tensor | None = None) -> ProposalOutputs:
        """Class logits and boxes for every cell of a (B, channels, h, w) map.

        `padding` is (B, H, W) bool at image size, True on padding, or None.
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
            ratios = valid_ratios.view(-1, 2, 1, 1)
            centre = grid_cell_centres(height, width, features.device) / ratios
            cell_size = 1 / grid_sizes(features, valid_ratios).view(-1, 2, 1, 1)
            # sigmoid(-1.4) is about 0.2: before training, boxes are a fifth of the image. A box's
            # centre is at most two cells away from that of its cell.
            size = torch.sigmoid(raw[:, 2:] - 1.4)
            boxes.append(torch.cat([centre + 2 * cell_size * torch.tanh(raw[:, :2] / 2), size], 1))
        return ProposalOutputs(
            logits=logits, boxes=torch.stack(boxes, 1), valid_ratios=valid_ratios
        )


def _apply_masked(branch: nn.Module, features: Tensor, valid_ratios: Tensor | None) -> Tensor:
    """Applies a branch with every convolution's input zeroed on padding."""
    mask = None if valid_ratios is None else valid_cells(features, valid_ratios)
    for layer in branch.children():
        if mask is not None and isinstance(layer, nn.Conv2d):
            features = features * mask
        features = layer(features)
    return features


def grid_sizes(features: Tensor, valid_ratios: Tensor) -> Tensor:
    """(B, 2) float numbers of columns and rows of a (B, C, h, w) map that images fill, of which
    `valid_ratios` (B, 2) are the fractions of width and height.
    """
    height, width = features.shape[-2:]
    # A tensor of both sizes would have to be copied to the device, and some versions of torch
    # treat it as a constant when they export a graph for images of any size.
    return torch.stack([valid_ratios[:, 0] * width, valid_ratios[:, 1] * height], 1)


def valid_cells(features: Tensor, valid_ratios: Tensor) -> Tensor:
    """(B, 1, h, w) bool, whether cells of a (B, C, h, w) map contain a part of their image."""
    height, width = features.shape[-2:]
    columns, rows = grid_sizes(features, valid_ratios).view(-1, 2, 1, 1).unbind(1)
    x = torch.arange(width, device=features.device)
    y = torch.arange(height, device=features.device).unsqueeze(1)
    return ((x < columns - CELL_TOLERANCE) & (y < rows - CELL_TOLERANCE)).unsqueeze(1)


def grid_cell_centres(height: int, width: int, device: torch.device) -> Tensor:
    """(2, h, w) centres (x, y) of the cells of a map, in [0, 1] of the map."""
    x = (torch.arange(width, device=device) + 0.5) / width
    y = (torch.arange(height, device=device) + 0.5) / height
    return torch.stack([x.expand(height, width), y.unsqueeze(1).expand(height, width)])


class TopCells(NamedTuple):
    """The K highest-scoring cells of each image: (B, K, 4) boxes, (B, K) scores, (B, K) labels."""

    boxes: Tensor
    scores: Tensor
    labels: Tensor


def select_top_cells(logits: Tensor, boxes: Tensor, count: int) -> TopCells:
    """Selects the `count` highest local maxima over classes and cells; all where there are fewer.

    `logits` are (B, C, h, w), `boxes` (B, 4, h, w) cxcywh.
    """
    scores = logits.sigmoid()
    peaks = F.max_pool2d(scores, PEAK_WINDOW, stride=1, padding=PEAK_WINDOW // 2)
    # Entries that are no maximum come last, but are selected where there are too few maxima.
    scores = torch.where(scores == peaks, scores, scores * 1e-3)
    num_cells = logits.shape[-2] * logits.shape[-1]
    num_entries = scores[0].numel()
    # With min() the exporter cannot derive that the output has `count` rows.
    top, index = scores.flatten(1).topk(count if count <= num_entries else num_entries, dim=1)
    labels = index // num_cells
    cells = (index - labels * num_cells).unsqueeze(-1).expand(-1, -1, 4)
    return TopCells(boxes.flatten(2).transpose(1, 2).gather(1, cells), top, labels)


def roi_align_unpadded(features: Tensor, regions: Tensor, bins: int, ends: Tensor) -> Tensor:
    """RoIAlign that treats each image's part of a padded map as a map of its own.

    The result is that of `torchvision.ops.roi_align` with `sampling_ratio=1` and `aligned=True` on
    the map without its padding. Torchvision clamps sampling points to the border of the whole map,
    and would interpolate with padding near the border of the image.

    Args:
        features: (B, C, h, w).
        regions: (R, 5) image index, then xyxy in cells.
        bins: number of bins along each side of a region.
        ends: (B, 2) int64, numbers of rows and columns of the map that belong to the image.

    Returns:
        (R, C, bins, bins).
    """
    image = regions[:, 0].long()
    height, width = features.shape[-2:]
    rows, columns = ends[image].unsqueeze(-1).unbind(1)
    y, inside_y = _bin_centres(regions[:, 2], regions[:, 4], bins, rows)
    x, inside_x = _bin_centres(regions[:, 1], regions[:, 3], bins, columns)
    top, bottom, weight_y = _interpolation_cells(y, rows)
    left, right, weight_x = _interpolation_cells(x, columns)
    cells = features.permute(0, 2, 3, 1).flatten(0, 2)

    def features_at(row: Tensor, column: Tensor) -> Tensor:
        """(R, bins, bins, C) features at (R, bins) rows and columns."""
        row_start = (image[:, None] * height + row) * width
        return cells[row_start[:, :, None] + column[:, None, :]]

    weight_x, weight_y = weight_x[:, None, :, None], weight_y[:, :, None, None]
    upper = features_at(top, left) * (1 - weight_x) + features_at(top, right) * weight_x
    lower = features_at(bottom, left) * (1 - weight_x) + features_at(bottom, right) * weight_x
    pooled = upper * (1 - weight_y) + lower * weight_y
    inside = (inside_y[:, :, None] & inside_x[:, None, :])[..., None]
    return (pooled * inside).permute(0, 3, 1, 2)


def _bin_centres(start: Tensor, end: Tensor, bins: int, cells: Tensor) -> tuple[Tensor, Tensor]:
    """(R, bins) sampling points along one axis of regions, whose ends are in cells, and whether
    torchvision's kernel reads them: more than a cell outside of the image it samples 0.

    In the points' coordinates, cell centres are whole numbers. `cells` (R, 1) is the image's
    number of cells along the axis.
    """
    fractions = (torch.arange(bins, device=start.device) + 0.5) / bins
    points = start[:, None] - 0.5 + fractions * (end - start)[:, None]
    return points, (points >= -1) & (points <= cells)


def _interpolation_cells(points: Tensor, cells: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The cells before and after each sampling point, and the weight of the one after it."""
    points = points.clamp(min=0)
    before = torch.minimum(points.floor().long(), cells - 1)
    after = torch.minimum(before + 1, cells - 1)
    return before, after, (points - before).clamp(max=1)
