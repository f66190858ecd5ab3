"""The checkpoints of a run: the newest and the one before it, each whole or not there."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

from pipeline.errors import InputError
from pipeline.files import replacing
from student.checkpoints import CHECKPOINT, PREVIOUS, Checkpoint, load_checkpoint, write_checkpoint


def save_newest(run: Path, checkpoint: Checkpoint) -> None:
    """Writes a run's checkpoint; the newest so far becomes the one before.

    Raises:
        InputError: the disk does not take it; the older ones are as they were.
    """
    file = run / CHECKPOINT
    try:
        with replacing(file) as temporary:
            write_checkpoint(temporary, checkpoint)
            if file.is_file():
                os.replace(file, run / PREVIOUS)
    except (OSError, RuntimeError) as error:
        reason = _system_reason(error)
        if reason is None:
            raise
        raise InputError(f"{file}: cannot be written ({reason}); {_left(run)}") from None


def _system_reason(error: BaseException | None) -> str | None:
    """The operating system's reason; torch's writer hides it behind an error of its own."""
    while error is not None:
        if isinstance(error, OSError) and error.strerror:
            return error.strerror
        error = error.__cause__ or error.__context__
    return None


def checkpoints_of(run: Path) -> list[Path]:
    """A run's checkpoints, the newest first."""
    return [path for path in (run / CHECKPOINT, run / PREVIOUS) if path.is_file()]


def newest_whole(run: Path) -> tuple[Path, str]:
    """The checkpoint that a run can go on from.

    Args:
        run: has written at least one.

    Returns:
        The file, and a line about a newer one that is damaged ("" when there is none).

    Raises:
        InputError: all of them are damaged.
    """
    damage = ""
    for file in checkpoints_of(run):
        try:
            _check_content(file)
            load_checkpoint(file)
        except InputError as error:
            damage = damage or str(error)
        else:
            return file, damage
    raise InputError(damage)


def _check_content(file: Path) -> None:
    """Compares every part of a checkpoint with its checksum, which torch does not when loading.

    Raises:
        InputError: the file is damaged.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            damaged = archive.testzip()
    except (zipfile.BadZipFile, OSError) as error:
        raise InputError(f"{file}: expected a torch checkpoint, found {error}") from None
    if damaged is not None:
        raise InputError(f"{file}: expected a whole checkpoint, found damage in {damaged}")


def _left(run: Path) -> str:
    names = [path.name for path in checkpoints_of(run)]
    return f"{' and '.join(names)} stay as they were" if names else "there is no older one"
