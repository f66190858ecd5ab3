"""Images of different sizes in one batch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional


def pad_images(
    images: Sequence[Tensor], multiple: int = 1, frame: Sequence[int] = (0, 0)
) -> tuple[Tensor, Tensor | None]:
    """Pads images with zeros at the bottom and the right to the largest height and width.

    Args:
        images: normalised (3, h, w) tensors.
        multiple: heights and widths of the batch are multiples of this.
        frame: height and width that the batch has at least.

    Returns:
        (B, 3, H, W) pixels and the (B, H, W) bool mask that is True on padding; None instead of
        the mask when there is no padding, so that attention can take its unmasked kernel.
    """
    sizes = [tuple(image.shape[-2:]) for image in images]
    height, width = (
        -(-max(sides) // multiple) * multiple for sides in zip(*sizes, frame, strict=True)
    )
    if set(sizes) == {(height, width)}:
        return torch.stack(list(images)), None
    pixels = images[0].new_zeros(len(images), 3, height, width)
    padding = torch.ones(len(images), height, width, dtype=torch.bool, device=pixels.device)
    for row, (image, (h, w)) in enumerate(zip(images, sizes, strict=True)):
        pixels[row, :, :h, :w] = image
        padding[row, :h, :w] = False
    return pixels, padding


def shrink_padding(padding: Tensor | None, size: Sequence[int]) -> Tensor | None:
    """The mask at a feature map's size: (B, H, W) bool to (B, *size) bool, nearest."""
    if padding is None:
        return None
    return functional.interpolate(padding[:, None].float(), size=tuple(size))[:, 0].bool()


def filled_shares(padding: Tensor | None, pixels: Tensor) -> Tensor:
    """(B, 2) the share of the frame's width and height that each image fills, in (0, 1].

    Args:
        padding: (B, H, W) bool, True on padding at the bottom and the right; None: no padding.
        pixels: any tensor (B, ...) on the right device.
    """
    if padding is None:
        return torch.ones(pixels.shape[0], 2, device=pixels.device)
    inside = (~padding).float()
    return torch.stack([inside[:, 0].mean(1), inside[:, :, 0].mean(1)], 1)
