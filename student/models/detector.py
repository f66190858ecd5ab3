"""The HOI detector: backbone, encoder, human-object decoder, interaction decoder and heads.

This is the student network of EoID (section 3.1), whose architecture is CDN's: the human-object
decoder localises pairs, and the interaction decoder, whose queries are the pairs' features,
classifies their verbs.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import gcd
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import MLP

from pipeline.utils.errors import InputError
from student.config import ModelConfig
from student.models.backbone import build_backbone, map_stride, proposal_map
from student.models.padding import feature_padding_mask, mask_padding, pad_images, resize_mask
from student.models.proposal_queries import ProposalQueries
from student.models.queries import LearnedQueries, QueryInputs
from student.models.text_head import TextHead, TextObjectHead, TextVerbHead
from student.models.transformer import Decoder, Encoder, SinePositionEncoding

Outputs = dict[str, Any]
# (B, 3, H, W) pixels, and the (B, H, W) bool mask that is True on padding; None: no padding.
PaddedBatch = tuple[Tensor, Tensor | None]
ImagesOrBatch = Sequence[Tensor] | PaddedBatch

# Start of the names of the heads' parameters: all that predict or describe classes and boxes.
HEADS = (
    *("human_box_head.", "object_box_head.", "object_head.", "verb_head."),
    *("interactive_head.", "matching_head.", "query_source.head.", "query_source.label."),
)


class HOIDetector(nn.Module):
    """The student network, with random weights."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        d = config.hidden_dim
        several = config.queries == "proposals" or config.feature_levels > 1
        self.backbone = build_backbone(config.backbone, multiscale=several)
        channels = cast(dict[str, int], self.backbone.num_channels)
        self.input_projection = nn.Conv2d(list(channels.values())[-1], d, kernel_size=1)
        self.position_encoding = SinePositionEncoding(d)
        self.encoder = Encoder(config)
        from_proposals = config.queries == "proposals"
        self.query_source: nn.Module = (
            ProposalQueries(config, channels[proposal_map(channels)])
            if from_proposals
            else LearnedQueries(config.num_queries, d)
        )
        self.human_object_decoder = Decoder(config, config.num_human_object_layers)
        self.interaction_decoder = Decoder(config, config.num_interaction_layers)
        self.human_box_head = _box_head(d)
        self.object_box_head = _box_head(d)
        self.object_head = (
            TextObjectHead(config)
            if config.object_head == "text"
            else nn.Linear(d, config.num_objects + 1)
        )
        self.verb_head = (
            TextVerbHead(config) if config.verb_head == "text" else nn.Linear(d, config.num_verbs)
        )
        self.interactive_head = nn.Linear(d, 2)
        self.matching_head = nn.Linear(d, 2) if config.matching_head else None
        # After all others, so that a seed gives a detector with one level the same weights.
        self.finer_projections = nn.ModuleList(
            nn.Conv2d(channels[name], d, kernel_size=1)
            for name in list(channels)[-config.feature_levels : -1]
        )
        if len(channels) < config.feature_levels:
            raise InputError(
                f"feature_levels: expected at most {len(channels)}, the number of feature maps of"
                f" {config.backbone}, found {config.feature_levels}"
            )
        if from_proposals:
            # Before training the predicted boxes are the reference boxes.
            for head in (self.human_box_head, self.object_box_head):
                for parameter in head[-2].parameters():
                    nn.init.zeros_(parameter)

    def forward(self, images: ImagesOrBatch, padding_invariant: bool = False) -> Outputs:
        """Predicts Q human-object pairs for every image.

        A backbone that needs it (`separate_images`) processes the images of a padded batch one by
        one in any case.

        Args:
            images: normalised (3, h, w) tensors, or a `PaddedBatch`.
            padding_invariant: give every image the outputs that it has alone. Otherwise, as in the
                published model, activations of the backbone on padding leak into the image, and
                outputs depend on the amount of padding.

        Returns:
            - `pred_object_logits` (B, Q, O + 1), the last class is "no pair";
            - `pred_verb_logits` (B, Q, V);
            - `pred_human_boxes` and `pred_object_boxes` (B, Q, 4) float32, cxcywh in [0, 1] of the
              unpadded image;
            - `pred_interactive_logits` (B, Q, 2), index 1 is interactive;
            - `pred_matching_logits` (B, Q, 2), only with a matching head;
            - `pred_verb_embeddings` and `pred_object_embeddings` (B, Q, D), normalised, in the
              space of the text embeddings, only with a text head of verbs or of objects;
            - `aux_outputs`, a list of the same dicts for the layers before the last;
            - `proposals`, the `ProposalOutputs`, only with queries from proposals.
        """
        # A batch and two images that were given as a tuple differ in the dimensions.
        padded = isinstance(images, tuple) and images[0].dim() == 4
        batch = cast(PaddedBatch, images) if padded else self.pad(cast(Sequence[Tensor], images))
        pixels, padding = batch
        sizes = map_sizes = None
        if padding_invariant and padding is not None:
            maps, sizes, padding, map_padding = self._padding_invariant_maps(pixels, padding)
            map_sizes = sizes
        else:
            if padding is not None and getattr(self.backbone, "separate_images", False):
                sizes = self._padded_sizes(padding)
            maps = self.backbone(pixels, sizes)
            coarsest = list(maps.values())[-1]
            map_padding = resize_mask(padding, coarsest.shape[-2:])
        features = list(maps.values())[-1]
        positions = _flatten_map(self.position_encoding(features, map_padding))
        tokens = _flatten_map(self._project(maps, sizes))
        token_padding = None if map_padding is None else map_padding.flatten(1)

        memory = self.encoder(tokens, positions, token_padding)
        queries: QueryInputs = self.query_source(maps, padding, map_sizes)
        pair_features = self.human_object_decoder(
            queries.target, queries.positions, memory, positions, token_padding
        )
        verb_queries = pair_features[-1]
        if self.config.detach_verb_queries:
            verb_queries = verb_queries.detach()
        verb_target = queries.interaction_target
        if verb_target is None:
            verb_target = torch.zeros_like(verb_queries)
        verb_features = self.interaction_decoder(
            verb_target, verb_queries, memory, positions, token_padding
        )

        # The last layers of both decoders are paired one to one.
        depth = min(len(pair_features), len(verb_features))
        layers = self._apply_heads(pair_features[-depth:], verb_features[-depth:], queries)
        by_layer = [{name: value[i] for name, value in layers.items()} for i in range(depth)]
        return {**by_layer[-1], **queries.outputs, "aux_outputs": by_layer[:-1]}

    @property
    def text_heads(self) -> list[TextHead]:
        """The heads that compare with text embeddings."""
        return [h for h in (self.verb_head, self.object_head) if isinstance(h, TextHead)]

    def _padding_invariant_maps(
        self, pixels: Tensor, padding: Tensor
    ) -> tuple[dict[str, Tensor], Tensor, Tensor | None, Tensor | None]:
        """The backbone's maps, each image's part as if the image were processed alone.

        Returns:
            - the feature maps by name;
            - the sizes that the images have alone, see `_padded_sizes`;
            - the padding mask of the queries, as large as their map times its stride;
            - the padding mask of the coarsest map.
        """
        multiple = cast(int, self.backbone.size_divisible)
        padded_sizes = self._padded_sizes(padding)
        maps = self.backbone(pixels, padded_sizes)
        name, features = list(maps.items())[-1]
        map_padding = feature_padding_mask(padded_sizes, map_stride(name), features.shape[-2:])
        # Alone, the cells of the map end at the image's border where the image was not padded.
        read = proposal_map(maps)
        stride = map_stride(read)
        ends = _round_up(_image_sizes(padding), stride // gcd(stride, multiple))
        size = [stride * side for side in maps[read].shape[-2:]]
        return maps, padded_sizes, feature_padding_mask(ends, 1, size), map_padding

    def _padded_sizes(self, padding: Tensor) -> Tensor:
        """(B, 2) heights and widths of the images, rounded up to multiples of `size_divisible`: an
        image alone is padded to them, so that this padding counts as image."""
        return _round_up(_image_sizes(padding), cast(int, self.backbone.size_divisible))

    def _project(self, maps: dict[str, Tensor], sizes: Tensor | None) -> Tensor:
        """(B, d, h, w), the sum of the projected feature maps at the resolution of the last one.

        Finer maps are averaged over its cells. `sizes` are heights and widths of the images where
        the maps are those of single images.
        """
        *finer, last = list(maps)[-self.config.feature_levels :]
        projected = self.input_projection(maps[last])
        for name, projection in zip(finer, self.finer_projections, strict=True):
            features, stride = projection(maps[name]), map_stride(name)
            factor = map_stride(last) // stride
            if factor > 1:
                features = mask_padding(features, stride, sizes)
                height, width = (
                    factor * new - old
                    for new, old in zip(projected.shape[-2:], features.shape[-2:], strict=True)
                )
                features = F.avg_pool2d(F.pad(features, (0, width, 0, height)), factor)
            projected = projected + features
        return projected

    def pad(self, images: Sequence[Tensor], pad_size: Sequence[int] = (0, 0)) -> PaddedBatch:
        """Pads normalised (3, h, w) images to a batch that the backbone accepts, at least of
        `pad_size`.
        """
        return pad_images(images, cast(int, self.backbone.size_divisible), pad_size)

    def _apply_heads(
        self, pair_features: Tensor, verb_features: Tensor, queries: QueryInputs
    ) -> dict[str, Tensor]:
        """Applies the heads to the (L, B, Q, d) outputs of both decoders, all layers at once.

        Returns:
            (L, B, Q, ...) by the names of `forward`.
        """
        embeddings: dict[str, Tensor] = {}
        if isinstance(self.object_head, TextObjectHead):
            object_logits, embeddings["pred_object_embeddings"] = self.object_head(pair_features)
        else:
            object_logits = self.object_head(pair_features)
        if isinstance(self.verb_head, TextVerbHead):
            verb_logits, embeddings["pred_verb_embeddings"] = self.verb_head(
                verb_features, object_logits
            )
        else:
            verb_logits = self.verb_head(verb_features)
        layers = {
            "pred_object_logits": object_logits,
            "pred_verb_logits": verb_logits,
            "pred_human_boxes": _decode_boxes(
                self.human_box_head(pair_features), queries.human_reference
            ),
            "pred_object_boxes": _decode_boxes(
                self.object_box_head(pair_features), queries.object_reference
            ),
            "pred_interactive_logits": self.interactive_head(verb_features),
        }
        if self.matching_head is not None:
            layers["pred_matching_logits"] = self.matching_head(pair_features)
        return {**layers, **embeddings}


def _image_sizes(padding: Tensor) -> Tensor:
    """(B, 2) heights and widths of the images in a (B, H, W) padding mask."""
    return torch.stack([(~padding).any(2).sum(1), (~padding).any(1).sum(1)], 1)


def _round_up(sizes: Tensor, multiple: int) -> Tensor:
    return (sizes + multiple - 1) // multiple * multiple


def _box_head(hidden_dim: int) -> MLP:
    return MLP(hidden_dim, [hidden_dim, hidden_dim, 4], inplace=None)


def _decode_boxes(raw: Tensor, reference: Tensor | None) -> Tensor:
    """Boxes (..., 4) cxcywh in [0, 1] from the box head's output, a difference of logits where
    there are reference boxes."""
    # float32: half precision does not resolve neighbouring pixels of a large image.
    raw = raw.float()
    if reference is not None:
        raw = raw + torch.logit(reference.float(), eps=1e-5)
    return raw.sigmoid()


def _flatten_map(features: Tensor) -> Tensor:
    """(B, d, h, w) to (B, h * w, d)."""
    return features.flatten(2).transpose(1, 2)
