"""The student's checkpoint format: atomic writing, and reading without running pickled code."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.splits import Split
from pipeline.utils.errors import InputError, bad_field
from pipeline.utils.files import atomic_write
from pipeline.utils.weights import check_finite, read_checkpoint
from pipeline.vocabulary import Vocabulary, vocabulary_from_dict
from student.config import Recipe, recipe_from_dict
from student.models.detector import HOIDetector

FORMAT_PREFIX = "eoid-student-"
FORMAT = f"{FORMAT_PREFIX}2"
# Format of `config.json` in a run folder.
RUN_FORMAT = "eoid-run-2"
CHECKPOINT, PREVIOUS, BEST = "checkpoint.pt", "checkpoint-previous.pt", "best.pt"
CHECKPOINT_KEYS = ("recipe", "vocabulary", "split", "model", "state")
SPLIT_FIELDS = {"name", "unseen", "distilled_verbs"}


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """Content of a student checkpoint.

    Attributes:
        recipe: all settings.
        vocabulary: names of the classes, in the order of the model's outputs.
        split: the unseen interactions and the distilled verbs.
        weights: state dict to predict with; with EMA, the averaged weights.
        state: optimizer, schedule and position of the training, needed to resume it.
    """

    recipe: Recipe
    vocabulary: Vocabulary
    split: Split
    weights: dict[str, torch.Tensor]
    state: dict[str, Any]


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Writes a checkpoint atomically."""
    with atomic_write(path) as temporary:
        write_checkpoint(temporary, checkpoint)


def write_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Writes a checkpoint to an open path (not atomically) and syncs it to the disk."""
    value = {
        "format": FORMAT,
        "recipe": checkpoint.recipe.to_dict(),
        "vocabulary": checkpoint.vocabulary.to_dict(),
        "split": {
            "name": checkpoint.split.name,
            "unseen": list(checkpoint.split.unseen),
            "distilled_verbs": checkpoint.split.distilled_verbs.tolist(),
        },
        "model": checkpoint.weights,
        "state": checkpoint.state,
    }
    write_content(path, value)


def write_content(path: Path, value: dict[str, Any]) -> None:
    """Writes tensors and plain values to an open path (not atomically) and syncs it to the disk."""
    # torch's own writer hides the operating system's reason for a failure, such as a full disk.
    with open(path, "wb") as file:
        torch.save(value, file)
        file.flush()
        os.fsync(file.fileno())


def load_checkpoint(path: Path) -> Checkpoint:
    """Reads a student checkpoint; an `InputError` if it is missing, damaged, or none."""
    return parse_checkpoint(read_checkpoint(path), path)


def parse_checkpoint(value: Any, path: Path) -> Checkpoint:
    """The checkpoint in the content that `read_checkpoint` returned for a path.

    Raises:
        InputError: the content has another format, or a part is missing or wrong.
    """
    found = value.get("format", "none") if isinstance(value, dict) else type(value).__name__
    if found != FORMAT:
        raise bad_field(path, "format", FORMAT, str(found))
    missing = [name for name in CHECKPOINT_KEYS if not isinstance(value.get(name), dict)]
    if missing:
        raise bad_field(path, missing[0], "an object", value.get(missing[0]))
    split = value["split"]
    if not split.keys() >= SPLIT_FIELDS:
        raise bad_field(path, "split", ", ".join(sorted(SPLIT_FIELDS)), split)
    return Checkpoint(
        recipe=recipe_from_dict(value["recipe"], path),
        vocabulary=vocabulary_from_dict(value["vocabulary"], path),
        split=Split(
            split["name"],
            tuple(split["unseen"]),
            np.array(split["distilled_verbs"], dtype=bool),
        ),
        weights=value["model"],
        state=value["state"],
    )


def is_student_checkpoint(value: Any) -> bool:
    """Whether a file's content was written by `save_checkpoint`, in any version of the format."""
    return isinstance(value, dict) and str(value.get("format")).startswith(FORMAT_PREFIX)


def has_checkpoint(path: Path) -> bool:
    """Whether a path is a file, or a run folder with a checkpoint."""
    return path.is_file() or any((path / name).is_file() for name in (BEST, CHECKPOINT))


def checkpoint_path(path: Path | str) -> Path:
    """The checkpoint at a path: a file itself; of a run folder the best, else the latest one.

    Raises:
        InputError: the path is a folder without a checkpoint.
    """
    path = Path(path)
    if not path.is_dir():
        return path
    for name in (BEST, CHECKPOINT):
        if (path / name).is_file():
            return path / name
    raise InputError(f"{path}: expected a run folder, found a folder without {CHECKPOINT}")


def build_model(checkpoint: Checkpoint, path: Path) -> HOIDetector:
    """The detector of a checkpoint, in eval mode; `path` is named in errors.

    Raises:
        InputError: the weights do not fit the recipe's model, or are not finite.
    """
    model = HOIDetector(checkpoint.recipe.model)
    check_finite(checkpoint.weights, path)
    try:
        model.load_state_dict(checkpoint.weights)
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise bad_field(path, "model", "weights of its recipe's model", reason) from None
    return model.eval()
