"""The detector: images in, human-object pairs with their verbs out (EoID 3.1, CDN 3)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import gcd
from typing import Any, cast

import torch
from torch import Tensor, nn
from torchvision.ops import MLP

from student.config import ModelConfig
from student.models.backbone import build_backbone
from student.models.padding import feature_padding_mask, pad_images, resize_mask
from student.models.proposal_queries import ProposalQueries
from student.models.queries import LearnedQueries, QueryInputs
from student.models.text_head import TextVerbHead
from student.models.transformer import Decoder, Encoder, SinePositionEncoding

Outputs = dict[str, Any]
PaddedBatch = tuple[Tensor, Tensor | None]
ImagesOrBatch = Sequence[Tensor] | PaddedBatch

# Of the map that queries from proposals are made of.
QUERY_STRIDE = 8
# Builders of query sources, called with the configuration and the backbone's `num_channels`.
QUERY_BUILDERS: dict[str, Callable[[ModelConfig, dict[str, int]], nn.Module]] = {
    "learned": lambda config, _: LearnedQueries(config.num_queries, config.hidden_dim),
    "proposals": lambda config, channels: ProposalQueries(config, channels["stride8"]),
}


class HOIDetector(nn.Module):
    """Backbone, encoder, human-object decoder, interaction decoder and heads."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        d = config.hidden_dim
        self.backbone = build_backbone(config.backbone, multiscale=config.queries == "proposals")
        channels = cast(dict[str, int], self.backbone.num_channels)
        self.input_projection = nn.Conv2d(list(channels.values())[-1], d, kernel_size=1)
        self.position_encoding = SinePositionEncoding(d)
        self.encoder = Encoder(config)
        self.query_source = QUERY_BUILDERS[config.queries](config, channels)
        self.human_object_decoder = Decoder(config, config.num_human_object_layers)
        self.interaction_decoder = Decoder(config, config.num_interaction_layers)
        self.human_box_head = _box_head(d)
        self.object_box_head = _box_head(d)
        self.object_head = nn.Linear(d, config.num_objects + 1)
        reads = config.verb_head == "text"
        self.verb_head = TextVerbHead(config) if reads else nn.Linear(d, config.num_verbs)
        self.interactive_head = nn.Linear(d, 2)
        self.matching_head = nn.Linear(d, 2) if config.matching_head else None
        if config.queries == "proposals":
            # Predictions start at the reference boxes instead of a random distance from them.
            for head in (self.human_box_head, self.object_box_head):
                for parameter in head[-2].parameters():
                    nn.init.zeros_(parameter)

    def forward(self, images: ImagesOrBatch, padding_invariant: bool = False) -> Outputs:
        """Detects pairs.

        Args:
            images: normalised (3, h, w) tensors; or a padded batch, the pair of (B, 3, H, W)
                pixels and the (B, H, W) bool mask that is True on padding (None: no padding).
            padding_invariant: answer every image as it would be answered alone. Otherwise, as in
                the published model, the backbone's convolutions see what they themselves made of
                padding, and answers depend on how much of it there is.

        Returns:
            `pred_object_logits` (B, Q, O + 1), the last class being "no pair";
            `pred_verb_logits` (B, Q, V); `pred_human_boxes`, `pred_object_boxes` (B, Q, 4) cxcywh
            in [0, 1] of the unpadded image; `pred_interactive_logits` (B, Q, 2), index 1 is
            interactive; `pred_matching_logits` (B, Q, 2) with a matching head;
            `pred_verb_embeddings` (B, Q, D) with a verb head that reads, normalised, in the space
            of its texts; `aux_outputs`, a list of the same for the layers before the last; and
            what the query source adds.
        """
        padded = isinstance(images, tuple) and images[0].dim() == 4
        batch = cast(PaddedBatch, images) if padded else self.pad(cast(Sequence[Tensor], images))
        pixels, padding = batch
        if padding_invariant and padding is not None:
            maps, padding, small_padding = self._padding_invariant_maps(pixels, padding)
        else:
            maps = self.backbone(pixels)
            coarsest = list(maps.values())[-1]
            small_padding = resize_mask(padding, coarsest.shape[-2:])
        features = list(maps.values())[-1]
        positions = _flatten_map(self.position_encoding(features, small_padding))
        tokens = _flatten_map(self.input_projection(features))
        token_padding = None if small_padding is None else small_padding.flatten(1)

        memory = self.encoder(tokens, positions, token_padding)
        start: QueryInputs = self.query_source(maps, padding, padding_invariant)
        pairs = self.human_object_decoder(
            start.target, start.positions, memory, positions, token_padding
        )
        queries = pairs[-1].detach() if self.config.detach_verb_queries else pairs[-1]
        content = start.interaction_target
        content = torch.zeros_like(queries) if content is None else content
        actions = self.interaction_decoder(content, queries, memory, positions, token_padding)

        depth = min(len(pairs), len(actions))
        layers = self._apply_heads(pairs[-depth:], actions[-depth:], start)
        by_layer = [{name: value[i] for name, value in layers.items()} for i in range(depth)]
        return {**by_layer[-1], **start.outputs, "aux_outputs": by_layer[:-1]}

    def _padding_invariant_maps(
        self, pixels: Tensor, padding: Tensor
    ) -> tuple[dict[str, Tensor], Tensor | None, Tensor | None]:
        """The backbone's maps of images that do not see their padding.

        Returns:
            The maps; padding for the query source, at `QUERY_STRIDE` times the size of its map; and
            padding of the coarsest map.
        """
        multiple = cast(int, self.backbone.size_divisible)
        sizes = torch.stack([(~padding).any(2).sum(1), (~padding).any(1).sum(1)], 1)
        # An image alone is padded to whole multiples, and sees that.
        frames = _round_up(sizes, multiple)
        maps = self.backbone(pixels, frames)
        name, features = list(maps.items())[-1]
        small = feature_padding_mask(frames, int(name.removeprefix("stride")), features.shape[-2:])
        # Alone the map ends with the image unless that was padded.
        ends = _round_up(sizes, QUERY_STRIDE // gcd(QUERY_STRIDE, multiple))
        size = [QUERY_STRIDE * side for side in maps[f"stride{QUERY_STRIDE}"].shape[-2:]]
        return maps, feature_padding_mask(ends, 1, size), small

    def pad(self, images: Sequence[Tensor], pad_size: Sequence[int] = (0, 0)) -> PaddedBatch:
        """Normalised (3, h, w) tensors as a padded batch; see `pad_images`."""
        return pad_images(images, cast(int, self.backbone.size_divisible), pad_size)

    def _apply_heads(self, pairs: Tensor, actions: Tensor, start: QueryInputs) -> dict[str, Tensor]:
        """Heads on all layers at once: (L, B, Q, d) twice to (L, B, Q, ...) by name."""
        objects, embeddings = self.object_head(pairs), None
        if isinstance(self.verb_head, TextVerbHead):
            verbs, embeddings = self.verb_head(actions, objects)
        else:
            verbs = self.verb_head(actions)
        layers = {
            "pred_object_logits": objects,
            "pred_verb_logits": verbs,
            "pred_human_boxes": _decode_boxes(self.human_box_head(pairs), start.human_reference),
            "pred_object_boxes": _decode_boxes(self.object_box_head(pairs), start.object_reference),
            "pred_interactive_logits": self.interactive_head(actions),
        }
        if self.matching_head is not None:
            layers["pred_matching_logits"] = self.matching_head(pairs)
        if embeddings is not None:
            layers["pred_verb_embeddings"] = embeddings
        return layers


def _round_up(sizes: Tensor, multiple: int) -> Tensor:
    """Sizes rounded up to multiples."""
    return (sizes + multiple - 1) // multiple * multiple


def _box_head(hidden_dim: int) -> MLP:
    return MLP(hidden_dim, [hidden_dim, hidden_dim, 4], inplace=None)


def _decode_boxes(raw: Tensor, reference: Tensor | None) -> Tensor:
    # float32: half precision cannot tell neighbouring pixels of a large image apart.
    raw = raw.float()
    if reference is not None:
        raw = raw + torch.logit(reference.float(), eps=1e-5)
    return raw.sigmoid()


def _flatten_map(features: Tensor) -> Tensor:
    """(B, d, h, w) to (B, h * w, d)."""
    return features.flatten(2).transpose(1, 2)
