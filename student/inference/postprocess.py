"""From the model's outputs to detections in the pixels of the original images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import box_convert, clip_boxes_to_image

from pipeline.types import Detections
from pipeline.vocabulary import Vocabulary

NUM_DETECTIONS = 100


@torch.no_grad()
def to_detections(
    outputs: dict[str, Any],
    image_ids: Sequence[str],
    sizes: Sequence[tuple[int, int]],
    vocabulary: Vocabulary,
    max_detections: int = NUM_DETECTIONS,
) -> list[Detections]:
    """The best interactions of every image (EoID 3.5).

    A query's object is the best class beside "no pair"; the score of a verb is its probability
    times that class's. Verbs that form no interaction with the object are left out. In a vocabulary
    with roles (V-COCO's) every verb may also have no object, at the probability of the class after
    the objects: "no pair", or the class of its own that published V-COCO models have for it.

    Args:
        outputs: the model's, for B images.
        image_ids: B file names.
        sizes: (width, height) of the B original images, in pixels.
        vocabulary: the one the model was built for.
        max_detections: interactions kept per image.

    Returns:
        One `Detections` per image, best score first. Every kept query has two boxes: its person's
        in an even row, its object's in the odd row after it.
    """
    valid = torch.from_numpy(vocabulary.valid.T.copy()).to(outputs["pred_object_logits"].device)
    top_scores, top, labels = top_entries(outputs, valid, bool(vocabulary.roles), max_detections)
    pairs = torch.stack([outputs["pred_human_boxes"], outputs["pred_object_boxes"]], dim=2)

    host_scores, host_top, host_labels = (
        tensor.cpu().numpy() for tensor in (top_scores, top, labels)
    )
    host_boxes = box_convert(pairs.float(), "cxcywh", "xyxy").cpu()
    return [
        _image_detections(
            image_id,
            _to_pixels(host_boxes[row], sizes[row]),
            host_labels[row],
            *_drop_invalid(host_scores[row], host_top[row]),
            vocabulary,
        )
        for row, image_id in enumerate(image_ids)
    ]


def top_entries(
    outputs: dict[str, Any], valid: Tensor, allow_no_object: bool, max_detections: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The best (query, with or without object, verb) entries of every image.

    Args:
        outputs: the model's, for B images and Q queries.
        valid: (O, V) bool, which verbs go with which object.
        allow_no_object: verbs may also have no object.
        max_detections: entries kept per image, as far as there are as many.

    Returns:
        (B, K) scores, falling, -1 for entries that are no interaction; (B, K) entries, which count
        queries, then (where verbs may be alone) with or without object, then verbs; and (B, Q) the
        object indices of all queries.
    """
    num_objects = valid.shape[0]
    probability = outputs["pred_object_logits"].float().softmax(-1)
    objects, labels = probability[..., :num_objects].max(-1)
    verbs = outputs["pred_verb_logits"].float().sigmoid()
    # Below every score, so that only an image with too few valid pairs comes to them.
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
    """Boxes (Q, 2, 4), labels (Q,), scores and entries (K,); an entry counts queries, then with or
    (in a vocabulary with roles) without object, then verbs."""
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


def _drop_invalid(scores: np.ndarray, entries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return scores[scores >= 0], entries[scores >= 0]


def _to_pixels(boxes: Tensor, size: tuple[int, int]) -> np.ndarray:
    """(Q, 2, 4) xyxy in [0, 1] to pixels of a (width, height) image, inside it."""
    width, height = size
    scaled = boxes * torch.tensor([width, height, width, height], dtype=boxes.dtype)
    return clip_boxes_to_image(scaled, (height, width)).numpy()
