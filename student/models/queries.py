"""Inputs of the human-object decoder, and the learned queries of the published model."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn


@dataclass(frozen=True, eq=False)
class QueryInputs:
    """Initial decoder inputs for a batch of B images.

    Attributes:
        target: (B, Q, d) initial target of the human-object decoder.
        positions: (B, Q, d) query positions, added to queries and keys in every layer.
        human_reference, object_reference: (B, Q, 4) cxcywh in [0, 1], boxes to which the box heads
            predict differences; None where they predict the boxes themselves.
        interaction_target: (B, Q, d) initial target of the interaction decoder; None for zeros.
        outputs: additional entries of the model's outputs, needed by the loss of the queries.
    """

    target: Tensor
    positions: Tensor
    human_reference: Tensor | None = None
    object_reference: Tensor | None = None
    interaction_target: Tensor | None = None
    outputs: dict[str, Any] = field(default_factory=dict)


class LearnedQueries(nn.Module):
    """Learned query positions, the same for every image; the target starts at zero (DETR 3.2)."""

    def __init__(self, num_queries: int, hidden_dim: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(num_queries, hidden_dim)

    def forward(
        self, maps: dict[str, Tensor], padding: Tensor | None, padded_sizes: Tensor | None = None
    ) -> QueryInputs:
        """The queries of a batch; only the batch size of the maps (B, C, h, w) is used."""
        batch = next(iter(maps.values())).shape[0]
        positions = self.embedding.weight.expand(batch, -1, -1)
        return QueryInputs(target=positions.new_zeros(positions.shape), positions=positions)
