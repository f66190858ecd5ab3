"""Pictures in whatever form people have them, as upright RGB."""

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

# Resizing with negative lobes leaves [0, 1] by a little.
OVERSHOOT = 0.02


def image_name(image: ImageInput, index: int) -> str:
    """What results and errors call a picture: its path, or "picture 3" for the fourth of a list."""
    if isinstance(image, (str, os.PathLike)):
        return os.fspath(image)
    return f"picture {index}"


def to_rgb_image(image: ImageInput, name: str) -> Image.Image:
    """A picture as the detector looks at it: upright, 8-bit RGB.

    Args:
        image: a path; a PIL image of any mode; a (height, width, 3) uint8 array, RGB; or a
            (3, height, width) tensor, RGB, uint8 or floating point from 0 to 1 (not normalised).
            The EXIF orientation of paths and PIL images is applied; arrays and tensors are taken
            as they lie.
        name: named in errors.

    Raises:
        InputError: something else, or an unreadable or empty picture.
    """
    if isinstance(image, (str, os.PathLike)):
        return read_image(image if isinstance(image, Path) else os.fspath(image))
    if isinstance(image, Image.Image):
        try:
            picture = to_upright_rgb(image)
        # A picture opened but not yet decoded fails in every way a program can.
        except Exception as error:
            raise InputError(f"{name}: expected a whole image, found {error}") from None
    elif isinstance(image, np.ndarray):
        picture = _from_array(image, name)
    elif isinstance(image, Tensor):
        picture = _from_tensor(image, name)
    else:
        expected = "a path, a PIL image, an array or a tensor"
        raise bad_field(name, "type", expected, type(image).__name__)
    if min(picture.size) == 0:
        width, height = picture.size
        raise bad_field(name, "size", "at least one pixel", f"{width} x {height} pixels")
    return picture


def _from_array(array: np.ndarray, name: str) -> Image.Image:
    if array.ndim != 3 or array.shape[2] != 3 or array.dtype != np.uint8 or not array.size:
        found = f"{array.dtype} of shape {array.shape}"
        raise bad_field(name, "array", "uint8 of shape (height, width, 3), RGB", found)
    return Image.fromarray(array)


def _from_tensor(tensor: Tensor, name: str) -> Image.Image:
    plain = tensor.detach().cpu().as_subclass(Tensor)
    floating = plain.is_floating_point()
    right_kind = floating or plain.dtype == torch.uint8
    if plain.dim() != 3 or plain.shape[0] != 3 or not right_kind or not plain.numel():
        found = f"{plain.dtype} of shape {tuple(plain.shape)}"
        expected = "uint8, or floating point from 0 to 1, of shape (3, height, width), RGB"
        raise bad_field(name, "tensor", expected, found)
    if floating:
        least, most = (float(bound) for bound in plain.aminmax())
        if not (least >= -OVERSHOOT and most <= 1 + OVERSHOOT):
            found = f"{least:.3g} to {most:.3g}"
            raise bad_field(name, "tensor", "values from 0 to 1, not normalised", found)
        plain = (plain.float().clamp(0, 1) * 255).round().to(torch.uint8)
    return Image.fromarray(plain.permute(1, 2, 0).contiguous().numpy())
