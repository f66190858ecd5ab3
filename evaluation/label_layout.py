"""Where labels go on a picture: near what they name, never over each other."""

from __future__ import annotations

import numpy as np

# Costs in label heights of distance: overlap of labels is out of the question while there is any
# room; hiding what the boxes show is bad but better than going far away.
LABEL_OVERLAP = 1000.0
BOX_OVERLAP = 2.5


def place_labels(
    anchors: np.ndarray,
    sizes: np.ndarray,
    picture: tuple[int, int],
    boxes: np.ndarray,
    gap: float,
) -> np.ndarray:
    """Places labels one after the other, each where it costs least.

    Args:
        anchors: (N, 4) xyxy boxes that the labels name; a label wants to sit on top of its own.
        sizes: (N, 2) label widths and heights.
        picture: width and height.
        boxes: (M, 4) xyxy boxes, better left uncovered.
        gap: free pixels wanted between labels.

    Returns:
        (N, 2) top left corners. All lengths in pixels of the picture.
    """
    places = np.zeros((len(anchors), 2))
    # Tall labels first: they are the hardest to place.
    order = np.argsort(-sizes[:, 1], kind="stable") if len(sizes) else np.zeros(0, dtype=int)
    taken = np.zeros((0, 4))
    for row in order:
        corners = _candidates(anchors[row], sizes[row], picture)
        labels = np.hstack([corners, corners + sizes[row]])
        height = sizes[row, 1]
        distance = _distance(labels, anchors[row], gap) / height
        area = sizes[row].prod()
        crowded = _overlap(labels + np.array([-gap, -gap, gap, gap]), taken) / area
        covered = _overlap(labels, boxes) / area
        cost = distance + LABEL_OVERLAP * crowded + BOX_OVERLAP * np.minimum(covered, 2)
        places[row] = corners[int(np.argmin(cost))]
        taken = np.vstack([taken, np.hstack([places[row], places[row] + sizes[row]])])
    return places


def _candidates(anchor: np.ndarray, size: np.ndarray, picture: tuple[int, int]) -> np.ndarray:
    """(C, 2) corners: directly above, below and inside the anchor, then a grid over the picture;
    all inside the picture as far as the label fits."""
    x1, y1, x2, y2 = anchor
    width, height = size
    middle = (x1 + x2 - width) / 2
    own = [(x, y) for y in (y1 - height, y2, y1, y2 - height) for x in (x1, middle, x2 - width)]
    steps = max(float(height) / 3, 1.0)
    grid_x, grid_y = np.meshgrid(np.arange(0, picture[0], steps), np.arange(0, picture[1], steps))
    corners = np.vstack([np.array(own), np.column_stack([grid_x.ravel(), grid_y.ravel()])])
    room = np.maximum(np.array(picture) - size, 0)
    return np.clip(corners, 0, room)


def _distance(labels: np.ndarray, anchor: np.ndarray, gap: float) -> np.ndarray:
    """(C,) how far labels are from sitting on the anchor's upper edge."""
    dx = np.abs((labels[:, 0] + labels[:, 2] - anchor[0] - anchor[2]) / 2)
    slack = (labels[:, 2] - labels[:, 0] + anchor[2] - anchor[0]) / 2
    above = np.abs(labels[:, 3] + gap - anchor[1])
    below = np.abs(labels[:, 1] - gap - anchor[3]) + (labels[:, 3] - labels[:, 1]) / 2
    # Within the anchor's reach sideways shifts cost little, beyond it they cost in full.
    return np.minimum(above, below) + 0.25 * dx + np.maximum(dx - slack, 0)


def _overlap(labels: np.ndarray, others: np.ndarray) -> np.ndarray:
    """(C,) area of each label under any of the other boxes, counted once for each."""
    # Other by other, over long columns: tables of pairs of corners take three times as long.
    left, top, right, bottom = np.ascontiguousarray(labels.T)
    shared = np.zeros(len(labels))
    for x1, y1, x2, y2 in others.tolist():
        width = np.minimum(right, x2) - np.maximum(left, x1)
        height = np.minimum(bottom, y2) - np.maximum(top, y1)
        shared += np.maximum(width, 0) * np.maximum(height, 0)
    return shared
