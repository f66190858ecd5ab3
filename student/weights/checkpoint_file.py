"""Student checkpoints: written whole, read without unpickling."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.splits import Split
from pipeline.utils.errors import bad_field
from pipeline.utils.files import atomic_write
from pipeline.utils.weights import check_finite, read_checkpoint
from pipeline.vocabulary import Vocabulary, vocabulary_from_dict
from student.config import Recipe, recipe_from_dict
from student.models.detector import HOIDetector

FORMAT_PREFIX = "eoid-student-"
FORMAT = f"{FORMAT_PREFIX}2"
# Of the configuration in a run folder.
RUN_FORMAT = "eoid-run-2"
CHECKPOINT, PREVIOUS, BEST = "checkpoint.pt", "checkpoint-previous.pt", "best.pt"
CHECKPOINT_KEYS = ("recipe", "vocabulary", "split", "model", "state")
SPLIT_FIELDS = {"name", "unseen", "distilled_verbs"}


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """What a checkpoint of ours holds.

    Attributes:
        recipe: all settings.
        vocabulary: what the class numbers mean.
        split: the interactions whose labels were hidden, and the verbs the teacher was asked for.
        weights: the state dict that predicts (averaged where averaging is on).
        state: what training needs to go on.
    """

    recipe: Recipe
    vocabulary: Vocabulary
    split: Split
    weights: dict[str, torch.Tensor]
    state: dict[str, Any]


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Writes a checkpoint, whole or not at all."""
    with atomic_write(path) as temporary:
        write_checkpoint(temporary, checkpoint)


def write_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Writes a checkpoint under a temporary name, to the disk and not only towards it."""
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
    # Through a file of Python's, which tells why it cannot be written.
    with open(path, "wb") as file:
        torch.save(value, file)
        file.flush()
        os.fsync(file.fileno())


def load_checkpoint(path: Path) -> Checkpoint:
    """Reads a checkpoint of ours.

    Raises:
        InputError: missing, damaged, or of another kind.
    """
    return parse_checkpoint(read_checkpoint(path), path)


def parse_checkpoint(value: Any, path: Path) -> Checkpoint:
    """The checkpoint of ours in a loaded file's content.

    Raises:
        InputError: it is of another kind or format, or a part is missing or wrong.
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


def is_own_checkpoint(value: Any) -> bool:
    """Whether a loaded file is a checkpoint of this project, of whatever format."""
    return isinstance(value, dict) and str(value.get("format")).startswith(FORMAT_PREFIX)


def checkpoint_path(path: Path | str) -> Path:
    """The file that stands for a run folder, its best checkpoint if it keeps that; or the file."""
    path = Path(path)
    if not path.is_dir():
        return path
    return path / BEST if (path / BEST).is_file() else path / CHECKPOINT


def build_model(checkpoint: Checkpoint, path: Path) -> HOIDetector:
    """The detector of a checkpoint, in eval mode.

    Args:
        checkpoint: recipe and weights.
        path: where it comes from, for errors.

    Raises:
        InputError: the weights are those of another model, or of a training that diverged.
    """
    model = HOIDetector(checkpoint.recipe.model)
    check_finite(checkpoint.weights, path)
    try:
        model.load_state_dict(checkpoint.weights)
    except RuntimeError as error:
        found = str(error).splitlines()[-1].strip()
        raise bad_field(path, "model", "the weights of its recipe", found) from None
    return model.eval()
