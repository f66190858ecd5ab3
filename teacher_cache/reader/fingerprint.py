"""What decides the teacher's outputs, and its digest."""

from __future__ import annotations

from typing import Any

from pipeline.utils.files import sha256_of_json

# Parts of the fingerprint that decide text embeddings.
TEXT_MODEL_PARTS = ("clip.model", "clip.weights", "clip.quick_gelu")


def compute_fingerprint(parts: dict[str, Any]) -> str:
    """One hex digest over everything that decides the outputs."""
    return sha256_of_json(parts)


def text_model_digest(parts: dict[str, Any]) -> str | None:
    """One digest of the CLIP whose text embeddings a cache holds: embeddings of equal digests may
    be compared. None where the parts do not tell.

    Args:
        parts: of the fingerprint.
    """
    if "clip.weights" not in parts:
        return None
    return sha256_of_json({name: parts.get(name) for name in TEXT_MODEL_PARTS})
