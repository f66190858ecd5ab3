"""Pictures as people see them: any file PIL reads, upright, 8-bit RGB."""

from __future__ import annotations

import stat
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PosixPath

import numpy as np
from PIL import Image, UnidentifiedImageError

from pipeline.utils.errors import InputError
from pipeline.utils.progress import track

# Endings of the files that are taken for pictures where a folder is named.
IMAGE_EXTENSIONS = frozenset(
    (
        *(".avif", ".bmp", ".gif", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm"),
        *(".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp"),
    )
)
EXIF_ORIENTATION = 0x0112
EXIF_TRANSPOSES = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# EXIF orientations from 5 on lie on their side.
FIRST_SIDEWAYS = 5
# Files that are read at once: on a network, waiting takes the time.
READ_THREADS = 16
# PIL's own bound: from twice what it warns of on it refuses. Decoded, that is 0.7 GB.
MAX_PIXELS = 2 * 89_478_485
# These warnings tell people nothing that they could act upon: a picture is large, or its camera
# data is damaged, which says nothing about the pixels.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.\w+ImagePlugin")


class IgnoreExifPath(PosixPath):
    """A picture, or a folder of pictures, whose EXIF orientation is not applied."""


def read_image(path: Path | str) -> Image.Image:
    """Reads a picture: EXIF orientation applied unless of an `IgnoreExifPath`, converted to RGB.

    16-bit and 32-bit grey values are scaled down by 256 (a 32-bit picture holds 16-bit values,
    as PNG has them); floating-point ones run from 0 to 1, or to 255 where one is above 1.
    Transparency is dropped; of several frames the first counts.

    Raises:
        InputError: no such file, not an image, a truncated one, or one of more than
            `MAX_PIXELS` pixels.
    """
    with _open_image(path) as image:
        return to_upright_rgb(image, apply_exif=not isinstance(path, IgnoreExifPath))


def to_upright_rgb(image: Image.Image, apply_exif: bool = True) -> Image.Image:
    """An opened picture as `read_image` gives it; without `apply_exif` its EXIF orientation
    is not applied. The original stays as it is."""
    image.load()
    turn = EXIF_TRANSPOSES.get(_exif_orientation(image)) if apply_exif else None
    upright = image if turn is None else image.transpose(turn)
    if upright.mode.startswith("I"):
        values = np.asarray(upright).astype(np.int64) >> 8
        upright = Image.fromarray(np.clip(values, 0, 255).astype(np.uint8))
    elif upright.mode == "F":
        upright = _float_to_uint8(np.asarray(upright))
    elif upright.mode == "P" and isinstance(upright.info.get("transparency"), bytes):
        # Straight to RGB PIL complains that the palette's transparency is lost.
        upright = upright.convert("RGBA")
    return upright.convert("RGB")


@dataclass(frozen=True)
class ImageHeader:
    """What an image file's header says.

    Attributes:
        stored_size: width and height of the pixels as they lie in the file.
        orientation: EXIF's, 1 to 8; 1 where the file says nothing.
    """

    stored_size: tuple[int, int]
    orientation: int = 1

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the upright picture, as `read_image` gives it."""
        width, height = self.stored_size
        return (height, width) if self.orientation >= FIRST_SIDEWAYS else (width, height)


def read_header(path: Path | str, decode: bool = False) -> ImageHeader:
    """Reads a picture's header.

    Args:
        path: the file.
        decode: also decode the pixels, at the lowest resolution that the format offers: a file that
            was cut off has a sound header.

    Raises:
        InputError: no such file, not an image, one of more than `MAX_PIXELS` pixels, or with
            `decode` a damaged one.
    """
    with _open_image(path) as image:
        is_stored = isinstance(path, IgnoreExifPath)
        header = ImageHeader(image.size, 1 if is_stored else _exif_orientation(image))
        if decode:
            image.draft(None, (1, 1))
            to_upright_rgb(image)
        return header


def read_headers(
    paths: Sequence[Path], title: str, decode: bool = False
) -> list[ImageHeader | InputError]:
    """Reads the headers of many pictures at once, with progress.

    Args:
        paths: the files.
        title: what the progress says is being done.
        decode: see `read_header`.

    Returns:
        for each file its header, or what is wrong with it.
    """
    with ThreadPoolExecutor(READ_THREADS) as pool:
        headers = pool.map(partial(_read_header_or_error, decode=decode), paths)
        return list(track(headers, len(paths), title, "images", brief=True))


def _read_header_or_error(path: Path, decode: bool) -> ImageHeader | InputError:
    try:
        return read_header(path, decode)
    except InputError as error:
        return error


def read_image_size(path: Path | str) -> tuple[int, int]:
    """Width and height of a picture as `read_image` gives it, from the file's header alone.

    Raises:
        InputError: no such file, not an image, or one of more than `MAX_PIXELS` pixels.
    """
    return read_header(path).size


def _exif_orientation(image: Image.Image) -> int:
    """The EXIF orientation; 1, upright, where the picture has none or a damaged EXIF block."""
    try:
        orientation = image.getexif().get(EXIF_ORIENTATION, 1)
    # A broken block of camera data fails in many ways and says nothing about the pixels.
    except Exception:
        return 1
    return orientation if orientation in EXIF_TRANSPOSES else 1


def _float_to_uint8(values: np.ndarray) -> Image.Image:
    finite = np.nan_to_num(values, nan=0.0, posinf=255.0, neginf=0.0)
    scale = 255.0 if finite.max(initial=0.0) <= 1 else 1.0
    return Image.fromarray(np.clip(np.rint(finite * scale), 0, 255).astype(np.uint8))


@contextmanager
def _open_image(path: Path | str) -> Iterator[Image.Image]:
    try:
        # A named pipe would keep its reader waiting for ever.
        if not stat.S_ISREG(Path(path).stat().st_mode):
            raise InputError(f"{path}: expected an image file, found {_describe_path(Path(path))}")
        with Image.open(path) as image:
            yield image
    except FileNotFoundError:
        raise InputError(f"{path}: no such image") from None
    except UnidentifiedImageError:
        raise InputError(f"{path}: expected an image, found another kind of file") from None
    except Image.DecompressionBombError:
        raise InputError(
            f"{path}: expected an image of at most {MAX_PIXELS} pixels, found a larger one"
        ) from None
    # On damaged bytes PIL's decoders fail in every way a program can.
    except Exception as error:
        if isinstance(error, InputError):
            raise
        found = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{path}: expected a whole image, found {found}") from None


def _describe_path(path: Path) -> str:
    return "a folder" if path.is_dir() else "something that is no file"
