"""What the human-object decoder starts from."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn


@dataclass(frozen=True, eq=False)
class QueryInputs:
    """The decoder's start for a batch of B images.

    Attributes:
        target: (B, Q, d) initial content of the human-object decoder.
        positions: (B, Q, d) added to queries and keys in every layer.
        human_reference, object_reference: (B, Q, 4) cxcywh in [0, 1], boxes from which the box
            heads predict differences; None where they predict boxes outright.
        interaction_target: (B, Q, d) initial content of the interaction decoder; None for zeros.
        outputs: more outputs of the query source, for its own loss; they join the model's.
    """

    target: Tensor
    positions: Tensor
    human_reference: Tensor | None = None
    object_reference: Tensor | None = None
    interaction_target: Tensor | None = None
    outputs: dict[str, Any] = field(default_factory=dict)


class LearnedQueries(nn.Module):
    """The same learned positions for every image, content starting at zero (DETR 3.2)."""

    def __init__(self, num_queries: int, hidden_dim: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(num_queries, hidden_dim)

    def forward(
        self, maps: dict[str, Tensor], padding: Tensor | None, padding_invariant: bool = False
    ) -> QueryInputs:
        """Reads nothing from the image but the batch size.

        Args:
            maps: the backbone's feature maps (B, C, h, w).
            padding: (B, H, W) bool at image size, or None.
            padding_invariant: see `HOIDetector.forward`.
        """
        batch = next(iter(maps.values())).shape[0]
        positions = self.embedding.weight.expand(batch, -1, -1)
        return QueryInputs(target=positions.new_zeros(positions.shape), positions=positions)
