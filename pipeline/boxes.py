"""Boxes as numpy arrays: xyxy, pixels of the original image, x2 and y2 exclusive (no +1)."""

from __future__ import annotations

import numpy as np


def box_area(boxes: np.ndarray) -> np.ndarray:
    """Areas of boxes; 0 where a box has none.

    Args:
        boxes: (N, 4) xyxy, pixels.

    Returns:
        (N,) square pixels.
    """
    sides = np.maximum(boxes[:, 2:] - boxes[:, :2], 0)
    return sides[:, 0] * sides[:, 1]


def clip_boxes(boxes: np.ndarray, size: tuple[float, float] | np.ndarray) -> np.ndarray:
    """Boxes cut at the image's edges.

    Args:
        boxes: (N, 4) xyxy, pixels.
        size: width and height of the image, or (N, 2), of every box's own; infinity where one is
            unknown.

    Returns:
        (N, 4) of the same type, 0 <= x <= width and 0 <= y <= height.
    """
    sides = np.asarray(size)
    limits = np.concatenate([sides, sides], axis=-1)
    return np.clip(boxes, 0, limits).astype(boxes.dtype, copy=False)


def boxes_to_upright(boxes: np.ndarray, orientation: int, size: tuple[float, float]) -> np.ndarray:
    """Boxes of a picture as it lies in its file, in the picture that EXIF turns upright.

    Args:
        boxes: (N, 4) xyxy, stored pixels.
        orientation: EXIF's, 1 to 8.
        size: width and height of the stored picture.

    Returns:
        (N, 4) of the same type, xyxy, upright pixels.
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
    """The reverse of `boxes_to_upright`.

    Args:
        boxes: (N, 4) xyxy, upright pixels.
        orientation: EXIF's, 1 to 8.
        size: width and height of the upright picture.

    Returns:
        (N, 4) of the same type, xyxy, stored pixels.
    """
    # All turns are their own reverse but those by 90 degrees, which are each other's.
    return boxes_to_upright(boxes, {6: 8, 8: 6}.get(orientation, orientation), size)


def union_boxes(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """The smallest boxes around pairs of boxes.

    Args:
        first, second: (N, 4) xyxy, pixels.

    Returns:
        (N, 4) xyxy, pixels.
    """
    return np.concatenate(
        [np.minimum(first[:, :2], second[:, :2]), np.maximum(first[:, 2:], second[:, 2:])], axis=1
    )


def box_iou(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Intersection over union of all boxes with all boxes; 0 where neither has an area.

    Args:
        first: (N, 4) xyxy, pixels.
        second: (M, 4) xyxy, pixels.

    Returns:
        (N, M) in [0, 1].
    """
    corner = np.maximum(first[:, None, :2], second[None, :, :2])
    opposite = np.minimum(first[:, None, 2:], second[None, :, 2:])
    sides = np.maximum(opposite - corner, 0)
    shared = sides[..., 0] * sides[..., 1]
    together = box_area(first)[:, None] + box_area(second)[None, :] - shared
    return shared / np.where(together > 0, together, 1)
