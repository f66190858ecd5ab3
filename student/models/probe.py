"""The verb head of `eoid-train probe`, from cached embedding and boxes of a pair to verb logits."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.boxes import union_boxes

NUM_GEOMETRY = 14
# Shortest side of a box, in pixels, in ratios of sides and areas.
MIN_SIDE = 1.0
# Lowest standard deviation that features are divided by: a constant one must not become infinite.
MIN_STD = 1e-3


class VerbProbe(nn.Module):
    """Verb logits of pairs: linear, or with one hidden layer.

    Args:
        num_features: F, numbers of the embedding and of `pair_geometry`.
        num_objects, num_verbs: numbers O and V of the vocabulary's classes.
        hidden_dim: width of the hidden layer; 0 for a linear head.
        mean, std: (F,) of the training pairs' features, by which features are standardised; the
            components of an image embedding share a large mean. None for 0 and 1.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        num_features: int,
        num_objects: int,
        num_verbs: int,
        hidden_dim: int,
        mean: Tensor | None = None,
        std: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(num_features) if mean is None else mean)
        std = torch.ones(num_features) if std is None else std.clamp_min(MIN_STD)
        self.register_buffer("std", std)
        width = hidden_dim or num_verbs
        self.features = nn.Linear(num_features, width)
        # Added to the layer above, as if the features contained the object class as a one-hot
        # vector.
        self.objects = nn.Embedding(num_objects, width)
        nn.init.zeros_(self.objects.weight)
        self.verbs = (
            nn.Sequential(nn.ReLU(), nn.Linear(hidden_dim, num_verbs))
            if hidden_dim
            else nn.Identity()
        )

    def forward(self, features: Tensor, object_labels: Tensor) -> Tensor:
        """(P, F) features and (P,) int64 object classes -> (P, V) logits."""
        standardised = (features - self.mean) / self.std
        return self.verbs(self.features(standardised) + self.objects(object_labels))


def pair_geometry(human_boxes: np.ndarray, object_boxes: np.ndarray) -> np.ndarray:
    """(P, `NUM_GEOMETRY`) float32 geometry of pairs of (P, 4) boxes, xyxy in pixels.

    The numbers do not depend on the position and size of the pair in the image: both boxes within
    the union box (8), the logarithms of the union's ratio of sides and of the ratio of both areas,
    the share of each box that the other covers, and the object's distance from the human, in
    widths and heights of the human.
    """
    union = union_boxes(human_boxes, object_boxes)
    origin, extent = np.tile(union[:, :2], 2), np.tile(_sides(union), 2)
    human_sides, object_sides = _sides(human_boxes), _sides(object_boxes)
    human_areas, object_areas = human_sides.prod(axis=1), object_sides.prod(axis=1)
    left_top = np.maximum(human_boxes[:, :2], object_boxes[:, :2])
    right_bottom = np.minimum(human_boxes[:, 2:], object_boxes[:, 2:])
    common = np.maximum(right_bottom - left_top, 0).prod(axis=1)
    distance = (object_boxes[:, :2] + object_boxes[:, 2:]) / 2
    distance = distance - (human_boxes[:, :2] + human_boxes[:, 2:]) / 2
    columns = [
        (human_boxes - origin) / extent,
        (object_boxes - origin) / extent,
        np.log(extent[:, :1] / extent[:, 1:2]),
        np.log(object_areas / human_areas)[:, None],
        (common / human_areas)[:, None],
        (common / object_areas)[:, None],
        distance / human_sides,
    ]
    return np.concatenate(columns, axis=1).astype(np.float32)


def _sides(boxes: np.ndarray) -> np.ndarray:
    """(P, 2) widths and heights of boxes in pixels, at least `MIN_SIDE`."""
    return np.maximum(boxes[:, 2:] - boxes[:, :2], MIN_SIDE)
