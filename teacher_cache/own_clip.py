"""The text side of the CLIP that a cache was made with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from pipeline.errors import InputError
from teacher_cache.format import differing_parts
from teacher_cache.reader import TeacherCache
from teacher_cache.settings import held_settings

Encoder = Callable[[Sequence[str]], np.ndarray]


def clip_names(
    cache: TeacherCache, model: str | None, weights: str | None
) -> tuple[str | None, str | None]:
    """Model and weights as told, or as they were named when the cache was made."""
    if model is not None:
        return model, weights
    settings: dict[str, Any] = held_settings(cache.path, cache.manifest)
    return settings.get("clip_model"), settings.get("clip_weights")


def text_encoder(
    cache: TeacherCache, model: str | None, weights: str | None, device: str
) -> Encoder:
    """Opens the cache's own CLIP and gives what turns N sentences into (N, D) embeddings.

    Args:
        model, weights: where it is, see `ClipConfig`.

    Raises:
        InputError: nobody says which it was, it is not there, or it is another one.
    """
    from pipeline.devices import configure_device, resolve_device
    from teacher_cache.clip_teacher import ClipConfig, ClipTeacher

    if model is None:
        raise InputError("--clip-model: expected the cache's CLIP for new sentences, found none")
    where = configure_device(resolve_device(device), "float32")
    clip = ClipTeacher(ClipConfig(model, weights), where)
    held = {"clip.weights": cache.manifest["parts"].get("clip.weights")}
    changes = differing_parts(held, {"clip.weights": clip.weights_digest})
    if changes:
        raise InputError(f"--clip-model: expected the cache's own CLIP, found another ({changes})")
    return clip.encode_texts
