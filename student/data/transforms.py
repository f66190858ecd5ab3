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

TensorsByName = dict[str, Tensor]


class Augmentation(Protocol):
    """A random change of images with their boxes.

    Where pixels go depends on the random numbers alone, so that the sizes of all images of an epoch
    are known before one of them is read; colours draw from torch's generator.
    """

    def __call__(self, values: TensorsByName, rand: np.ndarray) -> TensorsByName:
        """Changes `values["image"]` and the boxes beside it (`tv_tensors`) together.

        Args:
            values: an image and boxes by name.
            rand: (`NUM_RAND`,) in [0, 1).
        """
        ...

    def sizes(self, sizes: np.ndarray, rand: np.ndarray) -> np.ndarray:
        """The sizes that images end with.

        Args:
            sizes: (N, 2) heights and widths of the images.
            rand: (N, `NUM_RAND`) in [0, 1).

        Returns:
            (N, 2) heights and widths after the change.
        """
        ...


class DETRAugmentation:
    """DETR's: flip, colour jitter, then a resize, or a resize, a random crop and a resize."""

    def __init__(self) -> None:
        self.colours = v2.ColorJitter(0.4, 0.4, 0.4)

    def __call__(self, values: TensorsByName, rand: np.ndarray) -> TensorsByName:
        """See `Augmentation`."""
        size = np.array([TF.get_size(values["image"])])
        geometry = sample_geometric_params(size, rand[None])
        # Colours first: resizing makes most images larger.
        values = {**values, "image": self.colours(values["image"])}
        moved = {name: geometry.apply(0, value) for name, value in values.items()}
        return {
            name: TF.clamp_bounding_boxes(value)
            if isinstance(value, tv_tensors.BoundingBoxes)
            else value
            for name, value in moved.items()
        }

    def sizes(self, sizes: np.ndarray, rand: np.ndarray) -> np.ndarray:
        """See `Augmentation`."""
        return sample_geometric_params(sizes, rand).sizes


class SizePreservingAugmentation:
    """Any transform of torchvision that draws from torch's generator and keeps an image's size."""

    def __init__(self, transform: v2.Transform) -> None:
        self.transform = transform

    def __call__(self, values: TensorsByName, rand: np.ndarray) -> TensorsByName:
        """See `Augmentation`."""
        return self.transform(values)

    def sizes(self, sizes: np.ndarray, rand: np.ndarray) -> np.ndarray:
        """See `Augmentation`."""
        return sizes


def toy_augmentation() -> SizePreservingAugmentation:
    """Flip and colour jitter; the toy dataset's pictures keep their size."""
    return SizePreservingAugmentation(
        v2.Compose([v2.RandomHorizontalFlip(), v2.ColorJitter(0.3, 0.3, 0.3)])
    )


def build_augmentation(name: str) -> Augmentation:
    """By name: `published` or `toy`."""
    builders: dict[str, Callable[[], Augmentation]] = {
        "published": DETRAugmentation,
        "toy": toy_augmentation,
    }
    return builders[name]()


def build_evaluation_resize(name: str) -> v2.Transform:
    """What a detector trained with this augmentation is evaluated on.

    Published: short side 800, long side at most 1333; toy: the images as they are, as far as
    their long side is at most 1333 too.
    """
    if name == "published":
        return v2.Resize(SHORT_SIDES[-1], max_size=MAX_SIZE)
    return ShrinkToMaxSize(MAX_SIZE)


class ShrinkToMaxSize(v2.Transform):
    """Shrinks images whose long side is longer than this; others stay as they are."""

    def __init__(self, max_size: int) -> None:
        super().__init__()
        self.max_size = max_size

    def transform(self, inpt, params):
        """Resizes one image or one set of boxes."""
        size = TF.get_size(inpt)
        if max(size) <= self.max_size:
            return inpt
        shrunk = [max(1, side * self.max_size // max(size)) for side in size]
        return TF.resize(inpt, shrunk, antialias=True)


SHORT_SIDES = tuple(range(480, 801, 32))
MAX_SIZE = 1333
SHORT_SIDES_BEFORE_CROP = (400, 500, 600)
CROP_SIZE_RANGE = (384, 600)
# Flip, crop or not, short side before the crop, the window's height, width, top and left, short
# side at the end.
NUM_RAND = 8


@dataclass(frozen=True, eq=False)
class GeometricParams:
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


def sample_geometric_params(sizes: np.ndarray, rand: np.ndarray) -> GeometricParams:
    """DETR's augmentation: half the images are resized, half cropped between two resizes.

    Args:
        sizes: (N, 2) heights and widths of the images, in pixels.
        rand: (N, `NUM_RAND`) in [0, 1).
    """
    crops = rand[:, 1] >= 0.5
    resized = resize_short_side(sizes, _choice(SHORT_SIDES_BEFORE_CROP, rand[:, 2]))
    least, most = (np.minimum(side, resized) for side in CROP_SIZE_RANGE)
    windows = _rand_int(least, most, rand[:, 3:5])
    corners = _rand_int(np.zeros_like(resized), resized - windows, rand[:, 5:7])
    kept = np.where(crops[:, None], windows, sizes)
    return GeometricParams(
        flips=rand[:, 0] >= 0.5,
        crops=crops,
        resized=resized,
        windows=np.concatenate([corners, windows], axis=1),
        sizes=resize_short_side(kept, _choice(SHORT_SIDES, rand[:, 7]), MAX_SIZE),
    )


def resize_short_side(
    sizes: np.ndarray, short: np.ndarray, max_size: int | None = None
) -> np.ndarray:
    """Sizes (N, 2) of the same shapes with the short sides (N,), long sides within `max_size`."""
    low, high = sizes.min(1), sizes.max(1)
    long = short * high // low
    if max_size is not None:
        short = np.where(long > max_size, np.maximum(max_size * low // high, 1), short)
        long = np.minimum(long, max_size)
    upright = sizes[:, 0] > sizes[:, 1]
    return np.where(upright[:, None], np.stack([long, short], 1), np.stack([short, long], 1))


def _choice(values: tuple[int, ...], rand: np.ndarray) -> np.ndarray:
    return np.array(values)[(rand * len(values)).astype(np.int64)]


def _rand_int(low: np.ndarray, high: np.ndarray, rand: np.ndarray) -> np.ndarray:
    """Whole numbers from low to high, both included."""
    return low + (rand * (high - low + 1)).astype(np.int64)


IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def normalise(image: Tensor) -> Tensor:
    """(..., 3, h, w) uint8 -> float32 with ImageNet's mean and std, on the image's device."""
    pixels = TF.to_dtype(image.as_subclass(Tensor), torch.float32, scale=True)
    # Torchvision's function makes both on the device, for which a host waits.
    mean, std = (
        torch.tensor(values).view(3, 1, 1).to(pixels.device, non_blocking=True)
        for values in (IMAGENET_MEAN, IMAGENET_STD)
    )
    return pixels.sub(mean).div_(std)
