"""Students to evaluate: a run or checkpoint of ours, or a published EoID or CDN checkpoint."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from pipeline.errors import InputError
from pipeline.splits import FULL, Split, load_split
from pipeline.vocabulary import Vocabulary
from student.checkpoints import checkpoint_from, is_ours, restore
from student.model import HOIDetector
from student.published import model_from_published, read_checkpoint
from student.recipe import Recipe, preset


@dataclass(frozen=True, eq=False)
class Opened:
    """A detector and how it came to be, as far as its file tells.

    Attributes:
        model: in eval mode.
        recipe: its settings; of a published checkpoint only the model's own are known, the others
            are the published ones.
        split: what it was trained on; everything for a published checkpoint, which does not say.
        ours: trained by this project, so that recipe and split are facts.
    """

    model: HOIDetector
    recipe: Recipe
    split: Split
    ours: bool


def open_student(file: Path, vocabulary: Vocabulary, num_heads: int | None = None) -> Opened:
    """Opens a detector for a dataset's vocabulary.

    A published checkpoint does not name its classes: as many as the vocabulary has are taken for
    the vocabulary's.

    Args:
        file: the checkpoint.
        vocabulary: the dataset's.
        num_heads: attention heads of a published checkpoint that does not say.

    Raises:
        InputError: nothing of the kind, or of another vocabulary.
    """
    content = read_checkpoint(file)
    if is_ours(content):
        checkpoint = checkpoint_from(content, file)
        if checkpoint.vocabulary.digest() != vocabulary.digest():
            raise InputError(
                f"{file}: expected a student of the vocabulary {vocabulary.name},"
                f" found {checkpoint.vocabulary.name}"
            )
        return Opened(restore(checkpoint, file), checkpoint.recipe, checkpoint.split, ours=True)
    model = model_from_published(content, file, num_heads)
    counts = vocabulary.num_objects, vocabulary.num_verbs
    found = model.config.num_objects, model.config.num_verbs
    # Published V-COCO models have a class of their own for "no object goes with this verb".
    extra = 1 if vocabulary.roles else 0
    if found not in (counts, (counts[0] + extra, counts[1])):
        raise InputError(
            f"{file}: expected {counts[0]} objects and {counts[1]} verbs, as {vocabulary.name} has,"
            f" found {found[0]} and {found[1]}"
        )
    recipe = preset("published", *counts, vocabulary.person)
    return Opened(
        model, replace(recipe, model=model.config), load_split(vocabulary, FULL), ours=False
    )
