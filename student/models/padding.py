"""Images of different sizes in one batch."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.data import get_worker_info

# Height and width in pixels.
Size = tuple[int, int]


def stack_images(
    images: Sequence[Tensor], multiple: int = 1, pad_size: Sequence[int] = (0, 0)
) -> tuple[Tensor, tuple[Size, ...]]:
    """Copies images into one tensor, at the top left, with zeros beside and below them.

    Args:
        images: (3, h, w) tensors of one type.
        multiple: heights and widths of the batch are multiples of this.
        pad_size: height and width that the batch has at least.

    Returns:
        (B, 3, H, W), and the height and width of every image. A worker of a DataLoader makes it
        in shared memory, so that handing it over costs one file descriptor and no further copy.
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
    """Zeros of the type and device of `like`; in shared memory where this is a loader's worker.

    Raises:
        RuntimeError: the shared memory is full.
    """
    if get_worker_info() is None:
        return like.new_zeros(shape)
    # Left to the queue, a tensor is moved in a thread of it, where a failure loses the batch.
    # What is made by the operating system just now holds zeros.
    storage = torch.UntypedStorage._new_shared(math.prod(shape) * like.itemsize)
    return like.new_empty(0).set_(storage).view(*shape)


def padding_mask(
    sizes: Sequence[Size], pad_size: Sequence[int], device: torch.device
) -> Tensor | None:
    """(B, H, W) bool, True on padding, for images of these heights and widths in a batch of size
    (H, W); None when there is no padding, so that attention can take its unmasked kernel."""
    height, width = pad_size
    if set(sizes) == {(height, width)}:
        return None
    return feature_padding_mask(torch.tensor(sizes).to(device, non_blocking=True), 1, pad_size)


def pad_images(
    images: Sequence[Tensor], multiple: int = 1, pad_size: Sequence[int] = (0, 0)
) -> tuple[Tensor, Tensor | None]:
    """Normalised (3, h, w) images as a padded batch: `stack_images` and its `padding_mask`."""
    pixels, sizes = stack_images(images, multiple, pad_size)
    return pixels, padding_mask(sizes, pixels.shape[-2:], pixels.device)


def resize_mask(padding: Tensor | None, size: Sequence[int]) -> Tensor | None:
    """The mask at a feature map's size: (B, H, W) bool to (B, *size) bool, nearest."""
    if padding is None:
        return None
    return functional.interpolate(padding[:, None].float(), size=tuple(size))[:, 0].bool()


def feature_padding_mask(sizes: Tensor, stride: int, size: Sequence[int]) -> Tensor:
    """Where a feature map of a padded batch has cells that its images alone would not have.

    Args:
        sizes: (B, 2) int64 heights and widths of the images in pixels.
        stride: of the map.
        size: height and width of the map, in cells.

    Returns:
        (B, *size) bool.
    """
    ends = (sizes + stride - 1) // stride
    below, beside = (
        torch.arange(side, device=sizes.device) >= ends[:, axis, None]
        for axis, side in enumerate(size)
    )
    return below[:, :, None] | beside[:, None]


def mask_padding(features: Tensor, stride: int, sizes: Tensor | None) -> Tensor:
    """A feature map (B, C, h, w) with zeros on `feature_padding_mask`, as beyond the edge of an
    image alone; as it is without `sizes`."""
    if sizes is None:
        return features
    return features * ~feature_padding_mask(sizes, stride, features.shape[-2:])[:, None]


def get_valid_ratios(padding: Tensor | None, pixels: Tensor) -> Tensor:
    """(B, 2) the share of the batch's width and height that each image fills, in (0, 1].

    Args:
        padding: (B, H, W) bool, True on padding at the bottom and the right; None: no padding.
        pixels: any tensor (B, ...) on the right device.
    """
    if padding is None:
        return torch.ones(pixels.shape[0], 2, device=pixels.device)
    inside = (~padding).float()
    return torch.stack([inside[:, 0].mean(1), inside[:, :, 0].mean(1)], 1)
