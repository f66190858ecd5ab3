"""Draws the README's figure from the demo's results: ground truth and both students."""

from __future__ import annotations

import argparse
from pathlib import Path

from PIL import Image

from benchmarks.program import run_main
from evaluation.analysis.comparison import compare
from evaluation.predictions import read_predictions
from evaluation.report.gallery import build_gallery
from evaluation.results import read_results
from pipeline.datasets.dataset import open_dataset

NUM_ROWS, SIDE, GAP = 3, 360, 8
ROW_TITLE = "Drawn at random"


def draw(runs: Path) -> Image.Image:
    """Draws the first of the report's random images with an unseen action.

    Args:
        runs: the demo's folder of a split, with `distilled` and `no_distillation`.
    """
    results = [
        read_results(runs / name / "results.json") for name in ("distilled", "no_distillation")
    ]
    assert results[0].dataset_path is not None
    dataset = open_dataset(results[0].dataset_path)
    test = dataset.load("test")
    files = {record.id: record.path for record in dataset.records(test)}
    comparison = compare(results, dataset.vocabulary)
    detections = [
        read_predictions(r.predictions, dataset.vocabulary) for r in results if r.predictions
    ]
    gallery_rows = build_gallery(
        comparison,
        test.annotations,
        list(zip(comparison.entries, detections, strict=True)),
        files,
    )
    items = next(row for row in gallery_rows if row.title == ROW_TITLE).items[:NUM_ROWS]
    step = SIDE + GAP
    sheet = Image.new("RGB", (3 * step - GAP, len(items) * step - GAP), "white")
    for row, item in enumerate(items):
        for column, image in enumerate(item.images):
            resized = image.image.resize((SIDE, SIDE), Image.Resampling.LANCZOS)
            sheet.paste(resized, (column * step, row * step))
    return sheet


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=Path, default=Path("demo/seed-0/ua"))
    parser.add_argument("--out", type=Path, default=Path("docs/zero_shot.png"))
    options = parser.parse_args()
    draw(options.runs).save(options.out, optimize=True)


if __name__ == "__main__":
    run_main(main)
