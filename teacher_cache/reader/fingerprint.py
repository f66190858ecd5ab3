"""The fingerprint: SHA-256 of the parts that determine a cache's outputs.

`fingerprint_parts` in `teacher_cache/extraction/inputs.py` collects the parts.
"""

from __future__ import annotations

from typing import Any

from pipeline.utils.files import sha256_of_json

# Parts of the fingerprint that determine text embeddings.
TEXT_MODEL_PARTS = ("clip.model", "clip.weights", "clip.quick_gelu")


def compute_fingerprint(parts: dict[str, Any]) -> str:
    """SHA-256 of all parts as a hex string; it does not depend on their order."""
    return sha256_of_json(parts)


def text_model_digest(parts: dict[str, Any]) -> str | None:
    """Identifies the CLIP behind a cache's text embeddings, from the parts of its fingerprint.

    Text embeddings may be compared where their digests are equal. None in early caches, whose parts
    do not name the weights.
    """
    if "clip.weights" not in parts:
        return None
    return sha256_of_json({name: parts.get(name) for name in TEXT_MODEL_PARTS})
