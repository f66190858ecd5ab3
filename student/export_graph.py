"""The detector as one graph: plain pixels in, final boxes, labels and scores out."""

from __future__ import annotations

from copy import deepcopy
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import box_convert

from student.data import MEAN, STD
from student.inference import NUM_DETECTIONS, best_entries
from student.padding import padding_cells
from student.ready import ReadyModel

DECODED = ("scores", "verbs", "labels", "human_boxes", "object_boxes")


class DetectorGraph(nn.Module):
    """Normalisation, detector and choice of the best interactions, without a choice by data.

    Args:
        opened: the detector; it stays as it is.

    Attributes:
        side_multiple: what the sides of its input have to be multiples of.
    """

    mean: Tensor
    std: Tensor
    valid: Tensor

    def __init__(self, opened: ReadyModel) -> None:
        super().__init__()
        self.model = _with_plain_modules(opened.model)
        self.side_multiple = cast(int, opened.model.backbone.side_multiple)
        self.alone = bool(opened.vocabulary.roles)
        self.register_buffer("mean", torch.tensor(MEAN).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(STD).view(3, 1, 1))
        self.register_buffer("valid", torch.from_numpy(opened.vocabulary.valid.T.copy()))
        self.requires_grad_(False).eval()

    def forward(self, images: Tensor, sizes: Tensor) -> dict[str, Tensor]:
        """Detects pairs.

        Args:
            images: (B, 3, H, W) float32 RGB from 0 to 1; smaller images lie top left, whatever
                is beside and below them.
            sizes: (B, 2) int64 height and width of each image.

        Returns:
            The model's `pred_*`; and for the K best interactions of every image, scores falling:
            `scores` (B, K) float32, -1 on rows beyond the last one; `verbs` and `labels` (B, K)
            int64 indices of verb and object, -1 for a verb without object; `human_boxes`,
            `object_boxes` (B, K, 4) xyxy in [0, 1] of the image.
        """
        height, width = images.shape[-2:]
        torch._check(height % self.side_multiple == 0)
        torch._check(width % self.side_multiple == 0)
        padding = padding_cells(sizes, 1, (height, width))
        pixels = (images - self.mean) / self.std * ~padding[:, None]
        outputs = self.model((pixels, padding), alone=True)
        predicted = {name: outputs[name] for name in outputs if name.startswith("pred_")}
        return {**predicted, **self.decode(predicted)}

    def decode(self, outputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """The best interactions of the model's `pred_*`, see `forward`."""
        scores, entries, labels = best_entries(outputs, self.valid, self.alone, NUM_DETECTIONS)
        num_verbs = self.valid.shape[1]
        choices = entries // num_verbs
        queries = choices // 2 if self.alone else choices
        labels = labels.gather(1, queries)
        if self.alone:
            labels = torch.where(choices - 2 * queries == 1, -1, labels)
        corner = queries[..., None].expand(-1, -1, 4)

        def boxes(name: str) -> Tensor:
            return box_convert(outputs[name], "cxcywh", "xyxy").clamp(0, 1).gather(1, corner)

        decoded = (
            scores,
            entries - choices * num_verbs,
            labels,
            boxes("pred_human_boxes"),
            boxes("pred_object_boxes"),
        )
        return dict(zip(DECODED, decoded, strict=True))


class PlainAttention(nn.Module):
    """`nn.MultiheadAttention` for (B, length, d) without its detour over (length, B, d), which
    would tie a graph to batches of more than one image."""

    def __init__(self, attention: nn.MultiheadAttention) -> None:
        super().__init__()
        weight, bias = attention.in_proj_weight, attention.in_proj_bias
        assert weight is not None and bias is not None
        self.num_heads, self.out = attention.num_heads, attention.out_proj
        self.weights = nn.ParameterList(part.detach().clone() for part in weight.chunk(3))
        self.biases = nn.ParameterList(part.detach().clone() for part in bias.chunk(3))

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = False,
    ) -> tuple[Tensor, None]:
        """As `nn.MultiheadAttention` in eval mode; never gives weights."""
        queries, keys, values = (
            F.linear(tokens, weight, bias).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for tokens, weight, bias in zip(
                (query, key, value), self.weights, self.biases, strict=True
            )
        )
        mask = None if key_padding_mask is None else ~key_padding_mask[:, None, None]
        joined = F.scaled_dot_product_attention(queries, keys, values, mask)
        return self.out(joined.transpose(1, 2).flatten(2)), None


class PlainMaxPool(nn.Module):
    """`nn.MaxPool2d` as one of stride 1, of which every n-th cell is taken: with odd sides torch
    before 2.8 cannot trace a stride for maps of any size."""

    def __init__(self, pool: nn.MaxPool2d) -> None:
        super().__init__()
        assert not pool.ceil_mode and pool.dilation == 1, "the stem's pooling, no other"
        self.kernel, self.stride, self.margin = pool.kernel_size, pool.stride, pool.padding

    def forward(self, features: Tensor) -> Tensor:
        """(B, C, h, w) to (B, C, h / stride, w / stride)."""
        every = F.max_pool2d(features, self.kernel, 1, self.margin)
        return every[:, :, :: self.stride, :: self.stride]


def _with_plain_modules(model: nn.Module) -> nn.Module:
    copy = deepcopy(model).cpu()
    plain = {nn.MultiheadAttention: PlainAttention, nn.MaxPool2d: PlainMaxPool}
    for name, module in list(copy.named_modules()):
        if type(module) in plain:
            parent, _, child = name.rpartition(".")
            setattr(copy.get_submodule(parent), child, plain[type(module)](module))
    return copy
