"""Boxes as numpy arrays: xyxy, pixels of the original image, x2 and y2 exclusive (no +1)."""

from __future__ import annotations

import numpy as np


def box_area(boxes: np.ndarray) -> np.ndarray:
    """(N,) areas in square pixels; 0 for boxes without positive width and height."""
    sides = np.maximum(boxes[:, 2:] - boxes[:, :2], 0)
    return sides[:, 0] * sides[:, 1]


def clip_boxes(boxes: np.ndarray, size: tuple[float, float] | np.ndarray) -> np.ndarray:
    """(N, 4) boxes clipped to the image, of the same dtype.

    `size` is width and height, or (N, 2) with one size per box; infinite where a size is unknown.
    """
    sides = np.asarray(size)
    limits = np.concatenate([sides, sides], axis=-1)
    return np.clip(boxes, 0, limits).astype(boxes.dtype, copy=False)


def boxes_to_upright(boxes: np.ndarray, orientation: int, size: tuple[float, float]) -> np.ndarray:
    """(N, 4) boxes in stored pixels, transformed to the upright image; same dtype.

    Args:
        boxes: (N, 4) xyxy, pixels of the image as stored in its file.
        orientation: EXIF orientation, 1 to 8.
        size: width and height of the stored image.
    """
    x1, y1, x2, y2 = boxes.T
    if orientation in (2, 3, 7, 8):
        x1, x2 = size[0] - x2, size[0] - x1
    if orientation in (3, 4, 6, 7):
        y1, y2 = size[1] - y2, size[1] - y1
    if orientation >= 5:
        x1, y1, x2, y2 = y1, x1, y2, x2
    return np.stack([x1, y1, x2, y2], axis=1).astype(boxes.dtype, copy=False)


def boxes_to_stored(boxes: np.ndarray, orientation: int, size: tuple[float, float]) -> np.ndarray:
    """Inverse of `boxes_to_upright`; `size` is that of the upright image."""
    # Orientations 6 and 8, rotations by 90 degrees, are inverse to each other; every other one is
    # its own inverse.
    return boxes_to_upright(boxes, {6: 8, 8: 6}.get(orientation, orientation), size)


def union_boxes(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """(N, 4) smallest boxes around pairs of (N, 4) boxes."""
    return np.concatenate(
        [np.minimum(first[:, :2], second[:, :2]), np.maximum(first[:, 2:], second[:, 2:])], axis=1
    )


def box_iou(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """(N, M) intersection over union of (N, 4) and (M, 4) boxes; 0 where neither has an area."""
    left_top = np.maximum(first[:, None, :2], second[None, :, :2])
    right_bottom = np.minimum(first[:, None, 2:], second[None, :, 2:])
    sides = np.maximum(right_bottom - left_top, 0)
    intersection = sides[..., 0] * sides[..., 1]
    union = box_area(first)[:, None] + box_area(second)[None, :] - intersection
    return intersection / np.where(union > 0, union, 1)
