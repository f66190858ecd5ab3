"""V-COCO's own scores of a run, where its dataset has the official files."""

from __future__ import annotations

from collections.abc import Sequence

from evaluation.score_vcoco import score_detections, vcoco_table
from evaluation.vcoco_results import VcocoResults, vcoco_results
from pipeline.datasets import Dataset
from pipeline.types import Detections

VCOCO_RESULTS = "vcoco.json"


def score_run(dataset: Dataset, detections: Sequence[Detections]) -> VcocoResults | None:
    """Scores the predictions of the test part and prints the table; None for datasets without
    V-COCO's official files."""
    truth = dataset.vcoco("test")
    if truth is None:
        return None
    scores = score_detections(detections, truth, dataset.vocabulary)
    print("\n".join(vcoco_table(scores, len(truth.images))))
    return vcoco_results(scores)
