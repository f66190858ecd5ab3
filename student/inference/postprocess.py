"""Post-processing: the 100 highest-scoring interactions of each image (EoID 3.5), and which of them
are kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import box_convert, clip_boxes_to_image

from evaluation.hico.nms import NmsConfig, pairwise_nms
from pipeline.types import Detections
from pipeline.utils.errors import InputError
from pipeline.vocabulary import Vocabulary

NUM_DETECTIONS = 100


@dataclass(frozen=True)
class SelectionConfig:
    """Which of an image's detections are kept.

    Attributes:
        threshold: minimum score of an interaction.
        top: maximum number of interactions per image.
        nms: settings of a pairwise NMS that is applied first; None applies none.
        no_interaction: also keep the verb `no_interaction`, which benchmarks score like others. A
            user who asks for interactions gets none of it.

    Raises:
        InputError: a value is out of range.
    """

    threshold: float = 0.3
    top: int = 10
    nms: NmsConfig | None = None
    no_interaction: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.threshold <= 1:
            raise InputError(f"threshold: expected a score from 0 to 1, found {self.threshold}")
        if self.top < 1:
            raise InputError(f"top: expected at least 1, found {self.top}")

    def select(self, detections: Detections, vocabulary: Vocabulary) -> Detections:
        """The kept detections; all boxes remain."""
        if self.nms is not None:
            detections = pairwise_nms(detections, self.nms)
        is_kept = detections.scores >= self.threshold
        if not self.no_interaction:
            is_kept &= detections.hois[:, 2] != vocabulary.no_interaction
        kept = np.flatnonzero(is_kept)[: self.top]
        return replace(detections, hois=detections.hois[kept], scores=detections.scores[kept])


@torch.no_grad()
def select_detections(
    outputs: dict[str, Any],
    image_ids: Sequence[str],
    sizes: Sequence[tuple[int, int]],
    vocabulary: Vocabulary,
    max_detections: int = NUM_DETECTIONS,
) -> list[Detections]:
    """Selects the highest-scoring interactions of every image.

    A query's object is the most probable class except "no pair". The score of a verb is its sigmoid
    probability times the object's softmax probability; verb-object pairs that are no interaction of
    the vocabulary are left out. In a vocabulary with roles (V-COCO), every verb can also be without
    object, with the probability of the class after the objects: "no pair", or the additional class
    of published V-COCO models.

    Args:
        outputs: the model's outputs for B images, see `HOIDetector`.
        image_ids: B file names.
        sizes: (width, height) of the B original images, in pixels.
        vocabulary: the model's vocabulary.
        max_detections: maximum number of interactions per image.

    Returns:
        One `Detections` per image in descending order of score, with xyxy boxes in pixels of the
        original image. Every kept query has two boxes: the human's in an even row and the object's
        in the next row.
    """
    valid = torch.from_numpy(vocabulary.valid.T.copy()).to(outputs["pred_object_logits"].device)
    top_scores, top, labels = top_entries(outputs, valid, bool(vocabulary.roles), max_detections)
    pairs = torch.stack([outputs["pred_human_boxes"], outputs["pred_object_boxes"]], dim=2)

    host_boxes = box_convert(pairs.float(), "cxcywh", "xyxy").cpu()
    scores, entries, host_labels = (value.cpu().numpy() for value in (top_scores, top, labels))
    return [
        _image_detections(
            image_id,
            _to_pixels(host_boxes[row], sizes[row]),
            host_labels[row],
            scores[row][scores[row] >= 0],
            entries[row][scores[row] >= 0],
            vocabulary,
        )
        for row, image_id in enumerate(image_ids)
    ]


def top_entries(
    outputs: dict[str, Any], valid: Tensor, allow_no_object: bool, max_detections: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Selects the highest-scoring (query, with or without object, verb) entries of every image.

    Args:
        outputs: the model's outputs for B images and Q queries.
        valid: (O, V) bool, whether object and verb form an interaction.
        allow_no_object: also score verbs without object.
        max_detections: maximum number of entries per image.

    Returns:
        scores: (B, K) float32, descending, -1 for pairs that are no interaction.
        entries: (B, K) int64, flat indices into (Q, V), or into (Q, 2, V) with `allow_no_object`,
            where index 1 of the middle axis is the verb without object.
        labels: (B, Q) int64, object indices of all queries.
    """
    num_objects = valid.shape[0]
    probability = outputs["pred_object_logits"].float().softmax(-1)
    objects, labels = probability[..., :num_objects].max(-1)
    verbs = outputs["pred_verb_logits"].float().sigmoid()
    # -1 is below every score: it is selected only in images with fewer than K valid entries.
    scores = torch.where(valid[labels], verbs * objects[..., None], -1.0)
    if allow_no_object:
        scores = torch.cat([scores, verbs * probability[..., num_objects, None]], dim=-1)
    flat = scores.flatten(1)
    top_scores, top = flat.topk(min(max_detections, flat.shape[1]), dim=1)
    return top_scores, top, labels


def _image_detections(
    image_id: str,
    boxes: np.ndarray,
    labels: np.ndarray,
    scores: np.ndarray,
    entries: np.ndarray,
    vocabulary: Vocabulary,
) -> Detections:
    """Detections of one image, from (Q, 2, 4) xyxy boxes in pixels, human and object, and the
    results of `top_entries`: (Q,) labels, (K,) scores and entries.
    """
    choices, verbs = np.divmod(entries, vocabulary.num_verbs)
    queries, without_object = np.divmod(choices, 2 if vocabulary.roles else 1)
    kept, rows = np.unique(queries, return_inverse=True)
    objects = np.where(without_object, -1, 2 * rows + 1)
    box_labels = np.stack([np.full(len(kept), vocabulary.person), labels[kept]], axis=1)
    return Detections(
        image_id=image_id,
        boxes=boxes[kept].reshape(-1, 4),
        labels=box_labels.reshape(-1).astype(np.int64),
        hois=np.stack([2 * rows, objects, verbs], axis=1).astype(np.int64),
        scores=scores,
    )


def _to_pixels(boxes: Tensor, size: tuple[int, int]) -> np.ndarray:
    """Scales (Q, 2, 4) xyxy boxes in [0, 1] to pixels of a (width, height) image, clipped to it."""
    width, height = size
    scaled = boxes * torch.tensor([width, height, width, height], dtype=boxes.dtype)
    return clip_boxes_to_image(scaled, (height, width)).numpy()
