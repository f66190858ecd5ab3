"""A detector ready for pictures: what its numbers mean and what it wants to look at."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pipeline.splits import Split, load_split
from pipeline.vocabulary import Vocabulary, load_vocabulary
from student.inference.predict import Predictor
from student.weights.checkpoint_file import checkpoint_path
from student.weights.load import open_with


@dataclass(frozen=True)
class ModelSource:
    """Which detector, and what its file does not tell.

    Attributes:
        path: a run folder, a checkpoint of ours, or one in the published EoID/CDN form.
        vocabulary: a shipped name or a file; by default the checkpoint's own, of a published one
            the shipped one of its sizes.
        split: what counts as unseen, a name or a TOML file; by default the run's.
        num_heads: attention heads of a published checkpoint that does not say.
        prompts: sentences about further actions, for a student that reads.
    """

    path: Path
    vocabulary: str | Path | None = None
    split: str | Path | None = None
    num_heads: int | None = None
    prompts: Path | None = None


@dataclass(frozen=True, eq=False)
class ReadyModel(Predictor):
    """A detector from a file, and all that is needed to use it.

    Attributes:
        file: the checkpoint.
        split: what had no label in training; None where nobody knows.
        prompts: where its further actions come from, None without.
    """

    file: Path
    split: Split | None
    prompts: Path | None = None

    @property
    def unseen(self) -> frozenset[int]:
        """Interactions without a label in training."""
        return frozenset(self.split.unseen if self.split else ())


def ready_model(source: ModelSource, wanted: Vocabulary | None = None) -> ReadyModel:
    """Opens a detector, on the CPU.

    Args:
        wanted: of a dataset, whose actions a detector with prompts gets in its own order.

    Raises:
        InputError: nothing of the kind, or another vocabulary or split than fits.
    """
    file = checkpoint_path(source.path)
    known = None if source.vocabulary is None else load_vocabulary(source.vocabulary)
    if source.prompts is not None:
        known = known or wanted
    opened = open_with(file, known, source.num_heads, source.prompts)
    trained = opened.split if opened.ours else None
    return ReadyModel(
        opened.model,
        opened.vocabulary,
        opened.recipe.train.augmentation,
        opened.recipe.train.precision,
        file,
        trained if source.split is None else load_split(opened.vocabulary, source.split),
        source.prompts,
    )
