"""TOML files that people write."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from pipeline.errors import InputError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def read_toml(path: Path | str) -> dict[str, Any]:
    """Reads a TOML file.

    Raises:
        InputError: the file is missing or is not TOML.
    """
    try:
        # Some editors put a byte order mark before UTF-8.
        return tomllib.loads(Path(path).read_bytes().decode("utf-8-sig"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InputError(f"{path}: expected TOML, found {error}") from None
