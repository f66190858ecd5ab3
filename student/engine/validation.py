"""Validation on held-out training images (`--val-size`).

Only seen labels are used, so that a checkpoint is chosen without unseen labels and without test
images. (The published code chooses the best checkpoint by the mAP on the test part.)
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from evaluation.drawing.samples import SAMPLES_FOLDER, draw_samples
from evaluation.hico.average_precision import evaluate
from pipeline.splits import Split, remove_unseen_labels
from pipeline.types import Annotation, ImageRecord
from pipeline.utils.errors import InputError
from pipeline.vocabulary import Vocabulary
from student.inference.batch_predictor import BatchPredictor
from student.utils.distributed import Execution
from student.utils.seeding import derive_seed

# Makes the choice of validation images independent of other random numbers of the same seed.
SEED_STREAM = 0x401D


def split_validation(val_size: float, size: int, seed: int) -> tuple[list[int], list[int]]:
    """Draws the held-out images; equal arguments give equal images.

    Args:
        val_size: fraction of the images (below 1), or their number.
        size: number of images.
        seed: seed of the run.

    Returns:
        Indices to train on and held-out indices, both ascending.

    Raises:
        InputError: no image would be left to train on.
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
        records, annotations: the images and their annotations, in the same order.
        split: split whose unseen labels are removed from the annotations.
        vocabulary: vocabulary of the annotations.
    """

    def __init__(
        self,
        records: Sequence[ImageRecord],
        annotations: Sequence[Annotation],
        split: Split,
        vocabulary: Vocabulary,
    ) -> None:
        self.records, self.vocabulary = records, vocabulary
        self.annotations = [
            remove_unseen_labels(annotation, split, vocabulary) for annotation in annotations
        ]

    def evaluate(
        self, predictor: BatchPredictor, run_dir: Path, step: int, execution: Execution
    ) -> dict[str, float]:
        """Scores the model and draws its detections on a fixed sample of the images.

        All processes have to call this; the model is put into eval mode.

        Returns:
            Metrics as fractions: `seen`, the mAP over seen interactions, by which checkpoints are
            chosen, and `mean_max_recall`. Empty if the images have no labels.
        """
        detections = predictor.to(execution.device).predict(
            self.records, execution.context, execution.workers
        )
        if execution.context.is_main_process:
            folder = run_dir / SAMPLES_FOLDER / f"step-{step:07d}"
            draw_samples(folder, self.records, self.annotations, detections, self.vocabulary)
        scores = evaluate(self.annotations, detections, self.vocabulary)
        seen = scores.mean_ap()
        if seen is None:
            return {}
        return {"seen": seen, "mean_max_recall": float(np.nanmean(scores.max_recall))}
