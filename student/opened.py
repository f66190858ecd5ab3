"""What a student's file tells: a run or checkpoint of ours, or a published EoID or CDN one."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipeline.errors import InputError
from pipeline.splits import FULL, Split, load_split
from pipeline.vocabulary import SHIPPED, Vocabulary, load_vocabulary
from pipeline.weights import read_checkpoint
from student.checkpoints import checkpoint_from, is_ours, restore
from student.model import HOIDetector
from student.published import model_from_published
from student.recipe import Recipe, preset


@dataclass(frozen=True, eq=False)
class Opened:
    """A detector and how it came to be, as far as its file tells.

    Attributes:
        model: in eval mode.
        recipe: its settings; of a published checkpoint only the model's own are known, the others
            are the published ones.
        vocabulary: what its classes mean.
        split: what it was trained on; everything for a published checkpoint, which does not say.
        ours: trained by this project, so that recipe and split are facts.
        sources: further sources it learned from; see `evaluation.results.Results`.
    """

    model: HOIDetector
    recipe: Recipe
    vocabulary: Vocabulary
    split: Split
    ours: bool
    sources: tuple[dict[str, Any], ...] = ()


def open_student(
    file: Path, vocabulary: Vocabulary | None = None, num_heads: int | None = None
) -> Opened:
    """Opens a detector.

    A published checkpoint does not name its classes: as many as a vocabulary has are taken for the
    vocabulary's.

    Args:
        file: the checkpoint.
        vocabulary: a dataset's, which the detector has to be for; None for the checkpoint's own, of
            a published one the shipped one with as many classes.
        num_heads: attention heads of a published checkpoint that does not say.

    Raises:
        InputError: nothing of the kind, or of another vocabulary.
    """
    content = read_checkpoint(file)
    if is_ours(content):
        checkpoint = checkpoint_from(content, file)
        own = checkpoint.vocabulary
        if vocabulary is not None and own.digest() != vocabulary.digest():
            raise InputError(
                f"{file}: expected a student of the vocabulary {vocabulary.name}, found {own.name}"
            )
        model = restore(checkpoint, file)
        state = checkpoint.state
        # Best weights are kept without a plan.
        sources = tuple(state.get("sources", state.get("plan", {}).get("extra", ())))
        return Opened(model, checkpoint.recipe, own, checkpoint.split, ours=True, sources=sources)
    model = model_from_published(content, file, num_heads)
    vocabulary = vocabulary or _shipped(model, file)
    counts = vocabulary.num_objects, vocabulary.num_verbs
    if not _fits(model, vocabulary):
        found = model.config.num_objects, model.config.num_verbs
        raise InputError(
            f"{file}: expected {counts[0]} objects and {counts[1]} verbs, as {vocabulary.name} has,"
            f" found {found[0]} and {found[1]}"
        )
    recipe = preset("published", *counts, vocabulary.person)
    return Opened(
        model,
        replace(recipe, model=model.config),
        vocabulary,
        load_split(vocabulary, FULL),
        ours=False,
    )


def _fits(model: HOIDetector, vocabulary: Vocabulary) -> bool:
    """Whether a published model may be of this vocabulary, by its numbers of classes."""
    # Published V-COCO models have a class of their own for "no object goes with this verb".
    extra = model.config.num_objects - vocabulary.num_objects
    return model.config.num_verbs == vocabulary.num_verbs and 0 <= extra <= bool(vocabulary.roles)


def _shipped(model: HOIDetector, file: Path) -> Vocabulary:
    """The shipped vocabulary of a published model."""
    shipped = [load_vocabulary(name) for name in SHIPPED]
    for one in shipped:
        if _fits(model, one):
            return one
    known = ", ".join(f"{v.num_objects} and {v.num_verbs} ({v.name})" for v in shipped)
    raise InputError(
        f"{file}: expected as many objects and verbs as a shipped vocabulary has, {known}, found"
        f" {model.config.num_objects} and {model.config.num_verbs}; name a vocabulary file"
    )
