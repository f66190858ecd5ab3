"""Random changes of training images, boxes following (torchvision.transforms.v2)."""

from __future__ import annotations

import torch
from torchvision.transforms import v2

SHORT_SIDES = tuple(range(480, 801, 32))


def published_augmentation() -> v2.Transform:
    """DETR's: flip, colour jitter, then a resize, or a resize, a random crop and a resize."""
    resize = v2.RandomShortestSize(SHORT_SIDES, max_size=1333)
    return v2.Compose(
        [
            v2.RandomHorizontalFlip(),
            v2.ColorJitter(0.4, 0.4, 0.4),
            v2.RandomChoice(
                [
                    resize,
                    v2.Compose([v2.RandomShortestSize((400, 500, 600)), RandomSizeCrop(), resize]),
                ]
            ),
            v2.ClampBoundingBoxes(),
        ]
    )


def world_augmentation() -> v2.Transform:
    """Flip and colour jitter; the world's pictures keep their size."""
    return v2.Compose([v2.RandomHorizontalFlip(), v2.ColorJitter(0.3, 0.3, 0.3)])


def training_augmentation(name: str) -> v2.Transform:
    """By name: `published` or `world`."""
    return {"published": published_augmentation, "world": world_augmentation}[name]()


def evaluation_resize(name: str) -> v2.Transform:
    """What a detector trained with this augmentation is evaluated on.

    Published: short side 800, long side at most 1333; world: the images as they are.
    """
    return v2.Resize(800, max_size=1333) if name == "published" else v2.Identity()


class RandomSizeCrop(v2.Transform):
    """Cuts a window with sides drawn from [least, most] (never larger than the image)."""

    def __init__(self, least: int = 384, most: int = 600) -> None:
        super().__init__()
        self.least, self.most = least, most

    def make_params(self, flat_inputs):
        """Draws the window once for the image and all its boxes."""
        height, width = v2.functional.get_size(flat_inputs[0])

        def side(full: int) -> int:
            low = min(self.least, full)
            return int(torch.randint(low, min(full, self.most) + 1, ()))

        window_height, window_width = side(height), side(width)
        return {
            "top": int(torch.randint(0, height - window_height + 1, ())),
            "left": int(torch.randint(0, width - window_width + 1, ())),
            "height": window_height,
            "width": window_width,
        }

    def transform(self, inpt, params):
        """Cuts one image or one set of boxes."""
        return v2.functional.crop(inpt, **params)
