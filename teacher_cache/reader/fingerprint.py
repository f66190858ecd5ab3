"""The fingerprint: everything that determines a cache's outputs, and its SHA-256."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pipeline.utils.files import sha256_of_json
from teacher_cache.reader.format import FORMAT_VERSION

# Parts of the fingerprint that determine text embeddings.
TEXT_MODEL_PARTS = ("clip.model", "clip.weights", "clip.quick_gelu")


def fingerprint_parts(
    *,
    vocabulary: str,
    annotations: str,
    part: str,
    detector: dict[str, Any] | None,
    proposals: str | None,
    pairing: dict[str, Any],
    prompts: Sequence[Sequence[str]],
    clip: dict[str, Any],
    level: str,
    region: str,
) -> dict[str, Any]:
    """The parts of the fingerprint by name. Batch sizes are left out: they change no output.

    Args:
        vocabulary, annotations: digests of the vocabulary and the annotation file.
        part: "train" or "test".
        detector, clip: what identifies the models (`fingerprint_parts` of each).
        proposals: SHA-256 of the detections file that replaces the detector.
        pairing: thresholds and limits of pairing; unused with annotated boxes.
        prompts: the sentences, per interaction and template.
        level, region: names of the level and of the region mode.
    """
    if detector is not None:
        boxes = {"candidates": "detector", **detector, **pairing}
        # The last one in existing caches, whose `build.json` has to keep its bytes.
        if "detector.classes" in boxes:
            boxes["detector.classes"] = boxes.pop("detector.classes")
    elif proposals is not None:
        boxes = {"candidates": "proposals", "proposals": proposals, **pairing}
    else:
        boxes = {"candidates": "annotated"}
    return {
        "format_version": FORMAT_VERSION,
        "vocabulary": vocabulary,
        "annotations": annotations,
        "part": part,
        **boxes,
        "prompts": sha256_of_json(prompts),
        **clip,
        "level": level,
        "region": region,
    }


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
