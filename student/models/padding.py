"""Batches of images of different sizes: padding, padding masks, and masks of feature maps.

As in DETR, images are padded at the bottom and at the right, and masks are True on padding.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import get_worker_info

# Height and width in pixels.
Size = tuple[int, int]


def stack_images(
    images: Sequence[Tensor], multiple: int = 1, pad_size: Sequence[int] = (0, 0)
) -> tuple[Tensor, tuple[Size, ...]]:
    """Stacks images at the top left of one tensor, with zeros to the right and below.

    Args:
        images: (3, h, w) tensors of one dtype.
        multiple: heights and widths of the batch are multiples of this.
        pad_size: minimum height and width of the batch.

    Returns:
        (B, 3, H, W) of the images' dtype, and the height and width of every image. In a DataLoader
        worker the tensor lies in shared memory, so that the main process needs no copy of it.
    """
    sizes = tuple((int(image.shape[-2]), int(image.shape[-1])) for image in images)
    height, width = (
        -(-max(sides) // multiple) * multiple for sides in zip(*sizes, pad_size, strict=True)
    )
    pixels = shared_zeros((len(images), 3, height, width), images[0])
    for row, (image, (h, w)) in enumerate(zip(images, sizes, strict=True)):
        pixels[row, :, :h, :w] = image
    return pixels, sizes


def shared_zeros(shape: Sequence[int], like: Tensor) -> Tensor:
    """Zeros of the dtype and device of `like`, in shared memory if called by a DataLoader worker.

    Raises:
        RuntimeError: the shared memory is full.
    """
    if get_worker_info() is None:
        return like.new_zeros(shape)
    # Otherwise the queue's feeder thread would move the tensor into shared memory, and an error
    # there loses the batch instead of reaching the training loop. New shared memory is zero.
    storage = torch.UntypedStorage._new_shared(math.prod(shape) * like.itemsize)
    return like.new_empty(0).set_(storage).view(*shape)


def padding_mask(
    sizes: Sequence[Size], pad_size: Sequence[int], device: torch.device
) -> Tensor | None:
    """(B, H, W) bool mask of a batch of `pad_size` H x W, True on padding.

    None where no image is padded, because attention is faster without a mask.
    """
    height, width = pad_size
    if set(sizes) == {(height, width)}:
        return None
    return feature_padding_mask(torch.tensor(sizes).to(device, non_blocking=True), 1, pad_size)


def pad_images(
    images: Sequence[Tensor], multiple: int = 1, pad_size: Sequence[int] = (0, 0)
) -> tuple[Tensor, Tensor | None]:
    """Pads normalised (3, h, w) images to (B, 3, H, W) pixels, and gives the (B, H, W) bool mask or
    None; see `stack_images` and `padding_mask`.
    """
    pixels, sizes = stack_images(images, multiple, pad_size)
    return pixels, padding_mask(sizes, pixels.shape[-2:], pixels.device)


def resize_mask(padding: Tensor | None, size: Sequence[int]) -> Tensor | None:
    """Resizes a (B, H, W) bool mask to the `size` of a feature map, by nearest neighbour as DETR
    does."""
    if padding is None:
        return None
    return F.interpolate(padding[:, None].float(), size=tuple(size))[:, 0].bool()


def feature_padding_mask(sizes: Tensor, stride: int, size: Sequence[int]) -> Tensor:
    """Cells of a padded batch's feature map that the maps of the single images do not have.

    Args:
        sizes: (B, 2) int64 heights and widths of the images in pixels.
        stride: stride of the map in pixels.
        size: height h and width w of the map in cells.

    Returns:
        (B, h, w) bool, True on padding.
    """
    ends = (sizes + stride - 1) // stride
    below, right = (
        torch.arange(side, device=sizes.device) >= ends[:, axis, None]
        for axis, side in enumerate(size)
    )
    return below[:, :, None] | right[:, None]


def mask_padding(features: Tensor, stride: int, sizes: Tensor | None) -> Tensor:
    """Zeroes a (B, C, h, w) map on padding, as a convolution pads beyond an image's border.

    `sizes` (B, 2) are heights and widths of the images in pixels; None leaves the map unchanged.
    """
    if sizes is None:
        return features
    return features * ~feature_padding_mask(sizes, stride, features.shape[-2:])[:, None]


def get_valid_ratios(padding: Tensor | None, pixels: Tensor) -> Tensor:
    """(B, 2) float32 fractions, width first, of the batch's width and height that each image fills.

    `padding` is (B, H, W) bool or None, `pixels` any (B, ...) tensor, for B and the device.
    """
    if padding is None:
        return torch.ones(pixels.shape[0], 2, device=pixels.device)
    inside = (~padding).float()
    return torch.stack([inside[:, 0].mean(1), inside[:, :, 0].mean(1)], 1)
