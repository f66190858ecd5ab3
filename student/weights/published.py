"""Conversion of published EoID and CDN checkpoints, `{"model": state_dict}`, to and from ours.

The model's sizes are read from the tensors' shapes. The number of attention heads, which no shape
shows, is taken from the file's `args`, and is 8 where these do not name it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from pipeline.utils.errors import InputError, bad_field
from pipeline.utils.weights import (
    check_finite,
    check_state_dict,
    select_state_dict,
    strip_prefixes,
    strip_wrapper_prefixes,
)
from student.config import ModelConfig
from student.models.backbone import RESNETS, count_layers, find_resnet_blocks, identify_resnet
from student.models.detector import HOIDetector

DEFAULT_NUM_HEADS = 8
# Prefixes of state-dict keys: published name, name in `HOIDetector`.
KEY_PREFIXES = (
    ("backbone.0.body.", "backbone.body."),
    ("input_proj.", "input_projection."),
    ("query_embed.", "query_source.embedding."),
    ("transformer.encoder.", "encoder."),
    ("transformer.decoder.", "human_object_decoder."),
    ("transformer.interaction_decoder.", "interaction_decoder."),
    ("obj_class_embed.", "object_head."),
    ("verb_class_embed.", "verb_head."),
    ("sub_bbox_embed.layers.0.", "human_box_head.0."),
    ("sub_bbox_embed.layers.1.", "human_box_head.3."),
    ("sub_bbox_embed.layers.2.", "human_box_head.6."),
    ("obj_bbox_embed.layers.0.", "object_box_head.0."),
    ("obj_bbox_embed.layers.1.", "object_box_head.3."),
    ("obj_bbox_embed.layers.2.", "object_box_head.6."),
    ("is_embed.", "interactive_head."),
    ("matching_embed.", "matching_head."),
)
# Parts of transformer keys behind the prefix, in the same order.
ATTENTION_KEYS = ((".self_attn.", ".self_attention."), (".multihead_attn.", ".cross_attention."))


def config_from_shapes(
    state: Mapping[str, Tensor], num_heads: int = DEFAULT_NUM_HEADS, file: object = "checkpoint"
) -> ModelConfig:
    """The model settings of a published state dict.

    Raises:
        InputError: a tensor that shows a size is missing or has an unexpected shape.
    """

    def shape(name: str, dimensions: int) -> torch.Size:
        if name not in state:
            raise bad_field(file, "model", f"an entry {name}", "none")
        if state[name].dim() != dimensions:
            expected = f"a tensor of {dimensions} dimensions"
            raise bad_field(file, name, expected, list(state[name].shape))
        return state[name].shape

    num_queries, hidden_dim = shape("query_embed.weight", 2)
    try:
        return ModelConfig(
            num_objects=shape("obj_class_embed.weight", 2)[0] - 1,
            num_verbs=shape("verb_class_embed.weight", 2)[0],
            num_queries=num_queries,
            backbone=_resnet_name(state, file),
            hidden_dim=hidden_dim,
            num_heads=num_heads,
            feedforward_dim=shape("transformer.decoder.layers.0.linear1.weight", 2)[0],
            num_encoder_layers=count_layers(state, "transformer.encoder.layers."),
            num_human_object_layers=count_layers(state, "transformer.decoder.layers."),
            num_interaction_layers=count_layers(state, "transformer.interaction_decoder.layers."),
            # Only a pre-norm encoder ends with a layer norm.
            pre_norm="transformer.encoder.norm.weight" in state,
            matching_head="matching_embed.weight" in state,
        )
    except InputError as error:
        message = str(error)
        has_file = message.startswith(f"{file}:")
        raise InputError(message if has_file else f"{file}: {message}") from None


def model_from_published(content: Any, path: object, num_heads: int | None = None) -> HOIDetector:
    """The detector in a published checkpoint's content, in eval mode, on the CPU.

    CDN has no interactive score. The head's parameters are then zero, so that every query scores
    0.5; detections do not depend on it.

    Args:
        content: what `read_checkpoint` returned.
        path: the file, named in errors.
        num_heads: attention heads, for a file whose `args` do not name them.

    Raises:
        InputError: the content does not have the published form, its entries and the model's are
            not the same, or a value is not finite.
    """
    weights = select_state_dict(content)
    if not isinstance(weights, Mapping) or not any(
        strip_prefixes(str(name)) == "obj_class_embed.weight" for name in weights
    ):
        expected = 'a checkpoint of this project or a published one, {"model": weights}'
        raise bad_field(path, "content", expected, _describe(content))
    state, arguments = strip_wrapper_prefixes(check_state_dict(content, path)), content.get("args")
    if checkpoint_argument(arguments, "dilation"):
        raise bad_field(
            path, "args.dilation", "False, as dilated backbones are not supported", True
        )
    recorded = checkpoint_argument(arguments, "nheads")
    expected = "a whole number" if num_heads is None else f"{num_heads}, as given"
    if recorded is not None and (
        not isinstance(recorded, int) or recorded != (num_heads or recorded)
    ):
        raise bad_field(path, "args.nheads", expected, recorded)
    heads = recorded or num_heads or DEFAULT_NUM_HEADS
    model = HOIDetector(config_from_shapes(state, heads, path))
    needed = to_published(model.state_dict())
    if "is_embed.weight" not in state and "is_embed.bias" not in state:
        state |= {
            name: torch.zeros_like(value)
            for name, value in needed.items()
            if name.startswith("is_embed.")
        }
    if unknown := [name for name in state if name not in needed]:
        raise bad_field(path, "model", "only entries of the published model", join_names(unknown))
    if missing := [name for name in needed if name not in state]:
        raise InputError(f"{path}: model: expected all entries, missing {join_names(missing)}")
    for name, value in needed.items():
        if value.shape != state[name].shape:
            raise bad_field(path, name, f"shape {list(value.shape)}", list(state[name].shape))
    check_finite(state, path)
    model.load_state_dict({str(rename_published_key(name)): state[name] for name in state})
    return model.eval()


def checkpoint_argument(arguments: Any, name: str) -> Any:
    """A setting in a checkpoint's `args`, a mapping or a namespace; None where it is missing."""
    settings = arguments if isinstance(arguments, Mapping) else getattr(arguments, "__dict__", {})
    return settings.get(name)


def _resnet_name(state: Mapping[str, Tensor], file: object) -> str:
    body = "backbone.0.body."
    names = [name.removeprefix(body) for name in state if name.startswith(body)]
    found = identify_resnet(names)
    if found is None:
        kind, blocks = find_resnet_blocks(names)
        expected = f"one of {', '.join(RESNETS)}"
        raise bad_field(file, "backbone", expected, f"stages of {list(blocks)} {kind} blocks")
    return found


def _describe(content: Any) -> str:
    if isinstance(content, Mapping):
        return f"an object with {join_names([str(key) for key in content]) or 'nothing'}"
    return type(content).__name__


def rename_published_key(name: str) -> str | None:
    """The `HOIDetector` key of a published key; None where it has no counterpart."""
    return _rename_key(name, KEY_PREFIXES, ATTENTION_KEYS)


def to_published(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Renames keys of a `HOIDetector` with learned queries to the published ones.

    Raises:
        InputError: a key has no counterpart.
    """
    back = tuple((ours, theirs) for theirs, ours in KEY_PREFIXES)
    parts = tuple((ours, theirs) for theirs, ours in ATTENTION_KEYS)
    renamed = {name: _rename_key(name, back, parts) for name in state}
    unknown = [name for name, theirs in renamed.items() if theirs is None]
    if unknown:
        raise InputError(f"the published form has no entry for {join_names(unknown)}")
    return {str(renamed[name]): tensor for name, tensor in state.items()}


def _rename_key(
    name: str, prefixes: tuple[tuple[str, str], ...], parts: tuple[tuple[str, str], ...]
) -> str | None:
    for old, new in prefixes:
        if name.startswith(old):
            renamed = new + name[len(old) :]
            for old_part, new_part in parts:
                renamed = renamed.replace(old_part, new_part)
            return renamed
    return None


def join_names(names: list[str]) -> str:
    """The first three names and the number of the others, for an error message."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
