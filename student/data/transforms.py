"""Augmentation of training images with their boxes, resizing for evaluation, and normalisation.

The geometric part of DETR's augmentation is computed from given random numbers, apart from the
pixels: the sizes of all images of an epoch are then known before any image is read, and batches
can be formed of images of similar size.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as TF

from student.models.backbone import IMAGENET, PixelStatistics

TensorsByName = dict[str, Tensor]

# DETR's augmentation, in pixels.
SHORT_SIDES = tuple(range(480, 801, 32))
MAX_SIZE = 1333
SHORT_SIDES_BEFORE_CROP = (400, 500, 600)
CROP_SIZE_RANGE = (384, 600)
# Random numbers of one image: flip; crop or not; short side before the crop; the crop's height,
# width, top and left; final short side.
NUM_RAND = 8


class Augmentation:
    """A random transform of images with their boxes.

    The sizes of its results depend on the given random numbers alone.

    Args:
        transform: keeps the images' sizes; draws from torch's generator.
        geometric: afterwards resize or crop at random as DETR does, see `sample_geometric_params`.
            Otherwise only images are shrunk that are too large, as in evaluation.
    """

    def __init__(self, transform: v2.Transform, geometric: bool) -> None:
        self.transform, self.geometric = transform, geometric

    def __call__(self, values: TensorsByName, rand: np.ndarray) -> TensorsByName:
        """Transforms the image "image" and boxes under any other names, all `tv_tensors`."""
        if not self.geometric:
            # A camera's pixels do not fit into memory; those of the shrunk image are jittered.
            return self.transform(ShrinkToMaxSize(MAX_SIZE)(values))
        # Colour jitter comes first, because resizing enlarges most images.
        values = self.transform(values)
        params = sample_geometric_params(np.array([TF.get_size(values["image"])]), rand[None])
        values = {name: params.apply(0, value) for name, value in values.items()}
        return v2.ClampBoundingBoxes()(values)

    def sizes(self, sizes: np.ndarray, rand: np.ndarray) -> np.ndarray:
        """(N, 2) heights and widths of the results for (N, 2) sizes and (N, `NUM_RAND`) numbers."""
        if self.geometric:
            return sample_geometric_params(sizes, rand).sizes
        return shrink_to_max_size(sizes, MAX_SIZE)


def build_augmentation(name: str) -> Augmentation:
    """Builds the augmentation `published` (that of DETR) or `toy` (flip and colour jitter)."""
    if name == "published":
        return Augmentation(v2.ColorJitter(0.4, 0.4, 0.4), geometric=True)
    flip, jitter = v2.RandomHorizontalFlip(), v2.ColorJitter(0.3, 0.3, 0.3)
    return Augmentation(v2.Compose([flip, jitter]), geometric=False)


def build_evaluation_resize(name: str) -> v2.Transform:
    """Builds the resize for evaluating a detector that was trained with this augmentation.

    `published` resizes to a short side of 800 and a long side of at most 1333. `toy` only shrinks
    images whose long side exceeds 1333.
    """
    if name == "published":
        return v2.Resize(SHORT_SIDES[-1], max_size=MAX_SIZE)
    return ShrinkToMaxSize(MAX_SIZE)


class ShrinkToMaxSize(v2.Transform):
    """Shrinks images whose long side exceeds `max_size` and leaves others unchanged."""

    def __init__(self, max_size: int) -> None:
        super().__init__()
        self.max_size = max_size

    def transform(self, inpt, params):
        """Resizes one image or one tensor of boxes; called by `v2.Transform`."""
        size = np.array([TF.get_size(inpt)])
        shrunk = shrink_to_max_size(size, self.max_size)
        if np.array_equal(shrunk, size):
            return inpt
        return TF.resize(inpt, shrunk[0].tolist(), antialias=True)


def shrink_to_max_size(sizes: np.ndarray, max_size: int) -> np.ndarray:
    """(N, 2) sizes after the longer sides are shrunk to `max_size`, with the same aspect ratio."""
    long = sizes.max(1, keepdims=True)
    return np.where(long > max_size, np.maximum(sizes * max_size // long, 1), sizes)


@dataclass(frozen=True, eq=False)
class GeometricParams:
    """Parameters of the geometric augmentation of N images, in the order of application.

    Attributes:
        flips: (N,) bool, whether the image is flipped horizontally.
        crops: (N,) bool, whether the image is cropped.
        sizes_before_crop: (N, 2) height and width to which it is resized before the crop.
        crop_boxes: (N, 4) top, left, height and width of the crop.
        sizes: (N, 2) final height and width.
    """

    flips: np.ndarray
    crops: np.ndarray
    sizes_before_crop: np.ndarray
    crop_boxes: np.ndarray
    sizes: np.ndarray

    def apply(self, index: int, value: Tensor) -> Tensor:
        """Transforms an image, or boxes in it (`tv_tensors`), with the parameters of this index."""
        if self.flips[index]:
            value = TF.horizontal_flip(value)
        if self.crops[index]:
            value = TF.resize(value, self.sizes_before_crop[index].tolist(), antialias=True)
            value = TF.crop(value, *self.crop_boxes[index].tolist())
        return TF.resize(value, self.sizes[index].tolist(), antialias=True)


def sample_geometric_params(sizes: np.ndarray, rand: np.ndarray) -> GeometricParams:
    """Parameters of DETR's augmentation: half of the images are resized, the other half are
    resized, cropped and resized again. `rand` is (N, `NUM_RAND`) in [0, 1)."""
    crops = rand[:, 1] >= 0.5
    sizes_before_crop = resize_short_side(sizes, _choice(SHORT_SIDES_BEFORE_CROP, rand[:, 2]))
    min_crop, max_crop = (np.minimum(side, sizes_before_crop) for side in CROP_SIZE_RANGE)
    crop_sizes = _rand_int(min_crop, max_crop, rand[:, 3:5])
    corners = _rand_int(np.zeros_like(crop_sizes), sizes_before_crop - crop_sizes, rand[:, 5:7])
    sizes_after_crop = np.where(crops[:, None], crop_sizes, sizes)
    short_sides = _choice(SHORT_SIDES, rand[:, 7])
    return GeometricParams(
        flips=rand[:, 0] >= 0.5,
        crops=crops,
        sizes_before_crop=sizes_before_crop,
        crop_boxes=np.concatenate([corners, crop_sizes], axis=1),
        sizes=resize_short_side(sizes_after_crop, short_sides, MAX_SIZE),
    )


def resize_short_side(
    sizes: np.ndarray, short: np.ndarray, max_size: int | None = None
) -> np.ndarray:
    """(N, 2) sizes after a resize to (N,) short sides that keeps the aspect ratio, as `v2.Resize`
    computes them; `max_size` bounds the long sides."""
    old_short, old_long = sizes.min(1), sizes.max(1)
    long = short * old_long // old_short
    if max_size is not None:
        short = np.where(long > max_size, np.maximum(max_size * old_short // old_long, 1), short)
        long = np.minimum(long, max_size)
    portrait = sizes[:, 0] > sizes[:, 1]
    return np.where(portrait[:, None], np.stack([long, short], 1), np.stack([short, long], 1))


def _choice(values: tuple[int, ...], rand: np.ndarray) -> np.ndarray:
    return np.array(values)[(rand * len(values)).astype(np.int64)]


def _rand_int(low: np.ndarray, high: np.ndarray, rand: np.ndarray) -> np.ndarray:
    """Integers from low to high, both included."""
    return low + (rand * (high - low + 1)).astype(np.int64)


def normalise(image: Tensor, statistics: PixelStatistics = IMAGENET) -> Tensor:
    """Converts (..., 3, h, w) uint8 to float32, normalised by mean and standard deviation, on the
    same device."""
    pixels = TF.to_dtype(image.as_subclass(Tensor), torch.float32, scale=True)
    # TF.normalize creates both tensors on the device, and the CPU waits for that.
    mean, std = (
        torch.as_tensor(values).view(3, 1, 1).to(pixels.device, non_blocking=True)
        for values in statistics
    )
    return pixels.sub(mean).div_(std)
