"""Sample images of an evaluation: ground truth on the left, prediction on the right."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from evaluation.drawing.canvas import LABEL_COLOUR, WHITE, load_font, tile_images
from evaluation.drawing.interactions import draw_interactions
from evaluation.hico.matching import collect_triplets, match_triplets
from evaluation.hico.nms import pairwise_nms
from pipeline.images import read_image
from pipeline.types import Annotation, Detections, ImageRecord
from pipeline.utils.files import atomic_write
from pipeline.vocabulary import Vocabulary

# Name of the folder in a run folder.
SAMPLES_FOLDER = "pictures"
NUM_SAMPLES = 4
# In pixels: long side of each image, the gap between the two, height and font size of their titles.
LONG_SIDE, GAP = 512, 8
TITLE_HEIGHT, TITLE_SIZE = 24, 14


def draw_samples(
    folder: Path,
    records: Sequence[ImageRecord],
    annotations: Sequence[Annotation],
    detections: Sequence[Detections],
    vocabulary: Vocabulary,
    unseen: Collection[int] = (),
) -> None:
    """Draws `NUM_SAMPLES` images, evenly spread over those with labels, so always the same ones.

    As many detections are drawn as there are labels, the best-scoring ones after pairwise NMS.

    Args:
        folder: a PNG file is written into it for every sample.
        records, annotations, detections: of the same images in the same order.
        unseen: HOI indices to mark with a star.
    """
    labelled = [row for row, annotation in enumerate(annotations) if len(annotation.hois)]
    count = min(NUM_SAMPLES, len(labelled))
    for index in np.linspace(0, len(labelled) - 1, count).round().astype(int):
        row = labelled[index]
        image, ground_truth = read_image(records[row].path), annotations[row]
        kept, number = pairwise_nms(detections[row]), len(ground_truth.hois)
        top = replace(kept, hois=kept.hois[:number], scores=kept.scores[:number])
        (tp_mask,) = true_positive_masks([top], [ground_truth], vocabulary)
        truth = draw_interactions(image, ground_truth, vocabulary, unseen, long_side=LONG_SIDE)
        found = draw_interactions(image, top, vocabulary, unseen, tp_mask, LONG_SIDE)
        drawings = [_add_title(truth, "ground truth"), _add_title(found, "prediction")]
        with atomic_write(folder / f"{Path(records[row].id).stem}.png") as temporary:
            tile_images(drawings, 2, GAP, "white").save(temporary, "PNG")


def _add_title(drawing: Image.Image, title: str) -> Image.Image:
    strip = Image.new("RGB", (drawing.width, TITLE_HEIGHT), LABEL_COLOUR)
    middle = TITLE_HEIGHT / 2
    ImageDraw.Draw(strip).text((middle, middle), title, WHITE, load_font(TITLE_SIZE), anchor="lm")
    return tile_images([strip, drawing], 1, 0, "white")


def sample_sheet(folder: Path) -> Image.Image | None:
    """The drawings of `draw_samples` in a folder, one below the other; None without any."""
    drawings = []
    for file in sorted(folder.glob("*.png")):
        with Image.open(file) as drawing:
            drawings.append(drawing.convert("RGB"))
    return tile_images(drawings, 1, GAP, "white") if drawings else None


def true_positive_masks(
    detections: Sequence[Detections], annotations: Sequence[Annotation], vocabulary: Vocabulary
) -> list[np.ndarray]:
    """(K,) bool for each image: true positives among its detections.

    Args:
        detections, annotations: of the same images in the same order.
    """
    images = np.arange(len(annotations))
    triplets = collect_triplets(detections, images, vocabulary)
    labelled = collect_triplets(annotations, images, vocabulary)
    ends = np.cumsum([0, *(len(item.hois) for item in detections)])
    tp_mask = np.zeros(ends[-1], dtype=bool)
    tp_mask[triplets.source_rows] = match_triplets(triplets, labelled)
    return [tp_mask[start:end] for start, end in pairwise(ends)]
