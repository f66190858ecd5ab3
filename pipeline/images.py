"""Pictures as people see them: any file PIL reads, upright, 8-bit RGB."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from pipeline.errors import InputError

EXIF_ORIENTATION = 0x0112
# EXIF orientations from 5 on lie on their side.
FIRST_TURNED = 5
# What PIL's decoders raise on broken files.
BROKEN = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    EOFError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)


def read_image(path: Path | str) -> Image.Image:
    """Reads a picture: EXIF orientation applied, converted to RGB.

    16-bit and 32-bit grey values are scaled down by 256 (a 32-bit picture holds 16-bit values,
    as PNG has them); transparency is dropped.

    Raises:
        InputError: no such file, not an image, or a truncated one.
    """
    with _opened(path) as image:
        image.load()
        upright = ImageOps.exif_transpose(image)
        if upright.mode.startswith("I"):
            values = np.asarray(upright).astype(np.int64) >> 8
            upright = Image.fromarray(np.clip(values, 0, 255).astype(np.uint8))
        return upright.convert("RGB")


def image_size(path: Path | str) -> tuple[int, int]:
    """Width and height of a picture as `read_image` gives it, from the file's header alone.

    Raises:
        InputError: no such file or not an image.
    """
    with _opened(path) as image:
        width, height = image.size
        turned = image.getexif().get(EXIF_ORIENTATION, 1) >= FIRST_TURNED
        return (height, width) if turned else (width, height)


@contextmanager
def _opened(path: Path | str) -> Iterator[Image.Image]:
    try:
        with Image.open(path) as image:
            yield image
    except FileNotFoundError:
        raise InputError(f"{path}: no such image") from None
    except UnidentifiedImageError:
        raise InputError(f"{path}: expected an image, found another kind of file") from None
    except BROKEN as error:
        raise InputError(f"{path}: expected a whole image, found {error}") from None
