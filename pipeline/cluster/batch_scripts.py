"""Scripts for `sbatch` that run a command in a job, and requeue the job before its time limit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from pipeline.utils.files import refuse_existing, write_text

TEMPLATE = "job.sbatch"


@dataclass(frozen=True)
class BatchScript:
    """A script for `sbatch`.

    Attributes:
        file: name of the script.
        description: what the script does and how it is submitted, its first comment.
        command: the command to run, to which the script's arguments are added; it resumes when it
            is started again, and exits with `EXIT_REQUEUE` after SIGTERM.
        is_array: for the jobs of an array: the command gets `--array`.
    """

    file: str
    description: str
    command: str
    is_array: bool = False

    def text(self) -> str:
        """The script."""
        values = {
            "DESCRIPTION": "\n".join(
                f"# {line}".rstrip() for line in self.description.splitlines()
            ),
            "NAME": self.command.split()[0],
            "NUMBER": "%A_%a" if self.is_array else "%j",
            "COMMAND": f'{self.command} "$@"' + (" --array" if self.is_array else ""),
        }
        text = (files("pipeline.cluster") / TEMPLATE).read_text(encoding="utf-8")
        for name, value in values.items():
            text = text.replace(f"@{name}@", value)
        return text


def write_batch_scripts(
    scripts: Sequence[BatchScript], folder: Path, overwrite: bool = False
) -> list[Path]:
    """Writes scripts into a folder, and returns their paths.

    Raises:
        InputError: one of the files exists and `overwrite` is false.
    """
    paths = [folder / script.file for script in scripts]
    for path in paths:
        refuse_existing(path, overwrite)
    for script, path in zip(scripts, paths, strict=True):
        write_text(path, script.text())
    return paths
