"""Ready scripts for SLURM."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from pipeline.files import refuse_existing, write_text

SCRIPTS = ("cache.sbatch", "cache_array.sbatch")


def copy_scripts(folder: Path, overwrite: bool = False) -> list[Path]:
    """Copies the scripts into a folder of the user's.

    Raises:
        InputError: a script is there already and `overwrite` is not given.
    """
    paths = [folder / name for name in SCRIPTS]
    for path in paths:
        refuse_existing(path, overwrite)
    for path in paths:
        write_text(path, (files(__name__) / path.name).read_text(encoding="utf-8"))
    return paths
