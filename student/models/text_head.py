"""Heads that score queries by their cosine similarity with CLIP text embeddings.

They replace the linear classifiers of the paper, so that verbs and objects can be added to a
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
TEXT_BUFFERS = ("verb_head.texts", "verb_head.rows", "object_head.texts", "object_head.labels")


@dataclass(frozen=True, eq=False)
class TextEmbeddings:
    """Embeddings of the sentences that a head compares with.

    Attributes:
        texts: (R, D) float32, normalised.
        rows: (O, V) int64, for each object and verb the row of `texts`.
        labels: (R,) int64, the object of each text; O for a text about no single object.
    """

    texts: Tensor
    rows: Tensor
    labels: Tensor


class TextHead(nn.Module):
    """Base of the heads: cosine similarities between projected queries and text embeddings."""

    texts: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.projection = nn.Linear(config.hidden_dim, config.text_dim)
        self.log_scale = nn.Parameter(torch.zeros(()))
        self.margin = nn.Parameter(torch.zeros(()))
        self.register_buffer("texts", torch.zeros(config.num_texts, config.text_dim))

    def set_texts(self, texts: TextEmbeddings) -> None:
        """Replaces the text embeddings; the numbers of texts, objects and verbs may differ."""
        self.texts = texts.texts.to(self.texts.device)

    @torch.no_grad()
    def init_scale(self, scale: float, margin: float) -> None:
        """Initialises the factor on cosines, and the cosine whose logit is 0."""
        self.log_scale.fill_(scale).log_()
        self.margin.fill_(margin)

    def cosines(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """(..., R) cosines of (..., d) features with all texts, and the (..., D) normalised
        embeddings of the features, both float32."""
        projected = self.projection(features)
        # CLIP's scale is about 100: bfloat16 rounds cosines by up to 0.001, hence logits by 0.1.
        with _autocast_disabled(features.device):
            embeddings = F.normalize(projected.float(), dim=-1)
            return embeddings @ self.texts.T, embeddings

    def logits(self, cosines: Tensor) -> Tensor:
        """Logits of cosines with the texts of classes."""
        return self.log_scale.exp() * (cosines - self.margin)


class TextVerbHead(TextHead):
    """Verb logits as scaled cosine similarities.

    A verb's sentence is the one for the query's most probable object.
    """

    rows: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        rows = torch.zeros(config.num_objects, config.num_verbs, dtype=torch.int64)
        self.register_buffer("rows", rows)

    def set_texts(self, texts: TextEmbeddings) -> None:
        super().set_texts(texts)
        self.rows = texts.rows.to(self.texts.device)

    def forward(self, verb_features: Tensor, object_logits: Tensor) -> tuple[Tensor, Tensor]:
        """Scores every verb.

        Args:
            verb_features: (..., d) outputs of the interaction decoder.
            object_logits: (..., O + 1), the last class is "no pair"; they get no gradient.

        Returns:
            (..., V) verb logits and (..., D) normalised embeddings, both float32.
        """
        cosines, embeddings = self.cosines(verb_features)
        objects = object_logits[..., :-1].argmax(-1)
        return self.logits(cosines.gather(-1, self.rows[objects])), embeddings


class TextObjectHead(TextHead):
    """Object logits as scaled cosine similarities, and a linear logit of "no pair".

    The cosine of an object is the one with the best matching sentence about it, that is with the
    most similar of its interactions; it is -1 for an object without a sentence. (The mean of an
    object's sentences names far fewer of the toy teacher's regions correctly.)
    """

    labels: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.num_objects = config.num_objects
        self.no_pair = nn.Linear(config.hidden_dim, 1)
        self.register_buffer("labels", torch.zeros(config.num_texts, dtype=torch.int64))

    def set_texts(self, texts: TextEmbeddings) -> None:
        super().set_texts(texts)
        self.labels, self.num_objects = texts.labels.to(self.texts.device), len(texts.rows)

    def forward(self, pair_features: Tensor) -> tuple[Tensor, Tensor]:
        """Scores every object.

        Args:
            pair_features: (..., d) outputs of the human-object decoder.

        Returns:
            (..., O + 1) object logits, the last class is "no pair", and (..., D) normalised
            embeddings, both float32.
        """
        cosines, embeddings = self.cosines(pair_features)
        # The last column collects the texts about no single object and is replaced.
        best = cosines.new_full((*cosines.shape[:-1], self.num_objects + 1), -1.0)
        best = best.scatter_reduce(-1, self.labels.expand_as(cosines), cosines, "amax")
        no_pair = self.no_pair(pair_features).float()
        return torch.cat([self.logits(best[..., :-1]), no_pair], -1), embeddings


def _autocast_disabled(device: torch.device) -> AbstractContextManager[object]:
    if torch.is_autocast_enabled(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()
