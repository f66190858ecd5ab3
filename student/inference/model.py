"""A detector ready for pictures: what its numbers mean and what it wants to look at."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pipeline.splits import Split, load_split
from pipeline.vocabulary import Vocabulary, load_vocabulary
from student.inference.predict import BatchPredictor
from student.weights.checkpoint_file import checkpoint_path
from student.weights.load import load_student_with_prompts


@dataclass(frozen=True)
class ModelSpec:
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
class InferenceModel(BatchPredictor):
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


def load_inference_model(spec: ModelSpec, target: Vocabulary | None = None) -> InferenceModel:
    """Opens a detector, on the CPU.

    Args:
        target: of a dataset, whose actions a detector with prompts gets in its own order.

    Raises:
        InputError: nothing of the kind, or another vocabulary or split than fits.
    """
    file = checkpoint_path(spec.path)
    known = None if spec.vocabulary is None else load_vocabulary(spec.vocabulary)
    if spec.prompts is not None:
        known = known or target
    loaded = load_student_with_prompts(file, known, spec.num_heads, spec.prompts)
    trained = None if loaded.is_published else loaded.split
    return InferenceModel(
        loaded.model,
        loaded.vocabulary,
        loaded.recipe.train.augmentation,
        loaded.recipe.train.precision,
        file,
        trained if spec.split is None else load_split(loaded.vocabulary, spec.split),
        spec.prompts,
    )
