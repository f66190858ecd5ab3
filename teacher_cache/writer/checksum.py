"""JSON files that carry the checksum of their own bytes."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from pipeline.utils.files import utf8, write_text

SEAL = "sha256"
BLANK = "0" * 64


def write_sealed(path: Path, value: dict[str, Any], once: bool = False) -> None:
    """Writes `value` as indented JSON with the file's checksum as last field, whole or not at all.

    The checksum is that of the file's bytes with zeros in the checksum's place.

    Args:
        path: the file.
        value: JSON without a field of the checksum's name.
        once: a file that is there already stays.
    """
    text = json.dumps({**value, SEAL: BLANK}, indent=2, ensure_ascii=False) + "\n"
    before, _, after = text.rpartition(BLANK)
    write_text(path, before + _digest(utf8(text)) + after, once)


def unsealed(value: dict[str, Any]) -> dict[str, Any]:
    """The content without its checksum."""
    return {name: entry for name, entry in value.items() if name != SEAL}


def is_intact(content: bytes) -> bool:
    """Whether a sealed file's bytes are those that were written."""
    before, _, after = content.rpartition(f'"{SEAL}": "'.encode())
    seal, rest = after[: len(BLANK)], after[len(BLANK) :]
    blank = before + f'"{SEAL}": "'.encode() + BLANK.encode() + rest
    return bool(before) and _digest(blank).encode() == seal


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
