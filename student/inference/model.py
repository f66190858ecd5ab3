"""Opening a detector for inference: its model, vocabulary, split and input size."""

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
    """A detector's file, and what the file may not record.

    Attributes:
        path: a run folder, a student checkpoint, or one in the published EoID/CDN form.
        vocabulary: a shipped vocabulary's name or a file; None takes the checkpoint's, or for a
            published one the shipped vocabulary with its numbers of classes.
        split: name or TOML file of the split that defines "unseen"; None takes the run's.
        num_heads: attention heads of a published checkpoint whose `args` do not name them.
        prompts: prompts file with further actions, for a student with a text verb head.
    """

    path: Path
    vocabulary: str | Path | None = None
    split: str | Path | None = None
    num_heads: int | None = None
    prompts: Path | None = None


@dataclass(frozen=True, eq=False)
class InferenceModel(BatchPredictor):
    """A detector from a file.

    Attributes:
        file: the checkpoint.
        split: the split that defines "unseen"; None where it is unknown.
        prompts: the prompts file of added actions, None without.
    """

    file: Path
    split: Split | None
    prompts: Path | None = None

    @property
    def unseen(self) -> frozenset[int]:
        """Unseen interactions; empty where the split is unknown."""
        return frozenset(self.split.unseen if self.split else ())


def load_inference_model(spec: ModelSpec, target: Vocabulary | None = None) -> InferenceModel:
    """Opens a detector on the CPU.

    Args:
        spec: which detector.
        target: vocabulary of a dataset, which a detector with prompts takes over.

    Raises:
        InputError: the file is not a detector's checkpoint, or vocabulary, split or prompts do not
            fit it.
    """
    file = checkpoint_path(spec.path)
    vocabulary = None if spec.vocabulary is None else load_vocabulary(spec.vocabulary)
    if spec.prompts is not None:
        vocabulary = vocabulary or target
    loaded = load_student_with_prompts(file, vocabulary, spec.num_heads, spec.prompts)
    training_split = None if loaded.is_published else loaded.split
    return InferenceModel(
        loaded.model,
        loaded.vocabulary,
        loaded.recipe.train.augmentation,
        loaded.recipe.train.precision,
        file,
        training_split if spec.split is None else load_split(loaded.vocabulary, spec.split),
        spec.prompts,
    )
