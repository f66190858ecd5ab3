"""A plain second implementation of the published model, computed from its state dict."""

import argparse
import math
from dataclasses import replace

import pytest
import torch
import torchvision
from torch.nn import functional as F
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.ops import FrozenBatchNorm2d

from student.weights.published import model_from_published, to_published


class PlainModel:
    """The published model's operations on the tensors of a published state dict."""

    def __init__(self, state, heads, pre_norm):
        self.state, self.heads, self.pre_norm = state, heads, pre_norm

    def linear(self, name, x):
        return F.linear(x, self.state[f"{name}.weight"], self.state[f"{name}.bias"])

    def norm(self, name, x):
        weight, bias = self.state[f"{name}.weight"], self.state[f"{name}.bias"]
        std = (x.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()
        return (x - x.mean(-1, keepdim=True)) / std * weight + bias

    def attend(self, name, queries, keys, values, padding):
        parts = []
        rows = (
            self.state[f"{name}.in_proj_weight"].chunk(3),
            self.state[f"{name}.in_proj_bias"].chunk(3),
        )
        for x, weight, bias in zip((queries, keys, values), *rows, strict=True):
            parts.append(F.linear(x, weight, bias).unflatten(-1, (self.heads, -1)).transpose(1, 2))
        q, k, v = parts
        scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
        if padding is not None:
            scores = scores.masked_fill(padding[:, None, None], -torch.inf)
        out = (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)
        return self.linear(f"{name}.out_proj", out)

    def add(self, name, x, step):
        return x + step(self.norm(name, x)) if self.pre_norm else self.norm(name, x + step(x))

    def feed_forward(self, name, x):
        return self.linear(f"{name}.linear2", self.linear(f"{name}.linear1", x).relu())

    def encode(self, x, positions, padding, count):
        for layer in range(count):
            at = f"transformer.encoder.layers.{layer}"
            x = self.add(
                f"{at}.norm1",
                x,
                lambda y, at=at: self.attend(
                    f"{at}.self_attn", y + positions, y + positions, y, padding
                ),
            )
            x = self.add(f"{at}.norm2", x, lambda y, at=at: self.feed_forward(at, y))
        return self.norm("transformer.encoder.norm", x) if self.pre_norm else x

    def decode(self, part, queries, memory, positions, padding, count):
        x, outputs = torch.zeros_like(queries), []
        for layer in range(count):
            at = f"transformer.{part}.layers.{layer}"
            x = self.add(
                f"{at}.norm1",
                x,
                lambda y, at=at: self.attend(f"{at}.self_attn", y + queries, y + queries, y, None),
            )
            x = self.add(
                f"{at}.norm2",
                x,
                lambda y, at=at: self.attend(
                    f"{at}.multihead_attn", y + queries, memory + positions, memory, padding
                ),
            )
            x = self.add(f"{at}.norm3", x, lambda y, at=at: self.feed_forward(at, y))
            outputs.append(self.norm(f"transformer.{part}.norm", x))
        return outputs

    def boxes(self, name, x):
        for layer in (0, 1):
            x = self.linear(f"{name}.layers.{layer}", x).relu()
        return self.linear(f"{name}.layers.2", x).sigmoid()


def sine_positions(valid, d):
    """The sine position encoding of a (B, h, w) mask, cell by cell: (B, h * w, d)."""
    images, height, width = valid.shape
    found = torch.zeros(images, height, width, d)
    for image in range(images):
        for row in range(height):
            for column in range(width):
                y = valid[image, : row + 1, column].sum() / (valid[image, :, column].sum() + 1e-6)
                x = valid[image, row, : column + 1].sum() / (valid[image, row].sum() + 1e-6)
                for axis, position in enumerate((y, x)):
                    for wave in range(d // 2):
                        angle = 2 * math.pi * position / 10000 ** (2 * (wave // 2) / (d // 2))
                        value = angle.cos() if wave % 2 else angle.sin()
                        found[image, row, column, axis * d // 2 + wave] = value
    return found.flatten(1, 2)


def features_and_mask(state, name, images):
    height, width = (max(image.shape[axis] for image in images) for axis in (1, 2))
    batch = torch.zeros(len(images), 3, height, width)
    valid = torch.zeros(len(images), height, width)
    for row, image in enumerate(images):
        batch[row, :, : image.shape[1], : image.shape[2]] = image
        valid[row, : image.shape[1], : image.shape[2]] = 1
    resnet = torchvision.models.get_model(name, norm_layer=FrozenBatchNorm2d)
    body = "backbone.0.body."
    own = {key.removeprefix(body): x for key, x in state.items() if key.startswith(body)}
    resnet.load_state_dict(own, strict=False)
    maps = IntermediateLayerGetter(resnet, {"layer4": "last"})(batch)["last"]
    valid = F.interpolate(valid[:, None], size=maps.shape[-2:])[:, 0].bool()
    return maps, valid


@pytest.mark.parametrize(
    ("pre_norm", "heads", "layers", "matching"),
    [(False, 4, (0, 1, 3), True), (True, 2, (2, 3, 1), False), (False, 8, (1, 2, 2), True)],
)
def test_outputs_equal_those_of_the_plain_implementation(
    build, small_config, pre_norm, heads, layers, matching
):
    encoder, pairs, actions = layers
    config = replace(
        small_config,
        num_heads=heads,
        pre_norm=pre_norm,
        matching_head=matching,
        num_encoder_layers=encoder,
        num_human_object_layers=pairs,
        num_interaction_layers=actions,
    )
    state = to_published(build(config).state_dict())
    state = {
        name: x + 0.1 * torch.randn_like(x).abs() if x.dim() == 1 else x
        for name, x in state.items()
    }
    content = {"model": state, "args": argparse.Namespace(nheads=heads)}
    images = [torch.randn(3, 100, 131), torch.randn(3, 77, 90), torch.randn(3, 40, 64)]
    with torch.no_grad():
        found = model_from_published(content, "a.pth")(images)

        plain = PlainModel(state, heads, pre_norm)
        maps, valid = features_and_mask(state, config.backbone, images)
        tokens = F.conv2d(maps, state["input_proj.weight"], state["input_proj.bias"])
        tokens, padding = tokens.flatten(2).transpose(1, 2), ~valid.flatten(1)
        positions = sine_positions(valid.float(), config.hidden_dim)
        memory = plain.encode(tokens, positions, padding, encoder)
        queries = state["query_embed.weight"].expand(len(images), -1, -1)
        pair = plain.decode("decoder", queries, memory, positions, padding, pairs)
        action = plain.decode("interaction_decoder", pair[-1], memory, positions, padding, actions)
        depth = min(pairs, actions)
        layers_found = [*found["aux_outputs"], found]
        assert len(layers_found) == depth
        for ours, x, y in zip(layers_found, pair[-depth:], action[-depth:], strict=True):
            expected = {
                "pred_object_logits": plain.linear("obj_class_embed", x),
                "pred_verb_logits": plain.linear("verb_class_embed", y),
                "pred_interactive_logits": plain.linear("is_embed", y),
                "pred_human_boxes": plain.boxes("sub_bbox_embed", x),
                "pred_object_boxes": plain.boxes("obj_bbox_embed", x),
            }
            if matching:
                expected["pred_matching_logits"] = plain.linear("matching_embed", x)
            assert {name for name in ours if name.startswith("pred_")} == set(expected)
            for name, value in expected.items():
                torch.testing.assert_close(ours[name], value, rtol=1e-3, atol=1e-4)
