"""Predictions of several processes become one list in which every image counts once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from pipeline.errors import InputError
from pipeline.types import Detections

FIELDS = ("boxes", "labels", "hois", "scores")


def merge_predictions(
    parts: Iterable[Sequence[Detections]], image_ids: Sequence[str]
) -> list[Detections]:
    """Joins what each process predicted, by image id.

    A sampler that fills up its last round hands some images to two processes; equal predictions
    for an image count once.

    Args:
        parts: the predictions of each process, in any order.
        image_ids: the images that were to be predicted, each once.

    Returns:
        One entry for each of `image_ids`, in their order, however many processes there were.

    Raises:
        InputError: two predictions for an image differ, an image was predicted that nobody asked
            for, or one was left out.
    """
    found: dict[str, Detections] = {}
    for part in parts:
        for item in part:
            known = found.setdefault(item.image_id, item)
            if known is not item and not _equal(known, item):
                raise InputError(
                    f"{item.image_id}: expected one prediction, found two that differ"
                    " (of two processes, or of two runs)"
                )
    missing = [image_id for image_id in image_ids if image_id not in found]
    if missing:
        raise InputError(
            f"predictions: expected all {len(image_ids)} images, found none for {len(missing)},"
            f" the first being {missing[0]}"
        )
    if len(found) > len(image_ids):
        others = sorted(found.keys() - set(image_ids))
        raise InputError(
            f"predictions: expected {len(image_ids)} images, found {len(others)} others,"
            f" the first being {others[0]}"
        )
    return [found[image_id] for image_id in image_ids]


def _equal(first: Detections, second: Detections) -> bool:
    return all(np.array_equal(getattr(first, name), getattr(second, name)) for name in FIELDS)
