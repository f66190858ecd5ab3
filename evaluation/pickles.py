"""Pickles run code when they are read, so predictions files of that form are refused."""

from __future__ import annotations

from pathlib import Path

from pipeline.errors import InputError

ENDINGS = (".pkl", ".pickle")
# How pickles of protocol 2 and later begin.
PROTOCOLS = tuple(bytes([0x80, version]) for version in range(2, 6))
CONVERT = (
    'python -c "import json, pickle, sys;'
    " json.dump(pickle.load(open(sys.argv[1], 'rb'), encoding='latin1'), open(sys.argv[2], 'w'),"
    ' default=lambda value: value.tolist())"'
)


def refuse_pickle(path: Path) -> None:
    """Says how to convert a pickle; other files pass.

    Raises:
        InputError: the file is a pickle, by its name or its first bytes.
    """
    try:
        with open(path, "rb") as file:
            start = file.read(2)
    except OSError:
        return
    if start in PROTOCOLS or path.suffix.lower() in ENDINGS:
        raise InputError(
            f"{path}: expected JSON or NPZ, found a pickle, which could run any code when read;"
            f" if you trust it, convert it: {CONVERT} {path} {path.with_suffix('.json').name}"
        )
