"""A part of the training images that is left out of training, to watch a run and choose from it.

Nothing here reads a label that the split hides: a checkpoint is chosen by seen interactions alone,
and never by test images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from evaluation.drawing.samples import PICTURES, draw_beside
from evaluation.hico.average_precision import evaluate
from pipeline.splits import Split, keep_seen
from pipeline.types import Annotation, ImageRecord
from pipeline.utils.errors import InputError
from pipeline.vocabulary import Vocabulary
from student.inference.predict import Predictor
from student.utils.distributed import Execution
from student.utils.seeding import mix

# Keeps the choice of images apart from what else is drawn from the same seed.
PURPOSE = 0x401D


@dataclass(frozen=True)
class Score:
    """An evaluation's numbers, as fractions.

    Attributes:
        choice: the one to choose a checkpoint by: mAP over seen interactions.
        metrics: all of them by name.
    """

    choice: float
    metrics: dict[str, float]


def hold_out(wanted: float, size: int, seed: int) -> tuple[list[int], list[int]]:
    """Chooses images, the same ones for equal arguments.

    Args:
        wanted: a share of the images below 1, or their number.
        size: number of images.
        seed: of the run.

    Returns:
        Indices to train on and indices held out, each in rising order.

    Raises:
        InputError: nothing would be left to train on.
    """
    count = max(1, round(wanted * size)) if 0 < wanted < 1 else int(wanted)
    if count >= size:
        raise InputError(f"hold_out: expected fewer than the {size} training images, found {count}")
    dice = np.random.default_rng(mix(seed, PURPOSE))
    held = np.zeros(size, dtype=bool)
    held[dice.choice(size, count, replace=False)] = True
    return np.flatnonzero(~held).tolist(), np.flatnonzero(held).tolist()


class HeldOut:
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
        self.annotations = [keep_seen(one, split, vocabulary) for one in annotations]

    def evaluate(self, predictor: Predictor, run: Path, step: int, execution: Execution) -> Score:
        """Scores the model, and draws a few of the images, always the same ones.

        Args:
            predictor: its model is put into eval mode.
            run: folder for the pictures.
            step: how far the training is.
            execution: all its processes take part.
        """
        detections = predictor.to(execution.device).predict(
            self.records, execution.team, execution.workers
        )
        if execution.team.first:
            folder = run / PICTURES / f"step-{step:07d}"
            draw_beside(folder, self.records, self.annotations, detections, self.vocabulary)
        scores = evaluate(self.annotations, detections, self.vocabulary)
        seen = scores.mean()
        # Held-out images may all be without labels.
        if seen is None:
            return Score(0.0, {})
        return Score(seen, {"seen": seen, "mean_max_recall": float(np.nanmean(scores.max_recall))})
