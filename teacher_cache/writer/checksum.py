"""JSON files that carry the checksum of their own bytes."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from pipeline.utils.files import encode_utf8, write_text

CHECKSUM_KEY = "sha256"
CHECKSUM_PLACEHOLDER = "0" * 64


def write_checksummed_json(path: Path, value: dict[str, Any], keep_existing: bool = False) -> None:
    """Writes `value` as indented JSON with the file's checksum as last field, whole or not at all.

    The checksum is that of the file's bytes with zeros in the checksum's place.

    Args:
        path: the file.
        value: JSON without a field of the checksum's name.
        keep_existing: a file that is there already stays.
    """
    text = (
        json.dumps({**value, CHECKSUM_KEY: CHECKSUM_PLACEHOLDER}, indent=2, ensure_ascii=False)
        + "\n"
    )
    before, _, after = text.rpartition(CHECKSUM_PLACEHOLDER)
    write_text(path, before + _digest(encode_utf8(text)) + after, keep_existing)


def without_checksum(value: dict[str, Any]) -> dict[str, Any]:
    """The content without its checksum."""
    return {name: entry for name, entry in value.items() if name != CHECKSUM_KEY}


def has_valid_checksum(content: bytes) -> bool:
    """Whether a sealed file's bytes are those that were written."""
    before, _, after = content.rpartition(f'"{CHECKSUM_KEY}": "'.encode())
    seal, rest = after[: len(CHECKSUM_PLACEHOLDER)], after[len(CHECKSUM_PLACEHOLDER) :]
    blank = before + f'"{CHECKSUM_KEY}": "'.encode() + CHECKSUM_PLACEHOLDER.encode() + rest
    return bool(before) and _digest(blank).encode() == seal


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
