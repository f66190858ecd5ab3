"""Names of parameters in the published EoID / CDN code and here."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from pipeline.errors import InputError

# Starts of keys: published name, our name.
PREFIXES = (
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
# Parts further on in transformer keys.
ATTENTIONS = ((".self_attn.", ".self_attention."), (".multihead_attn.", ".cross_attention."))


def from_published(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Renames published keys to ours.

    Returns:
        The renamed entries, and the keys that have no counterpart here.
    """
    known = {name: _rename(name, PREFIXES, ATTENTIONS) for name in state}
    renamed = {ours: state[name] for name, ours in known.items() if ours is not None}
    return renamed, [name for name, ours in known.items() if ours is None]


def to_published(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Renames our keys (of a model with learned queries) to the published ones."""
    back = tuple((ours, theirs) for theirs, ours in PREFIXES)
    parts = tuple((ours, theirs) for theirs, ours in ATTENTIONS)
    renamed = {name: _rename(name, back, parts) for name in state}
    unknown = [name for name, theirs in renamed.items() if theirs is None]
    if unknown:
        raise InputError(f"the published form has no place for {shown(unknown)}")
    return {str(renamed[name]): tensor for name, tensor in state.items()}


def _rename(
    name: str, prefixes: tuple[tuple[str, str], ...], parts: tuple[tuple[str, str], ...]
) -> str | None:
    for old, new in prefixes:
        if name.startswith(old):
            renamed = new + name[len(old) :]
            for old_part, new_part in parts:
                renamed = renamed.replace(old_part, new_part)
            return renamed
    return None


def shown(names: list[str]) -> str:
    """Some names, and how many more there are, for an error's one line."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
