"""Boxes as numpy arrays: xyxy, pixels of the original image, x2 and y2 exclusive (no +1)."""

from __future__ import annotations

import numpy as np


def box_area(boxes: np.ndarray) -> np.ndarray:
    """Areas of boxes; 0 for boxes without positive width and height.

    Args:
        boxes: (N, 4) xyxy, pixels.

    Returns:
        (N,) square pixels.
    """
    sides = np.maximum(boxes[:, 2:] - boxes[:, :2], 0)
    return sides[:, 0] * sides[:, 1]


def clip_boxes(boxes: np.ndarray, size: tuple[float, float] | np.ndarray) -> np.ndarray:
    """Boxes clipped to the image.

    Args:
        boxes: (N, 4) xyxy, pixels.
        size: width and height of the image, or (N, 2) with one size per box; infinite where a size
            is unknown.

    Returns:
        (N, 4) of the same dtype, 0 <= x <= width and 0 <= y <= height.
    """
    sides = np.asarray(size)
    limits = np.concatenate([sides, sides], axis=-1)
    return np.clip(boxes, 0, limits).astype(boxes.dtype, copy=False)


def boxes_to_upright(boxes: np.ndarray, orientation: int, size: tuple[float, float]) -> np.ndarray:
    """Boxes in stored pixels, transformed to the upright image that the EXIF tag describes.

    Args:
        boxes: (N, 4) xyxy, pixels of the image as stored in its file.
        orientation: EXIF orientation, 1 to 8.
        size: width and height of the stored image.

    Returns:
        (N, 4) of the same dtype, xyxy, pixels of the upright image.
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
    """Inverse of `boxes_to_upright`.

    Args:
        boxes: (N, 4) xyxy, pixels of the upright image.
        orientation: EXIF orientation, 1 to 8.
        size: width and height of the upright image.

    Returns:
        (N, 4) of the same dtype, xyxy, pixels of the stored image.
    """
    # Orientations 6 and 8, rotations by 90 degrees, are inverse to each other; every other one is
    # its own inverse.
    return boxes_to_upright(boxes, {6: 8, 8: 6}.get(orientation, orientation), size)


def union_boxes(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """The smallest box around each pair of boxes.

    Args:
        first, second: (N, 4) xyxy, pixels.

    Returns:
        (N, 4) xyxy, pixels.
    """
    return np.concatenate(
        [np.minimum(first[:, :2], second[:, :2]), np.maximum(first[:, 2:], second[:, 2:])], axis=1
    )


def box_iou(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Intersection over union of every box with every box; 0 where neither has an area.

    Args:
        first: (N, 4) xyxy, pixels.
        second: (M, 4) xyxy, pixels.

    Returns:
        (N, M) in [0, 1].
    """
    left_top = np.maximum(first[:, None, :2], second[None, :, :2])
    right_bottom = np.minimum(first[:, None, 2:], second[None, :, 2:])
    sides = np.maximum(right_bottom - left_top, 0)
    intersection = sides[..., 0] * sides[..., 1]
    union = box_area(first)[:, None] + box_area(second)[None, :] - intersection
    return intersection / np.where(union > 0, union, 1)
