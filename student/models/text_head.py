"""A verb head that reads: what a query shows is compared with what a sentence says."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from student.config import ModelConfig

# What the head is told; never learned, never taken from another student's file.
TEXT_BUFFERS = ("verb_head.texts", "verb_head.rows")


@dataclass(frozen=True, eq=False)
class TextEmbeddings:
    """The sentences that a head compares with, as their embeddings.

    Attributes:
        texts: (R, D) float32, normalised.
        rows: (O, V) int64, the row of `texts` for a verb done with an object.
    """

    texts: Tensor
    rows: Tensor


class TextVerbHead(nn.Module):
    """Verb logits as scaled cosines between projected queries and sentences.

    The sentence of a verb is the one about the query's likeliest object.

    Args:
        config: d, O, V, and the numbers D and R of `TextEmbeddings`.
    """

    texts: Tensor
    rows: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.projection = nn.Linear(config.hidden_dim, config.text_dim)
        self.log_scale = nn.Parameter(torch.zeros(()))
        self.margin = nn.Parameter(torch.zeros(()))
        self.register_buffer("texts", torch.zeros(config.num_texts, config.text_dim))
        rows = torch.zeros(config.num_objects, config.num_verbs, dtype=torch.int64)
        self.register_buffer("rows", rows)

    def set_texts(self, texts: TextEmbeddings) -> None:
        """Puts other sentences in the place of the present ones, as many verbs as they have."""
        device = self.texts.device
        self.texts, self.rows = texts.texts.to(device), texts.rows.to(device)

    @torch.no_grad()
    def init_scale(self, scale: float, margin: float) -> None:
        """Sets where training starts: the factor on cosines, and the cosine that scores 0.5."""
        self.log_scale.fill_(scale).log_()
        self.margin.fill_(margin)

    def forward(self, actions: Tensor, object_logits: Tensor) -> tuple[Tensor, Tensor]:
        """Scores every verb.

        Args:
            actions: (..., d) of the interaction decoder.
            object_logits: (..., O + 1), the last class being "no pair"; no gradient goes there.

        Returns:
            (..., V) verb logits and (..., D) normalised embeddings, float32.
        """
        projected = self.projection(actions)
        # Half precision cannot tell cosines apart that a temperature of 0.01 drives far apart.
        with _autocast_disabled(actions.device):
            embeddings = F.normalize(projected.float(), dim=-1)
            likeliest = object_logits[..., :-1].argmax(-1)
            similar = (embeddings @ self.texts.T).gather(-1, self.rows[likeliest])
            return self.log_scale.exp() * (similar - self.margin), embeddings


def _autocast_disabled(device: torch.device) -> AbstractContextManager[object]:
    if torch.is_autocast_enabled(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()
