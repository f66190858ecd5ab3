"""Scripts for clusters that packages bring along."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from pipeline.files import refuse_existing, write_text


def copy_scripts(
    package: str, names: Sequence[str], folder: Path, overwrite: bool = False
) -> list[Path]:
    """Copies files of a package into a folder of the user's.

    Raises:
        InputError: one is there already and `overwrite` is not given.
    """
    paths = [folder / name for name in names]
    for path in paths:
        refuse_existing(path, overwrite)
    for path in paths:
        write_text(path, (files(package) / path.name).read_text(encoding="utf-8"))
    return paths
