"""Where a feature lies in its image, as sines (Attention Is All You Need 3.5, DETR A.4)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

EPSILON = 1e-6


class SinePositionEncoding(nn.Module):
    """Sines of the position along each axis, normalised to 2 pi over the unpadded image.

    Args:
        hidden_dim: features in all, half of them for each axis.
        temperature: ratio of the longest to the shortest wave.
    """

    def __init__(self, hidden_dim: int, temperature: float = 10000.0) -> None:
        super().__init__()
        self.features_per_axis = hidden_dim // 2
        self.temperature = temperature

    def forward(self, features: Tensor, padding: Tensor | None) -> Tensor:
        """Encodes every place of a feature map.

        Args:
            features: (B, C, h, w); only size and device matter.
            padding: (B, h, w) bool, True on padding, or None.

        Returns:
            (B or 1, hidden_dim, h, w) float32, features of y first, then of x.
        """
        if padding is None:
            inside = torch.ones(1, *features.shape[-2:], device=features.device)
        else:
            inside = (~padding).float()
        rows, columns = inside.cumsum(1), inside.cumsum(2)
        rows = rows / (rows[:, -1:, :] + EPSILON)
        columns = columns / (columns[:, :, -1:] + EPSILON)
        return torch.cat([self._waves(rows), self._waves(columns)], dim=-1).permute(0, 3, 1, 2)

    def _waves(self, places: Tensor) -> Tensor:
        """(B, h, w) in [0, 1] to (B, h, w, features_per_axis), sine and cosine in turn."""
        steps = torch.arange(0, self.features_per_axis, 2, device=places.device)
        lengths = self.temperature ** (steps / self.features_per_axis)
        angles = 2 * math.pi * places[..., None] / lengths
        return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(-2)
