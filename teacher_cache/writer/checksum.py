"""JSON files that contain the SHA-256 of their own bytes, so that damage can be detected."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from pipeline.utils.files import encode_utf8, write_text

CHECKSUM_KEY = "sha256"
CHECKSUM_PLACEHOLDER = "0" * 64


def write_checksummed_json(path: Path, value: dict[str, Any], keep_existing: bool = False) -> None:
    """Writes `value` atomically as indented JSON, with the file's checksum as the last field.

    The checksum is computed over the file's bytes with 64 zeros in its own place. `keep_existing`
    leaves a file that exists already as it is.
    """
    text = (
        json.dumps({**value, CHECKSUM_KEY: CHECKSUM_PLACEHOLDER}, indent=2, ensure_ascii=False)
        + "\n"
    )
    before, _, after = text.rpartition(CHECKSUM_PLACEHOLDER)
    write_text(path, before + _digest(encode_utf8(text)) + after, keep_existing)


def without_checksum(value: dict[str, Any]) -> dict[str, Any]:
    """The fields of such a file except its checksum."""
    return {name: entry for name, entry in value.items() if name != CHECKSUM_KEY}


def has_valid_checksum(content: bytes) -> bool:
    """Whether the bytes of a file match the checksum in it."""
    key = f'"{CHECKSUM_KEY}": "'.encode()
    before, _, after = content.rpartition(key)
    checksum, rest = after[: len(CHECKSUM_PLACEHOLDER)], after[len(CHECKSUM_PLACEHOLDER) :]
    hashed = before + key + CHECKSUM_PLACEHOLDER.encode() + rest
    return bool(before) and _digest(hashed).encode() == checksum


def has_intact_checksum(path: Path, value: dict[str, Any]) -> bool:
    """Whether a manifest or plan, whose content is `value`, matches the checksum in it."""
    # Early manifests and plans contain neither a checksum of themselves nor a vocabulary.
    is_early = "vocabulary" not in value and CHECKSUM_KEY not in value
    return is_early or has_valid_checksum(path.read_bytes())


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
