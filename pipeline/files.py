"""Files that are either complete or absent, and their digests."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline.errors import InputError


@contextmanager
def replacing(path: Path | str) -> Iterator[Path]:
    """Yields a temporary path beside `path`; on success it is synced and takes `path`'s place.

    Missing folders above `path` are made. When the body raises, the temporary file goes and
    `path` stays as it was.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with open(temporary, "rb") as written:
            os.fsync(written.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def refuse_existing(path: Path | str, overwrite: bool) -> None:
    """Guards a result that a command is about to write.

    Raises:
        InputError: the file is there and `overwrite` is not given.
    """
    if not overwrite and Path(path).exists():
        raise InputError(f"{path}: exists; give --overwrite or another name")


def write_text(path: Path | str, text: str) -> None:
    """Writes `text` as UTF-8, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path | str, value: Any) -> None:
    """Writes `value` as indented JSON, whole or not at all."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path | str) -> Any:
    """Reads a JSON file.

    Raises:
        InputError: the file is missing, is not readable as UTF-8 text or is not JSON.
    """
    path = Path(path)
    try:
        # Some editors put a byte order mark before UTF-8.
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({error})") from None
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(
            f"{path}: line {error.lineno}: expected JSON, found {error.msg.lower()}"
        ) from None
    except (RecursionError, ValueError) as error:
        raise InputError(f"{path}: expected JSON, found {error}") from None


def differing_keys(found: Any, wanted: dict[str, Any]) -> list[str]:
    """The keys of `wanted` whose values a file's content does not have."""
    held = found if isinstance(found, dict) else {}
    return [key for key in wanted if held.get(key) != wanted[key]]


def sha256_of_file(path: Path | str) -> str:
    """Hex SHA-256 of a file's bytes."""
    with open(path, "rb") as file:
        return sha256_of_chunks(iter(lambda: file.read(1 << 20), b""))


def sha256_of_chunks(chunks: Iterator[bytes]) -> str:
    """Hex SHA-256 of the concatenation of `chunks`."""
    digest = hashlib.sha256()
    for chunk in chunks:
        digest.update(chunk)
    return digest.hexdigest()


def sha256_of_json(value: Any) -> str:
    """Hex SHA-256 of a JSON value, independent of key order and spacing."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return sha256_of_chunks(iter([text.encode()]))
