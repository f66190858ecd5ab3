"""Queries made of pairs that the student's own dense head proposes.

Every pairing of a likely person with a likely object becomes a query whose boxes are the
decoder's reference. Queries are about something from the first step on, which lets small students
converge in minutes.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.ops import box_convert, roi_align

from student.config import StudentConfig
from student.dense_head import ROUNDING, Candidates, DenseHead, DenseOutputs, best_cells
from student.query_inputs import QueryInputs
from student.region_pooling import pool_regions

REGION_SIZE = 4
LEAST_PEOPLE = 4


class PairQueries(nn.Module):
    """Queries made of pairs: the likeliest people with the likeliest objects.

    Twice as many objects as people are taken, and as many as it needs to make enough pairs of them.

    Args:
        config: Q, d, the classes and which of them is people.
        channels: of the stride-8 feature map.
    """

    def __init__(self, config: StudentConfig, channels: int) -> None:
        super().__init__()
        self.num_queries, self.person = config.num_queries, config.person
        self.pair_people = config.pair_people
        self.num_people = max(LEAST_PEOPLE, math.ceil(math.sqrt(config.num_queries / 2)))
        self.num_objects = 2 * self.num_people
        num_objects, hidden_dim, person = config.num_objects, config.hidden_dim, config.person
        self.head = DenseHead(channels, num_objects, person)
        self.reduce = nn.Conv2d(channels, hidden_dim // 2, 1)
        region = hidden_dim // 2 * REGION_SIZE**2
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
        self, maps: dict[str, Tensor], padding: Tensor | None, alone: bool = False
    ) -> QueryInputs:
        """Makes an image's queries, with reference boxes.

        Args:
            maps: `stride8` (B, C, h, w) among them.
            padding: (B, H, W) bool at image size, True on padding, or None. Boxes are relative to
                the images without it, and what lies in it is not looked at.
            alone: see `HOIDetector.forward`.
        """
        features = maps["stride8"]
        dense = self.head(features, padding)
        people, objects = self._candidates(dense)
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
            reduced = reduced * dense.inside()
        union = union_cxcywh(humans, things)
        own = alone and padding is not None
        regions = [self._pool(reduced, boxes, dense, own) for boxes in (humans, things, union)]
        positions = self.place(pair_geometry(humans, things)) + self.label(labels)
        content = self.content_norm(self.content(torch.cat(regions[:2], -1)))
        interaction = self.interaction_norm(self.interaction_content(regions[2]))
        return QueryInputs(
            target=content,
            positions=positions,
            human_reference=humans,
            object_reference=things,
            interaction_target=interaction,
            outputs={"dense": dense},
        )

    @torch.no_grad()
    def _candidates(self, dense: DenseOutputs) -> tuple[Candidates, Candidates]:
        """The likeliest people, and what they may be paired with."""
        logits = dense.logits.masked_fill(~dense.inside(), -torch.inf)
        only = logits[:, self.person : self.person + 1].clone()
        logits[:, self.person] = -torch.inf
        people = best_cells(only, dense.boxes[:, 0], self.num_people)
        objects = best_cells(logits, dense.boxes[:, 1], self.num_objects)
        if not self.pair_people:
            return people, objects
        return people, Candidates(
            boxes=torch.cat([objects.boxes, people.boxes], 1),
            scores=torch.cat([objects.scores, people.scores], 1),
            labels=torch.cat([objects.labels, torch.full_like(people.labels, self.person)], 1),
        )

    def _pool(self, features: Tensor, boxes: Tensor, dense: DenseOutputs, own: bool) -> Tensor:
        """Features of regions.

        Args:
            features: (B, channels, h, w).
            boxes: (B, Q, 4) cxcywh in [0, 1].
            dense: tells how many cells the images fill.
            own: the map ends for each image where that does.

        Returns:
            (B, Q, channels * REGION_SIZE^2).
        """
        cells = dense.cells()
        corners = box_convert(boxes, "cxcywh", "xyxy") * cells.repeat(1, 2).unsqueeze(1)
        # A model that diverged: roi_align reads outside of the map where a box is not a number.
        # The boxes themselves stay as they are, so that the losses say that they are not finite.
        corners = corners.where(corners.isfinite(), 0)
        # Image numbers as a column, not a list of boxes per image: an exported graph has to take
        # any number of images.
        image = torch.arange(boxes.shape[0], device=boxes.device).to(corners).view(-1, 1, 1)
        regions = torch.cat([image.expand(-1, boxes.shape[1], 1), corners], -1).flatten(0, 1)
        if own:
            ends = (cells - ROUNDING).ceil().long().flip(1)
            pooled = pool_regions(features.float(), regions, REGION_SIZE, ends)
        else:
            pooled = roi_align(
                features.float(), regions, REGION_SIZE, sampling_ratio=1, aligned=True
            )
        return pooled.flatten(1).view(*boxes.shape[:2], -1)


def union_cxcywh(first: Tensor, second: Tensor) -> Tensor:
    """Smallest boxes (..., 4) around both, cxcywh."""
    a, b = box_convert(first, "cxcywh", "xyxy"), box_convert(second, "cxcywh", "xyxy")
    corners = torch.cat(
        [torch.minimum(a[..., :2], b[..., :2]), torch.maximum(a[..., 2:], b[..., 2:])], -1
    )
    return box_convert(corners, "xyxy", "cxcywh")


def pair_geometry(humans: Tensor, objects: Tensor) -> Tensor:
    """(..., 12): both boxes in the picture, and the object seen from the person.

    Args:
        humans, objects: (..., 4) cxcywh in [0, 1].
    """
    size = humans[..., 2:].clamp(min=1e-3)
    offset = (objects[..., :2] - humans[..., :2]) / size
    ratio = (objects[..., 2:].clamp(min=1e-3) / size).log()
    return torch.cat([humans, objects, offset.clamp(-4, 4), ratio.clamp(-4, 4)], -1)
