"""Sample images of an evaluation: ground truth on the left, detections on the right."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from evaluation.drawing.interactions import draw_annotation, draw_detections
from evaluation.hico.matching import collect_triplets, match_triplets
from evaluation.hico.nms import pairwise_nms
from pipeline.images import read_image
from pipeline.types import Annotation, Detections, ImageRecord
from pipeline.utils.files import atomic_write
from pipeline.vocabulary import Vocabulary

# Name of the folder in a run folder.
SAMPLES_FOLDER = "pictures"
NUM_SAMPLES = 4
# In pixels: long side of each image, and the gap between the two.
LONG_SIDE = 512
GAP = 8
WHITE = (255, 255, 255)


def draw_samples(
    folder: Path,
    records: Sequence[ImageRecord],
    annotations: Sequence[Annotation],
    detections: Sequence[Detections],
    vocabulary: Vocabulary,
    unseen: Collection[int] = (),
) -> None:
    """Draws `NUM_SAMPLES` images, evenly spread over those with labels, so always the same ones.

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
        top = top_detections(detections[row], len(ground_truth.hois))
        tp_mask = _true_positive_mask(top, ground_truth, vocabulary)
        left = draw_annotation(image, ground_truth, vocabulary, unseen, LONG_SIDE)
        right = draw_detections(image, top, vocabulary, unseen, tp_mask, LONG_SIDE)
        sample = Image.new("RGB", (left.width + GAP + right.width, left.height), WHITE)
        sample.paste(left, (0, 0))
        sample.paste(right, (left.width + GAP, 0))
        with atomic_write(folder / f"{Path(records[row].id).stem}.png") as temporary:
            sample.save(temporary, "PNG")


def top_detections(detections: Detections, count: int) -> Detections:
    """The `count` best-scoring detections after pairwise NMS."""
    kept = pairwise_nms(detections)
    return replace(kept, hois=kept.hois[:count], scores=kept.scores[:count])


def _true_positive_mask(
    detections: Detections, ground_truth: Annotation, vocabulary: Vocabulary
) -> np.ndarray:
    """(K,) bool: true positives among the detections of one image."""
    image = np.zeros(1, dtype=np.int64)
    triplets = collect_triplets([detections], image, vocabulary)
    tp_mask = np.zeros(len(detections.hois), dtype=bool)
    tp_mask[triplets.source_rows] = match_triplets(
        triplets, collect_triplets([ground_truth], image, vocabulary)
    )
    return tp_mask
