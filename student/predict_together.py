"""Several processes share a set of images and all get every prediction."""

from __future__ import annotations

from collections.abc import Sequence

from evaluation.gather import merge_predictions
from pipeline.types import Detections, ImageRecord
from pipeline.vocabulary import Vocabulary
from student.model import HOIDetector
from student.predict import predict
from student.step import Execution


def predict_together(
    model: HOIDetector,
    records: Sequence[ImageRecord],
    vocabulary: Vocabulary,
    augmentation: str,
    execution: Execution,
) -> list[Detections]:
    """Every process predicts its share of the images, each image in one process.

    Args:
        model, records, vocabulary, augmentation: see `predict`.
        execution: whose processes take part.

    Returns:
        One `Detections` for every record, in their order, in every process.

    Raises:
        InputError: a process cannot read an image; all of them say so.
    """
    team = execution.team
    found: list[Detections] = []
    with team.together():
        found = predict(
            model,
            records[team.rank :: team.size],
            vocabulary,
            augmentation,
            execution.device,
            workers=execution.workers,
            quiet=not team.first,
        )
    return merge_predictions(team.gather(found), [record.id for record in records])
