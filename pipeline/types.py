"""Data types that both phases share. All indices are 0-based."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np


@dataclass(frozen=True)
class ImageRecord:
    """One image of a dataset part.

    Attributes:
        id: file name, which identifies the image in annotations, caches and predictions.
        path: path of the file.
    """

    id: str
    path: Path


@dataclass(frozen=True, eq=False)
class Annotation:
    """Ground truth of one image.

    Attributes:
        image_id: file name of the image.
        boxes: (N, 4) float32, xyxy, pixels of the original image.
        labels: (N,) int64, object index of every box.
        hois: (K, 3) int64 rows (human box, object box, verb); the object box is -1 for a verb
            without object. One row per labelled verb, without duplicates.
        size: width and height of the image in pixels; None if the annotation file has no sizes.
        coco_image_id: id of the image in files of COCO and SWIG-HOI; None in other formats.
    """

    image_id: str
    boxes: np.ndarray
    labels: np.ndarray
    hois: np.ndarray
    size: tuple[int, int] | None = None
    coco_image_id: int | None = None


@dataclass(frozen=True, eq=False)
class Detections:
    """Predictions of a model for one image, in the form of an `Annotation`.

    Attributes:
        image_id: file name of the image.
        boxes: (N, 4) float32, xyxy, pixels of the original image.
        labels: (N,) int64, object index of every box.
        hois: (K, 3) int64 rows (human box, object box, verb).
        scores: (K,) float32, or float64 if read from a file; one for each row of `hois`.
    """

    image_id: str
    boxes: np.ndarray
    labels: np.ndarray
    hois: np.ndarray
    scores: np.ndarray

    @classmethod
    def empty(cls, image_id: str) -> Detections:
        """No detections for an image."""
        boxes, labels = np.zeros((0, 4), dtype=np.float32), np.zeros(0, dtype=np.int64)
        hois, scores = np.zeros((0, 3), dtype=np.int64), np.zeros(0, dtype=np.float32)
        return cls(image_id, boxes, labels, hois, scores)


@dataclass(frozen=True, eq=False)
class Pairs:
    """Human-object pairs of one image.

    Attributes:
        human_boxes, object_boxes: (P, 4) float32, xyxy, pixels of the original image.
        object_labels: (P,) int64, object indices.
        human_scores, object_scores: (P,) float32; 1 for annotated boxes.
        sources: (P,) uint8, 0 for annotated pairs, 1 for pairs of detected boxes.
    """

    human_boxes: np.ndarray
    object_boxes: np.ndarray
    object_labels: np.ndarray
    human_scores: np.ndarray
    object_scores: np.ndarray
    sources: np.ndarray

    def __len__(self) -> int:
        return len(self.object_labels)
