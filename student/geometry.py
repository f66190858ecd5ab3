"""Where the pixels of augmented images go: DETR's flip, sizes and crop, drawn for many at once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor
from torchvision.transforms.v2 import functional as TF

SHORT_SIDES = tuple(range(480, 801, 32))
LONGEST_SIDE = 1333
SHORT_SIDES_BEFORE_CROP = (400, 500, 600)
WINDOW_SIDES = (384, 600)
# Flip, crop or not, short side before the crop, the window's height, width, top and left, short
# side at the end.
NUM_DRAWS = 8


@dataclass(frozen=True, eq=False)
class Geometries:
    """Where the pixels of N images go, in this order.

    Attributes:
        flips: (N,) bool, left becomes right.
        crops: (N,) bool, a window is cut out.
        resized: (N, 2) height and width from which it is cut.
        windows: (N, 4) its top, left, height and width.
        sizes: (N, 2) height and width in the end.
    """

    flips: np.ndarray
    crops: np.ndarray
    resized: np.ndarray
    windows: np.ndarray
    sizes: np.ndarray

    def apply(self, row: int, value: Tensor) -> Tensor:
        """The image of this row, or boxes on it (`tv_tensors`), moved to their places."""
        if self.flips[row]:
            value = TF.horizontal_flip(value)
        if self.crops[row]:
            value = TF.resize(value, self.resized[row].tolist(), antialias=True)
            value = TF.crop(value, *self.windows[row].tolist())
        return TF.resize(value, self.sizes[row].tolist(), antialias=True)


def draw_geometries(sizes: np.ndarray, draws: np.ndarray) -> Geometries:
    """DETR's augmentation: half the images are resized, half cropped between two resizes.

    Args:
        sizes: (N, 2) heights and widths of the images, in pixels.
        draws: (N, `NUM_DRAWS`) in [0, 1).
    """
    crops = draws[:, 1] >= 0.5
    resized = shortest_side_to(sizes, _choice(SHORT_SIDES_BEFORE_CROP, draws[:, 2]))
    least, most = (np.minimum(side, resized) for side in WINDOW_SIDES)
    windows = _whole(least, most, draws[:, 3:5])
    corners = _whole(np.zeros_like(resized), resized - windows, draws[:, 5:7])
    kept = np.where(crops[:, None], windows, sizes)
    return Geometries(
        flips=draws[:, 0] >= 0.5,
        crops=crops,
        resized=resized,
        windows=np.concatenate([corners, windows], axis=1),
        sizes=shortest_side_to(kept, _choice(SHORT_SIDES, draws[:, 7]), LONGEST_SIDE),
    )


def shortest_side_to(
    sizes: np.ndarray, short: np.ndarray, longest: int | None = None
) -> np.ndarray:
    """Sizes (N, 2) of the same shapes with the short sides (N,), long sides within `longest`."""
    low, high = sizes.min(1), sizes.max(1)
    long = short * high // low
    if longest is not None:
        short = np.where(long > longest, np.maximum(longest * low // high, 1), short)
        long = np.minimum(long, longest)
    upright = sizes[:, 0] > sizes[:, 1]
    return np.where(upright[:, None], np.stack([long, short], 1), np.stack([short, long], 1))


def _choice(values: tuple[int, ...], draws: np.ndarray) -> np.ndarray:
    return np.array(values)[(draws * len(values)).astype(np.int64)]


def _whole(low: np.ndarray, high: np.ndarray, draws: np.ndarray) -> np.ndarray:
    """Whole numbers from low to high, both included."""
    return low + (draws * (high - low + 1)).astype(np.int64)
