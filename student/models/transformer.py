"""Transformer encoder and decoder of DETR, with the sine position encoding.

The student has one encoder and two decoders of this kind (EoID 3.1). All sequences are
(B, length, d); masks are True on padding.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from student.config import ModelConfig

# Keeps the normalisation of positions finite where an image fills no cell, as in DETR.
EPSILON = 1e-6


class TransformerLayer(nn.Module):
    """Base of encoder and decoder layers: feed-forward sublayer, residuals, pre- or post-norm."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.pre_norm = config.pre_norm
        self.linear1 = nn.Linear(config.hidden_dim, config.feedforward_dim)
        self.linear2 = nn.Linear(config.feedforward_dim, config.hidden_dim)
        self.dropout = nn.Dropout(config.dropout)

    def feed_forward(self, tokens: Tensor) -> Tensor:
        """Applies the feed-forward network to (B, length, d) tokens, each on its own."""
        return self.linear2(self.dropout(self.linear1(tokens).relu()))

    def add_residual(
        self, norm: nn.Module, tokens: Tensor, sublayer: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """Adds a sublayer's output to its input, with the norm before or after it."""
        if self.pre_norm:
            return tokens + self.dropout(sublayer(norm(tokens)))
        return norm(tokens + self.dropout(sublayer(tokens)))


class Attention(nn.MultiheadAttention):
    """Multi-head attention without the attention weights as an output.

    torch's own forward method transposes to (length, B, d), which specialises exported graphs to
    more than one image.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(
            config.hidden_dim, config.num_heads, dropout=config.dropout, batch_first=True
        )

    def forward(  # type: ignore[override]
        self, query: Tensor, key: Tensor, value: Tensor, padding: Tensor | None = None
    ) -> Tensor:
        """Attends from (B, Q, d) queries to (B, S, d) keys and values; gives (B, Q, d).

        `padding` is (B, S) bool, True on keys that are ignored, or None.
        """
        weights, biases = self.in_proj_weight.chunk(3), self.in_proj_bias.chunk(3)
        queries, keys, values = (
            F.linear(tokens, weight, bias).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for tokens, weight, bias in zip((query, key, value), weights, biases, strict=True)
        )
        mask = None if padding is None else ~padding[:, None, None]
        dropout = self.dropout if self.training else 0.0
        joined = F.scaled_dot_product_attention(queries, keys, values, mask, dropout)
        return self.out_proj(joined.transpose(1, 2).flatten(2))


class EncoderLayer(TransformerLayer):
    """Self-attention and feed-forward; positions are added to queries and keys, not to values."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.self_attention = Attention(config)
        self.norm1, self.norm2 = _norms(config, 2)

    def forward(self, tokens: Tensor, positions: Tensor, padding: Tensor | None) -> Tensor:
        """Maps (B, S, d) tokens to (B, S, d); `padding` is (B, S) bool or None."""

        def self_attend(values: Tensor) -> Tensor:
            queries = values + positions
            return self.self_attention(queries, queries, values, padding)

        tokens = self.add_residual(self.norm1, tokens, self_attend)
        return self.add_residual(self.norm2, tokens, self.feed_forward)


class DecoderLayer(TransformerLayer):
    """Self-attention among queries, cross-attention to the memory, feed-forward."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.self_attention = Attention(config)
        self.cross_attention = Attention(config)
        self.norm1, self.norm2, self.norm3 = _norms(config, 3)

    def forward(
        self,
        target: Tensor,
        query_positions: Tensor,
        memory_keys: Tensor,
        memory: Tensor,
        padding: Tensor | None,
    ) -> Tensor:
        """Maps a (B, Q, d) target to (B, Q, d).

        The (B, S, d) memory is given with positions as keys, and without as values.
        """

        def self_attend(values: Tensor) -> Tensor:
            queries = values + query_positions
            return self.self_attention(queries, queries, values)

        def cross_attend(values: Tensor) -> Tensor:
            queries = values + query_positions
            return self.cross_attention(queries, memory_keys, memory, padding)

        target = self.add_residual(self.norm1, target, self_attend)
        target = self.add_residual(self.norm2, target, cross_attend)
        return self.add_residual(self.norm3, target, self.feed_forward)


class Encoder(nn.Module):
    """A stack of encoder layers, followed by a layer norm if the layers are pre-norm."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(EncoderLayer(config) for _ in range(config.num_encoder_layers))
        self.norm = nn.LayerNorm(config.hidden_dim) if config.pre_norm else None
        _reset_parameters(self)

    def forward(self, tokens: Tensor, positions: Tensor, padding: Tensor | None) -> Tensor:
        """Computes the memory (B, S, d); arguments as in `EncoderLayer.forward`."""
        for layer in self.layers:
            tokens = layer(tokens, positions, padding)
        return tokens if self.norm is None else self.norm(tokens)


class Decoder(nn.Module):
    """A stack of decoder layers; one layer norm is applied to the output of every layer."""

    def __init__(self, config: ModelConfig, num_layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(num_layers))
        self.norm = nn.LayerNorm(config.hidden_dim)
        _reset_parameters(self)

    def forward(
        self,
        target: Tensor,
        query_positions: Tensor,
        memory: Tensor,
        memory_positions: Tensor,
        padding: Tensor | None,
    ) -> Tensor:
        """(L, B, Q, d) outputs of all layers, from the (B, Q, d) target and the (B, S, d)
        memory.
        """
        memory_keys = memory + memory_positions
        outputs = []
        for layer in self.layers:
            target = layer(target, query_positions, memory_keys, memory, padding)
            outputs.append(self.norm(target))
        return torch.stack(outputs)


def _norms(config: ModelConfig, count: int) -> list[nn.LayerNorm]:
    return [nn.LayerNorm(config.hidden_dim) for _ in range(count)]


def _reset_parameters(module: nn.Module) -> None:
    for parameter in module.parameters():
        if parameter.dim() > 1:
            nn.init.xavier_uniform_(parameter)


class SinePositionEncoding(nn.Module):
    """DETR's sine position encoding, normalised to 2 pi over the unpadded image.

    Half of the features encode y, half x. `temperature` is the base of the progression of
    wavelengths.
    """

    def __init__(self, hidden_dim: int, temperature: float = 10000.0) -> None:
        super().__init__()
        self.features_per_axis = hidden_dim // 2
        self.temperature = temperature

    def forward(self, features: Tensor, padding: Tensor | None) -> Tensor:
        """(B or 1, hidden_dim, h, w) float32 positions of the cells of a (B, C, h, w) map.

        `padding` is (B, h, w) bool or None.
        """
        if padding is None:
            valid = torch.ones(1, *features.shape[-2:], device=features.device)
        else:
            valid = (~padding).float()
        y, x = valid.cumsum(1), valid.cumsum(2)
        y = y / (y[:, -1:, :] + EPSILON)
        x = x / (x[:, :, -1:] + EPSILON)
        encoding = torch.cat([self._sine_features(y), self._sine_features(x)], dim=-1)
        return encoding.permute(0, 3, 1, 2)

    def _sine_features(self, positions: Tensor) -> Tensor:
        """(B, h, w) in [0, 1] to (B, h, w, features_per_axis), sines and cosines interleaved."""
        exponents = torch.arange(0, self.features_per_axis, 2, device=positions.device)
        wavelengths = self.temperature ** (exponents / self.features_per_axis)
        angles = 2 * math.pi * positions[..., None] / wavelengths
        return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(-2)
