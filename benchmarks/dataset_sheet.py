"""Draws the labels of all images of a dataset folder into one JPEG, as in the documentation."""

from __future__ import annotations

import argparse
from collections.abc import Collection
from itertools import groupby
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.program import run_main
from evaluation.drawing.canvas import tile_images
from evaluation.drawing.interactions import draw_interactions
from pipeline.datasets.dataset import Dataset, open_dataset
from pipeline.images import read_image
from pipeline.splits import FULL, load_split

# In pixels; the width is that of the documentation's pages. About two photographs fit into a row of
# this ratio of width to height.
WIDTH, GAP, ROW_RATIO = 736, 6, 2.9
JPEG_QUALITY = 66


def draw_sheet(dataset: Dataset, unseen: Collection[int] = ()) -> Image.Image:
    """Draws images in rows of about equal width.

    Args:
        dataset: all images of its parts are drawn, each with its labels if it has any.
        unseen: HOI indices to mark with a star.
    """
    annotations = [dataset.load(part) for part in dataset.parts]
    images = [read_image(record.path) for part in annotations for record in dataset.records(part)]
    labels = [annotation for part in annotations for annotation in part.annotations]
    ratios = np.array([image.width / image.height for image in images])
    num_rows = max(1, round(ratios.sum() / ROW_RATIO))
    row_indices = ((ratios.cumsum() - ratios / 2) / ratios.sum() * num_rows).astype(int)
    rows = []
    for _, group in groupby(range(len(images)), key=row_indices.__getitem__):
        row = list(group)
        height = (WIDTH - GAP * (len(row) - 1)) / ratios[row].sum()
        drawings = [
            draw_interactions(
                images[index],
                labels[index],
                dataset.vocabulary,
                unseen,
                long_side=round(height * max(1, ratios[index])),
            )
            for index in row
        ]
        rows.append(tile_images(drawings, len(row), GAP, "white"))
    return tile_images(rows, 1, GAP, "white")


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, help="dataset folder")
    parser.add_argument("--split", default=FULL, help="its unseen interactions get a star")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    dataset = open_dataset(options.data)
    unseen = load_split(dataset.vocabulary, options.split).unseen
    draw_sheet(dataset, unseen).save(options.out, "JPEG", quality=JPEG_QUALITY, optimize=True)


if __name__ == "__main__":
    run_main(main)
