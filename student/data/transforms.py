"""Random changes of training images, boxes following (torchvision.transforms.v2)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as TF

Values = dict[str, Tensor]


class Augmentation(Protocol):
    """A random change of images with their boxes.

    Where pixels go hangs on drawn numbers alone, so that the sizes of all images of an epoch are
    known before one of them is read; colours draw from torch's generator.
    """

    def __call__(self, values: Values, draws: np.ndarray) -> Values:
        """Changes `values["image"]` and the boxes beside it (`tv_tensors`) together.

        Args:
            values: an image and boxes by name.
            draws: (`NUM_DRAWS`,) in [0, 1).
        """
        ...

    def sizes(self, sizes: np.ndarray, draws: np.ndarray) -> np.ndarray:
        """The sizes that images end with.

        Args:
            sizes: (N, 2) heights and widths of the images.
            draws: (N, `NUM_DRAWS`) in [0, 1).

        Returns:
            (N, 2) heights and widths after the change.
        """
        ...


class PublishedAugmentation:
    """DETR's: flip, colour jitter, then a resize, or a resize, a random crop and a resize."""

    def __init__(self) -> None:
        self.colours = v2.ColorJitter(0.4, 0.4, 0.4)

    def __call__(self, values: Values, draws: np.ndarray) -> Values:
        """See `Augmentation`."""
        size = np.array([TF.get_size(values["image"])])
        geometry = draw_geometries(size, draws[None])
        # Colours first: resizing makes most images larger.
        values = {**values, "image": self.colours(values["image"])}
        moved = {name: geometry.apply(0, value) for name, value in values.items()}
        return {
            name: TF.clamp_bounding_boxes(value)
            if isinstance(value, tv_tensors.BoundingBoxes)
            else value
            for name, value in moved.items()
        }

    def sizes(self, sizes: np.ndarray, draws: np.ndarray) -> np.ndarray:
        """See `Augmentation`."""
        return draw_geometries(sizes, draws).sizes


class SameSize:
    """Any transform of torchvision that draws from torch's generator and keeps an image's size."""

    def __init__(self, transform: v2.Transform) -> None:
        self.transform = transform

    def __call__(self, values: Values, draws: np.ndarray) -> Values:
        """See `Augmentation`."""
        return self.transform(values)

    def sizes(self, sizes: np.ndarray, draws: np.ndarray) -> np.ndarray:
        """See `Augmentation`."""
        return sizes


def world_augmentation() -> SameSize:
    """Flip and colour jitter; the world's pictures keep their size."""
    return SameSize(v2.Compose([v2.RandomHorizontalFlip(), v2.ColorJitter(0.3, 0.3, 0.3)]))


def training_augmentation(name: str) -> Augmentation:
    """By name: `published` or `world`."""
    builders: dict[str, Callable[[], Augmentation]] = {
        "published": PublishedAugmentation,
        "world": world_augmentation,
    }
    return builders[name]()


def evaluation_resize(name: str) -> v2.Transform:
    """What a detector trained with this augmentation is evaluated on.

    Published: short side 800, long side at most 1333; world: the images as they are, as far as
    their long side is at most 1333 too.
    """
    if name == "published":
        return v2.Resize(SHORT_SIDES[-1], max_size=LONGEST_SIDE)
    return ShrinkTo(LONGEST_SIDE)


class ShrinkTo(v2.Transform):
    """Shrinks images whose long side is longer than this; others stay as they are."""

    def __init__(self, longest: int) -> None:
        super().__init__()
        self.longest = longest

    def transform(self, inpt, params):
        """Resizes one image or one set of boxes."""
        size = TF.get_size(inpt)
        if max(size) <= self.longest:
            return inpt
        shrunk = [max(1, side * self.longest // max(size)) for side in size]
        return TF.resize(inpt, shrunk, antialias=True)


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


MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


def normalise(image: Tensor) -> Tensor:
    """(..., 3, h, w) uint8 -> float32 with ImageNet's mean and std, on the image's device."""
    pixels = TF.to_dtype(image.as_subclass(Tensor), torch.float32, scale=True)
    # Torchvision's function makes both on the device, for which a host waits.
    mean, std = (
        torch.tensor(values).view(3, 1, 1).to(pixels.device, non_blocking=True)
        for values in (MEAN, STD)
    )
    return pixels.sub(mean).div_(std)
