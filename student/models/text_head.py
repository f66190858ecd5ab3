"""Verb head that scores queries by their cosine similarity with CLIP text embeddings.

It replaces the linear verb classifier of the paper, so that verbs and objects can be added to a
trained student by adding sentences (`student.weights.load`).
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from student.config import ModelConfig

# State-dict keys of the text embeddings. They come from the teacher cache, are not trained, and are
# not loaded from the weights of a student with other texts.
TEXT_BUFFERS = ("verb_head.texts", "verb_head.rows")


@dataclass(frozen=True, eq=False)
class TextEmbeddings:
    """Embeddings of the sentences that a head compares with.

    Attributes:
        texts: (R, D) float32, normalised.
        rows: (O, V) int64, for each object and verb the row of `texts`.
    """

    texts: Tensor
    rows: Tensor


class TextVerbHead(nn.Module):
    """Verb logits as scaled cosine similarities between projected queries and text embeddings.

    A verb's sentence is the one for the query's most probable object.
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
        """Replaces the text embeddings; the numbers of texts, objects and verbs may differ."""
        device = self.texts.device
        self.texts, self.rows = texts.texts.to(device), texts.rows.to(device)

    @torch.no_grad()
    def init_scale(self, scale: float, margin: float) -> None:
        """Initialises the factor on cosines, and the cosine whose probability is 0.5."""
        self.log_scale.fill_(scale).log_()
        self.margin.fill_(margin)

    def forward(self, verb_features: Tensor, object_logits: Tensor) -> tuple[Tensor, Tensor]:
        """Scores every verb.

        Args:
            verb_features: (..., d) outputs of the interaction decoder.
            object_logits: (..., O + 1), the last class is "no pair"; they get no gradient.

        Returns:
            (..., V) verb logits and (..., D) normalised embeddings, both float32.
        """
        projected = self.projection(verb_features)
        # CLIP's scale is about 100: bfloat16 rounds cosines by up to 0.001, hence logits by 0.1.
        with _autocast_disabled(verb_features.device):
            embeddings = F.normalize(projected.float(), dim=-1)
            objects = object_logits[..., :-1].argmax(-1)
            cosines = (embeddings @ self.texts.T).gather(-1, self.rows[objects])
            return self.log_scale.exp() * (cosines - self.margin), embeddings


def _autocast_disabled(device: torch.device) -> AbstractContextManager[object]:
    if torch.is_autocast_enabled(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()
