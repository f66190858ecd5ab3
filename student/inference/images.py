"""Converts paths, PIL images, arrays and tensors to upright 8-bit RGB images."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pipeline.images import read_image, to_upright_rgb
from pipeline.utils.errors import InputError, bad_field

ImageInput = str | os.PathLike[str] | Image.Image | np.ndarray | Tensor

# Bicubic and Lanczos resizing overshoot [0, 1] slightly, because their kernels are partly negative.
OVERSHOOT = 0.02


def image_name(image: ImageInput, index: int) -> str:
    """The name of an image in results and errors: its path, or "image 3" at index 3 of a list."""
    if isinstance(image, (str, os.PathLike)):
        return os.fspath(image)
    return f"image {index}"


def to_rgb_image(image: ImageInput, name: str) -> Image.Image:
    """Converts an image to the detector's input form: upright, 8-bit RGB.

    Args:
        image: a path; a PIL image of any mode; a (height, width, 3) uint8 array, RGB; or a
            (3, height, width) tensor, RGB, uint8 or floating point from 0 to 1 (not normalised).
            The EXIF orientation of paths and PIL images is applied.
        name: the image's name in errors.

    Raises:
        InputError: the image has another type, dtype or shape, cannot be read, or is empty.
    """
    if isinstance(image, (str, os.PathLike)):
        return read_image(image if isinstance(image, Path) else os.fspath(image))
    if isinstance(image, Image.Image):
        try:
            rgb = to_upright_rgb(image)
        # `Image.open` is lazy: decoding happens here, and decoders raise errors of any type.
        except Exception as error:
            raise InputError(f"{name}: expected a whole image, found {error}") from None
    elif isinstance(image, np.ndarray):
        rgb = _from_array(image, name)
    elif isinstance(image, Tensor):
        rgb = _from_tensor(image, name)
    else:
        expected = "a path, a PIL image, an array or a tensor"
        raise bad_field(name, "type", expected, type(image).__name__)
    if min(rgb.size) == 0:
        width, height = rgb.size
        raise bad_field(name, "size", "at least one pixel", f"{width} x {height} pixels")
    return rgb


def _from_array(array: np.ndarray, name: str) -> Image.Image:
    if array.ndim != 3 or array.shape[2] != 3 or array.dtype != np.uint8 or not array.size:
        found = f"{array.dtype} of shape {array.shape}"
        raise bad_field(name, "array", "uint8 of shape (height, width, 3), RGB", found)
    return Image.fromarray(array)


def _from_tensor(tensor: Tensor, name: str) -> Image.Image:
    plain = tensor.detach().cpu().as_subclass(Tensor)
    floating = plain.is_floating_point()
    valid_dtype = floating or plain.dtype == torch.uint8
    if plain.dim() != 3 or plain.shape[0] != 3 or not valid_dtype or not plain.numel():
        found = f"{plain.dtype} of shape {tuple(plain.shape)}"
        expected = "uint8, or floating point from 0 to 1, of shape (3, height, width), RGB"
        raise bad_field(name, "tensor", expected, found)
    if floating:
        low, high = (float(bound) for bound in plain.aminmax())
        # Negated, so that NaN is refused too.
        if not (low >= -OVERSHOOT and high <= 1 + OVERSHOOT):
            found = f"{low:.3g} to {high:.3g}"
            raise bad_field(name, "tensor", "values from 0 to 1, not normalised", found)
        plain = (plain.float().clamp(0, 1) * 255).round().to(torch.uint8)
    return Image.fromarray(plain.permute(1, 2, 0).contiguous().numpy())
