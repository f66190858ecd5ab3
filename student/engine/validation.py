"""A part of the training images that is left out of training, to watch a run and choose from it.

Nothing here reads a label that the split hides: a checkpoint is chosen by seen interactions alone,
and never by test images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from evaluation.drawing.samples import SAMPLES_FOLDER, draw_samples
from evaluation.hico.average_precision import evaluate
from pipeline.splits import Split, remove_unseen_labels
from pipeline.types import Annotation, ImageRecord
from pipeline.utils.errors import InputError
from pipeline.vocabulary import Vocabulary
from student.inference.predict import BatchPredictor
from student.utils.distributed import Execution
from student.utils.seeding import derive_seed

# Keeps the draw of validation images apart from what else is drawn from the same seed.
SEED_STREAM = 0x401D


@dataclass(frozen=True)
class ValidationScore:
    """An evaluation's numbers, as fractions.

    Attributes:
        monitored: the one to choose a checkpoint by: mAP over seen interactions.
        metrics: all of them by name.
    """

    monitored: float
    metrics: dict[str, float]


def split_validation(val_size: float, size: int, seed: int) -> tuple[list[int], list[int]]:
    """Chooses images, the same ones for equal arguments.

    Args:
        val_size: a share of the images below 1, or their number.
        size: number of images.
        seed: of the run.

    Returns:
        Indices to train on and indices held out, each in rising order.

    Raises:
        InputError: nothing would be left to train on.
    """
    count = max(1, round(val_size * size)) if 0 < val_size < 1 else int(val_size)
    if count >= size:
        raise InputError(f"val_size: expected fewer than the {size} training images, found {count}")
    rng = np.random.default_rng(derive_seed(seed, SEED_STREAM))
    held = np.zeros(size, dtype=bool)
    held[rng.choice(size, count, replace=False)] = True
    return np.flatnonzero(~held).tolist(), np.flatnonzero(held).tolist()


class Validator:
    """Evaluates a model on held-out images.

    Args:
        records, annotations: of these images, in one order.
        split: whose unseen labels are taken out of the annotations.
        vocabulary: of all of them.
    """

    def __init__(
        self,
        records: Sequence[ImageRecord],
        annotations: Sequence[Annotation],
        split: Split,
        vocabulary: Vocabulary,
    ) -> None:
        self.records, self.vocabulary = records, vocabulary
        self.annotations = [remove_unseen_labels(one, split, vocabulary) for one in annotations]

    def evaluate(
        self, predictor: BatchPredictor, run_dir: Path, step: int, execution: Execution
    ) -> ValidationScore:
        """Scores the model, and draws a few of the images, always the same ones.

        Args:
            predictor: its model is put into eval mode.
            run_dir: folder for the pictures.
            step: how far the training is.
            execution: all its processes take part.
        """
        detections = predictor.to(execution.device).predict(
            self.records, execution.context, execution.workers
        )
        if execution.context.is_main_process:
            folder = run_dir / SAMPLES_FOLDER / f"step-{step:07d}"
            draw_samples(folder, self.records, self.annotations, detections, self.vocabulary)
        scores = evaluate(self.annotations, detections, self.vocabulary)
        seen = scores.mean_ap()
        # Held-out images may all be without labels.
        if seen is None:
            return ValidationScore(0.0, {})
        return ValidationScore(
            seen, {"seen": seen, "mean_max_recall": float(np.nanmean(scores.max_recall))}
        )
