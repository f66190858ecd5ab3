"""V-COCO's own scores of a run, where its dataset has the official files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from evaluation.score_vcoco import score_detections, vcoco_results, vcoco_table
from pipeline.datasets import Dataset
from pipeline.files import write_json
from pipeline.types import Detections

VCOCO_RESULTS = "vcoco.json"


def score_run(
    dataset: Dataset, detections: Sequence[Detections], name: str, out: Path
) -> dict[str, float]:
    """Scores the predictions of the test part, prints the table and writes `vcoco.json`.

    Returns:
        the averages by name; nothing for datasets without V-COCO's official files.
    """
    truth = dataset.vcoco("test")
    if truth is None:
        return {}
    scores = score_detections(detections, truth, dataset.vocabulary)
    write_json(out / VCOCO_RESULTS, vcoco_results(scores, name, len(truth.images)))
    print("\n".join(vcoco_table(scores, len(truth.images))))
    return {key: value for key, value in scores.metrics().items() if value is not None}
