"""How many annotated pairs are among the pairs of detected boxes, at several detector thresholds.

The teacher's soft labels can only be given for pairs whose boxes the detector finds. A lower
threshold finds more annotated pairs, and many more pairs without a label. Prints a JSON
object, or with `--markdown` a table; `--out` draws both curves.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from benchmarks.program import run_main
from evaluation.report.charts.figure import Panel, line_style, make_chart
from evaluation.report.charts.palette import LIGHT
from pipeline.boxes import box_iou
from pipeline.datasets.dataset import open_dataset
from pipeline.types import Pairs
from pipeline.utils.errors import InputError
from teacher_cache.detectors.pairing import PairingConfig, annotated_pairs, form_pairs
from teacher_cache.detectors.proposals import load_proposals

if TYPE_CHECKING:
    from matplotlib.axes import Axes

THRESHOLDS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
# Of both boxes, as in HICO-DET's evaluation.
MIN_IOU = 0.5
# In inches.
PANEL_HEIGHT = 2.4


class PairRecall(NamedTuple):
    """Detected pairs of all images at a threshold of the detector's scores.

    Attributes:
        threshold: lowest score of a person and of an object.
        pairs_per_image: mean number of detected pairs of an image.
        recall: share of the annotated pairs for which a detected pair of the same object has an IoU
            of at least 0.5 with both boxes.
        annotated_share: share of the detected pairs that match an annotated pair in this way; NaN
            without detected pairs.
    """

    threshold: float
    pairs_per_image: float
    recall: float
    annotated_share: float


def measure(
    folder: Path, file: Path, part: str = "train", thresholds: Sequence[float] = THRESHOLDS
) -> list[PairRecall]:
    """Compares detected with annotated pairs, with the other pairing settings at their defaults.

    Args:
        folder: dataset folder; its images without a labelled pair are left out.
        file: detections in COCO's results format, of scores from the lowest threshold on.
        part: "train" or "test".
        thresholds: the thresholds.
    """
    dataset = open_dataset(folder)
    loaded = dataset.load(part)
    boxes = load_proposals(file, dataset, loaded, strict=False).by_image()
    images = [
        (annotated, found)
        for annotation, found in zip(loaded.annotations, boxes, strict=True)
        if len(annotated := annotated_pairs(annotation))
    ]
    if not images:
        raise InputError(f"{folder}: expected labelled pairs in part {part}, found none")
    rows = []
    for threshold in thresholds:
        config = PairingConfig(threshold, threshold)
        matches = [
            match_pairs(annotated, form_pairs(found, dataset.vocabulary, config))
            for annotated, found in images
        ]
        num_annotated, num_detected = np.sum([match.shape for match in matches], axis=0)
        recalled = sum(match.any(axis=1).sum() for match in matches)
        labelled = sum(match.any(axis=0).sum() for match in matches)
        share = labelled / num_detected if num_detected else np.nan
        rows.append(
            PairRecall(
                threshold,
                float(num_detected / len(images)),
                float(recalled / num_annotated),
                float(share),
            )
        )
    return rows


def match_pairs(annotated: Pairs, detected: Pairs) -> np.ndarray:
    """(A, D) bool: pairs of the same object whose boxes both have an IoU of at least 0.5."""
    match = annotated.object_labels[:, None] == detected.object_labels
    match &= box_iou(annotated.human_boxes, detected.human_boxes) >= MIN_IOU
    return match & (box_iou(annotated.object_boxes, detected.object_boxes) >= MIN_IOU)


def format_markdown(rows: Sequence[PairRecall]) -> str:
    """A table for the documentation."""
    lines = [
        "| threshold | pairs per photograph | annotated pairs found | detected pairs annotated |",
        "|---|---|---|---|",
    ]
    for row in rows:
        shares = (row.recall, row.annotated_share)
        cells = ["-" if np.isnan(share) else f"{100 * share:.0f} %" for share in shares]
        lines.append(f"| {row.threshold:g} | {row.pairs_per_image:.1f} | {' | '.join(cells)} |")
    return "\n".join(lines)


def draw(rows: Sequence[PairRecall]) -> bytes:
    """The shares and the number of pairs over the thresholds, as a PNG file."""

    def plot(axis: Axes, values: Sequence[float], style: dict[str, Any]) -> None:
        thresholds = [row.threshold for row in rows]
        # Points at 0 are drawn over the axis.
        axis.plot(thresholds, values, marker="o", markersize=3, clip_on=False, **style)
        axis.set_xlabel("detector threshold")
        axis.set_xlim(0, 1)

    def draw_shares(axis: Axes) -> None:
        for name, style in (("recall", "distilled"), ("annotated_share", "control")):
            plot(axis, [100 * getattr(row, name) for row in rows], line_style(style))
        axis.set_title("Pairs, %")
        axis.set_ylim(0, 100)

    def draw_numbers(axis: Axes) -> None:
        plot(axis, [row.pairs_per_image for row in rows], {"color": LIGHT["all_labels"]})
        axis.set_title("Detected pairs per photograph")
        axis.set_ylim(bottom=0)

    panels = [Panel(PANEL_HEIGHT, draw_shares), Panel(PANEL_HEIGHT, draw_numbers)]
    legend = {"distilled": "annotated pairs found", "control": "detected pairs annotated"}
    return make_chart("pair-recall", "Pair recall", "", panels, legend, "line").png


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, help="dataset folder")
    parser.add_argument("--proposals", type=Path, required=True, help="COCO-results file")
    parser.add_argument("--part", choices=("train", "test"), default="train")
    parser.add_argument("--markdown", action="store_true", help="print a table")
    parser.add_argument("--out", type=Path, help="PNG file to write")
    options = parser.parse_args()
    rows = measure(options.data, options.proposals, options.part)
    if options.out is not None:
        options.out.write_bytes(draw(rows))
    table = [row._asdict() for row in rows]
    print(format_markdown(rows) if options.markdown else json.dumps({"thresholds": table}))


if __name__ == "__main__":
    run_main(main)
