"""Ready weights: students that are part of the package and are opened by name."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from pipeline.utils.errors import InputError
from pipeline.utils.files import read_json
from pipeline.utils.logging import get_logger
from student.weights.checkpoint_file import checkpoint_path, has_checkpoint

logger = get_logger(__name__)

MODELS = Path(__file__).parent / "models"
TABLE = MODELS / "zoo.json"


@dataclass(frozen=True)
class ReadyWeights:
    """Weights of the package and what `python -m benchmarks.zoo` measured of them.

    Attributes:
        name: name to open them by.
        description: the model in a few words.
        split: the zero-shot split of the training, and of the metrics.
        full, seen, unseen: mAP on the test images, as fractions.
        parameters: number of the model's parameters.
        images_per_second: throughput of one CPU core.
        licence: licence of the weights.
    """

    name: str
    description: str
    split: str
    full: float
    seen: float
    unseen: float
    parameters: int
    images_per_second: float
    licence: str

    @property
    def file(self) -> Path:
        """The checkpoint."""
        return MODELS / f"{self.name}.pt"


def read_zoo() -> dict[str, ReadyWeights]:
    """The weights of the package by name.

    Raises:
        InputError: the package's files are incomplete.
    """
    if not TABLE.is_file():
        raise _incomplete(TABLE)
    return {row["name"]: ReadyWeights(**row) for row in read_json(TABLE)}


def _incomplete(file: Path) -> InputError:
    return InputError(f"{file}: expected a file of the package, found none; install it again")


def find_checkpoint(path: Path | str) -> Path:
    """The checkpoint of a file, a run folder, or a name of ready weights.

    A file or run of such a name in the working directory takes precedence. A folder without a
    checkpoint, such as a toy dataset, does not; "./toy" is always a path.

    Raises:
        InputError: the path is a single word that is neither an existing file nor a name, or it is
            a folder without a checkpoint; or the package's files are incomplete.
    """
    # A `Path` has lost the "./".
    text, path = os.fspath(path), Path(path)
    if os.sep not in text and not path.suffix:
        zoo = read_zoo()
        if text in zoo and not has_checkpoint(path):
            if path.exists():
                logger.info(f"{path}: opening the package's weights; this folder has no checkpoint")
            if not zoo[text].file.is_file():
                raise _incomplete(zoo[text].file)
            return zoo[text].file
        if not path.exists():
            raise InputError(
                f"{path}: no such file or run folder; the package's own weights are"
                f" {', '.join(zoo)}"
            )
    return checkpoint_path(path)
