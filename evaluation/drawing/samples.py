"""Pictures of an evaluation: what people labelled on the left, what the model says on the right."""

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

SAMPLES_FOLDER = "pictures"
NUM_SAMPLES = 4
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
    """Draws a few images, chosen by their place among those with labels, and so always the same.

    Args:
        folder: one PNG is written into it for every chosen image.
        records, annotations, detections: of the same images in the same order.
        unseen: HOI indices to mark with a star.
    """
    able = [row for row, one in enumerate(annotations) if len(one.hois)]
    places = np.linspace(0, len(able) - 1, min(NUM_SAMPLES, len(able))).round().astype(int)
    for row in [able[place] for place in places]:
        image, ground_truth = read_image(records[row].path), annotations[row]
        found = top_detections(detections[row], len(ground_truth.hois))
        tp_mask = _true_positive_mask(found, ground_truth, vocabulary)
        left = draw_annotation(image, ground_truth, vocabulary, unseen, LONG_SIDE)
        right = draw_detections(image, found, vocabulary, unseen, tp_mask, LONG_SIDE)
        both = Image.new("RGB", (left.width + GAP + right.width, left.height), WHITE)
        both.paste(left, (0, 0))
        both.paste(right, (left.width + GAP, 0))
        with atomic_write(folder / f"{Path(records[row].id).stem}.png") as temporary:
            both.save(temporary, "PNG")


def top_detections(detections: Detections, count: int) -> Detections:
    """The best-scoring detections after pairwise NMS, as many as asked for."""
    found = pairwise_nms(detections)
    return replace(found, hois=found.hois[:count], scores=found.scores[:count])


def _true_positive_mask(
    found: Detections, ground_truth: Annotation, vocabulary: Vocabulary
) -> np.ndarray:
    """(K,) bool: which of the detections are right."""
    alone = np.zeros(1, dtype=np.int64)
    triplets = collect_triplets([found], alone, vocabulary)
    tp_mask = np.zeros(len(found.hois), dtype=bool)
    tp_mask[triplets.source_rows] = match_triplets(
        triplets, collect_triplets([ground_truth], alone, vocabulary)
    )
    return tp_mask
