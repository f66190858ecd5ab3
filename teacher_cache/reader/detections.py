"""Cached pairs as detections of interactions, by which a teacher or a probe is scored."""

from __future__ import annotations

import numpy as np

from pipeline.types import Detections
from pipeline.vocabulary import Vocabulary
from teacher_cache.reader.format import PROPOSED, TeacherOutputs

# Detections per image that HICO-DET's protocol evaluates.
MAX_TRIPLETS = 100


def pair_detections(
    image_id: str, outputs: TeacherOutputs, vocabulary: Vocabulary, source: int = PROPOSED
) -> Detections:
    """The cached pairs of an image as detections of interactions.

    The score of a pair and verb is the verb's probability times both detector scores. The 100
    highest ones are kept; equal boxes become one box.

    Args:
        image_id: id of the image.
        outputs: pairs and probabilities of the image, the teacher's or a probe's.
        vocabulary: the cache's vocabulary.
        source: `ANNOTATED` or `PROPOSED`, the pairs to use.
    """
    selected = outputs.pairs.sources == source
    weights = outputs.pairs.human_scores * outputs.pairs.object_scores * selected
    scores = outputs.probabilities * weights[:, None]
    # A stable sort, so that equal scores are cut off in the same way on all machines.
    order = np.argsort(-scores, axis=None, kind="stable")[:MAX_TRIPLETS]
    order = order[scores.ravel()[order] > 0]
    pair, verb = np.unravel_index(order, scores.shape)
    person_labels = np.full(len(pair), vocabulary.person, dtype=np.int64)
    boxes = np.concatenate([outputs.pairs.human_boxes[pair], outputs.pairs.object_boxes[pair]])
    labels = np.concatenate([person_labels, outputs.pairs.object_labels[pair]])
    distinct, rows = np.unique(np.column_stack([boxes, labels]), axis=0, return_inverse=True)
    human_rows, object_rows = rows.reshape(2, -1)
    return Detections(
        image_id=image_id,
        boxes=distinct[:, :4].astype(np.float32),
        labels=distinct[:, 4].astype(np.int64),
        hois=np.stack([human_rows, object_rows, verb], axis=1),
        scores=scores.ravel()[order].astype(np.float32),
    )
