"""Placement of labels beside their boxes, clear of each other, of faces and of other boxes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

# Costs of a label's position, relative to a distance of one label height. Labels overlap only if
# there is no free position at all, and then little. A box or face costs this if the label covers
# all of it, or is covered by it.
LABEL_OVERLAP_COST = 1000.0
BOX_COST, OBJECT_COST, FACE_COST = 1.0, 2.0, 6.0
# Beside the second box of a pair instead of the first.
SECOND_BOX_COST = 0.7


def face_boxes(people: np.ndarray) -> np.ndarray:
    """(N, 4) where the faces of people with (N, 4) xyxy boxes probably are."""
    x1, y1, x2, y2 = people.T
    width, height = x2 - x1, y2 - y1
    bottom = y1 + np.minimum(0.35 * height, 0.8 * width)
    return np.stack([x1 + 0.2 * width, y1, x2 - 0.2 * width, bottom], axis=1)


def place_labels(
    anchors: Sequence[np.ndarray],
    sizes: np.ndarray,
    image_size: tuple[int, int],
    obstacles: np.ndarray,
    costs: np.ndarray,
    gap: float,
    placed: np.ndarray,
) -> np.ndarray:
    """Positions of labels, chosen one after the other, each with the lowest cost.

    Args:
        anchors: for each of N labels (1 or 2, 4) xyxy boxes; the best position is directly above
            the first box.
        sizes: (N, 2) label widths and heights.
        image_size: width and height of the image.
        obstacles: (M, 4) xyxy boxes that labels should not cover.
        costs: (M,) cost of covering each of them.
        gap: free distance between labels, and to the edge of the image.
        placed: (P, 4) xyxy labels that have their positions.

    Returns:
        (N, 2) top left corners. All lengths are in pixels of the image.
    """
    chosen = np.zeros((len(anchors), 2))
    obstacle_areas = (obstacles[:, 2:] - obstacles[:, :2]).prod(axis=1)
    # Tall labels first, as they are the hardest to place.
    for row in np.argsort(-sizes[:, 1], kind="stable"):
        corners = _candidate_corners(anchors[row], sizes[row], image_size, gap)
        labels, area = np.hstack([corners, corners + sizes[row]]), sizes[row].prod()
        cost = np.min(
            [
                _label_distance(labels, anchor, gap) / sizes[row, 1] + number * SECOND_BOX_COST
                for number, anchor in enumerate(anchors[row])
            ],
            axis=0,
        )
        overlap = _overlap_areas(labels + np.array([-gap, -gap, gap, gap]), placed)
        # The share alone would let a large label cover a small one.
        cost += LABEL_OVERLAP_COST * ((overlap > 0) + overlap / area).sum(axis=1)
        smaller_areas = np.maximum(np.minimum(obstacle_areas, area), 1)
        cost += (_overlap_areas(labels, obstacles) / smaller_areas) @ costs
        best = int(np.argmin(cost))
        chosen[row] = corners[best]
        placed = np.vstack([placed, labels[best]])
    return chosen


def _candidate_corners(
    anchors: np.ndarray, size: np.ndarray, image_size: tuple[int, int], gap: float
) -> np.ndarray:
    """(C, 2) top left corners: directly above, below and inside the anchors, and a grid over the
    image; clipped so that the label and a gap around it are inside the image if it fits."""
    width, height = size
    steps = max(float(height) / 3, 1.0)
    at_anchors = [
        (x, y)
        for x1, y1, x2, y2 in anchors
        for y in (y1 - height, y2, y1, y2 - height)
        for x in (x1, (x1 + x2 - width) / 2, x2 - width)
    ]
    grid = np.mgrid[0 : image_size[0] : steps, 0 : image_size[1] : steps].reshape(2, -1).T
    corners = np.vstack([at_anchors, grid])
    last = np.maximum(np.array(image_size) - size, 0)
    return np.clip(corners, np.minimum(gap, last / 2), np.maximum(last - gap, last / 2))


def _label_distance(labels: np.ndarray, anchor: np.ndarray, gap: float) -> np.ndarray:
    """(C,) distance of labels from the position directly above the anchor."""
    dx = np.abs((labels[:, 0] + labels[:, 2] - anchor[0] - anchor[2]) / 2)
    slack = (labels[:, 2] - labels[:, 0] + anchor[2] - anchor[0]) / 2
    above = np.abs(labels[:, 3] + gap - anchor[1])
    below = np.abs(labels[:, 1] - gap - anchor[3]) + (labels[:, 3] - labels[:, 1]) / 2
    # Horizontal shifts cost little while label and anchor overlap horizontally, else in full.
    return np.minimum(above, below) + 0.25 * dx + np.maximum(dx - slack, 0)


def _overlap_areas(labels: np.ndarray, others: np.ndarray) -> np.ndarray:
    """(C, M) area that each label shares with each of the other boxes."""
    low = np.maximum(labels[:, None, :2], others[:, :2])
    high = np.minimum(labels[:, None, 2:], others[:, 2:])
    return np.clip(high - low, 0, None).prod(axis=2)
