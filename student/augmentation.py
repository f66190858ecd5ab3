"""Random changes of training images, boxes following (torchvision.transforms.v2)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as TF

from student.geometry import LONGEST_SIDE, SHORT_SIDES, draw_geometries

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
