"""The fingerprint: SHA-256 of the parts that determine a cache's outputs.

`fingerprint_parts` in `teacher_cache/extraction/inputs.py` collects the parts.
"""

from __future__ import annotations

from typing import Any

from pipeline.utils.files import sha256_of_json
from teacher_cache.reader.format import TEACHER_PART

# Parts of the fingerprint that determine text embeddings of open_clip's models.
TEXT_MODEL_PARTS = ("clip.model", "clip.weights", "clip.quick_gelu")


def compute_fingerprint(parts: dict[str, Any]) -> str:
    """SHA-256 of all parts as a hex string; it does not depend on their order."""
    return sha256_of_json(parts)


def teacher_parts(parts: dict[str, Any]) -> dict[str, Any]:
    """The parts of a teacher that is none of open_clip's; empty for one of open_clip."""
    return {
        name: value
        for name, value in parts.items()
        if name == TEACHER_PART or name.startswith(f"{TEACHER_PART}.")
    }


def text_model_digest(parts: dict[str, Any]) -> str | None:
    """Identifies the model behind a cache's text embeddings, from the parts of its fingerprint.

    Text embeddings may be compared where their digests are equal. None in early caches, whose parts
    do not name the weights, and in caches without text embeddings.
    """
    if "clip.weights" in parts:
        return sha256_of_json({name: parts.get(name) for name in TEXT_MODEL_PARTS})
    teacher = teacher_parts(parts)
    return sha256_of_json(teacher) if teacher and "prompts" in parts else None
