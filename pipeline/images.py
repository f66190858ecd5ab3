"""Reading images of any format that PIL knows: upright, as 8-bit RGB, with errors in one line."""

from __future__ import annotations

import errno
import os
import stat
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial, wraps
from pathlib import Path, PosixPath
from typing import ParamSpec, TypeVar

import numpy as np
from PIL import Image, UnidentifiedImageError
from PIL.TiffImagePlugin import IMAGELENGTH, IMAGEWIDTH, TiffImageFile

from pipeline.utils.errors import InputError
from pipeline.utils.progress import track

# Endings of the files that count as images in a folder.
IMAGE_EXTENSIONS = frozenset(
    {
        ".avif",
        ".bmp",
        ".gif",
        ".jfif",
        ".jp2",
        ".jpe",
        ".jpeg",
        ".jpg",
        ".pbm",
        ".pgm",
        ".png",
        ".pnm",
        ".ppm",
        ".tif",
        ".tiff",
        ".webp",
    }
)
# Endings of photographs in formats that are not read: HEIF, JPEG XL, and raw formats of cameras.
UNREAD_EXTENSIONS = frozenset(
    {
        *(".heic", ".heif", ".hif", ".jxl"),
        *(".3fr", ".arw", ".cr2", ".cr3", ".dng", ".nef", ".nrw", ".orf", ".pef", ".raf"),
        *(".raw", ".rw2", ".srw"),
    }
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
# The others are their own inverse.
INVERSE_ORIENTATIONS = {6: 8, 8: 6}
# Headers are read by many threads, because on a network file system waiting dominates.
READ_THREADS = 16
# PIL refuses images of more than twice the number of pixels that it warns about. Decoded, this is
# 0.7 GB.
MAX_PIXELS = 2 * 89_478_485
# Larger images are handled one at a time and in bands of rows, to limit the memory.
LARGE_IMAGE_PIXELS = 2**25
BAND_PIXELS = 2**22
# Entries of `Image.info` from which PIL takes the EXIF orientation.
EXIF_INFO = ("exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp")
PNG_SIGNATURE_SIZE = 8
PNG_METADATA = (b"eXIf", b"tEXt", b"zTXt", b"iTXt")
# Errors that may pass: of a server, a network or a disk, or for lack of memory or file handles. The
# number decides, because PIL raises OSErrors too; those of damaged images have no number, or EINVAL
# where a damaged offset is sought. Missing files and permissions, which have other numbers, do not
# change within seconds. Some systems lack some of the numbers.
TRANSIENT_ERRORS = frozenset(
    getattr(errno, name)
    for name in (
        *("EIO", "EREMOTEIO", "ESTALE", "ETIMEDOUT", "EAGAIN", "EBUSY", "EINTR", "ENOLCK"),
        *("ENETDOWN", "ENETUNREACH", "ENETRESET", "EHOSTDOWN", "EHOSTUNREACH"),
        *("ECONNABORTED", "ECONNREFUSED", "ECONNRESET", "ENOTCONN", "ESHUTDOWN", "ECOMM"),
        *("EPROTO", "EKEYEXPIRED", "ENOMEM", "ENFILE", "EMFILE"),
    )
    if hasattr(errno, name)
)
# Seconds before the second and the third try to read an image.
RETRY_PAUSES = (1.0, 4.0)
# Users cannot act on these warnings: an image is large, or its EXIF block is damaged, which does
# not affect the pixels.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.\w+ImagePlugin")
# The C library returns freed blocks of PIL's own size, 16 MB, to the system late or never. Images
# of fewer bytes than a block take one of their size.
Image.core.set_block_size(2**26)


def unread_images(paths: Iterable[Path]) -> tuple[list[Path], str]:
    """The files with an ending of `UNREAD_EXTENSIONS`, and their description for messages, in the
    plural, with the number of each ending. Hidden files do not count."""
    found = [
        path
        for path in paths
        if path.suffix.lower() in UNREAD_EXTENSIONS and not path.name.startswith(".")
    ]
    endings = Counter(sorted(path.suffix.lower() for path in found))
    counts = ", ".join(f"{count} {ending}" for ending, count in endings.items())
    return found, f"image files in formats that are not supported (skipped: {counts})"


class TransientReadError(InputError):
    """An image could not be read because of an error that may pass, at three tries."""


Params = ParamSpec("Params")
Result = TypeVar("Result")


def _retry(read: Callable[Params, Result]) -> Callable[Params, Result]:
    """Lets a function that reads an image try again, twice, after errors that may pass."""

    @wraps(read)
    def read_again(*args: Params.args, **kwargs: Params.kwargs) -> Result:
        for pause in RETRY_PAUSES:
            with suppress(TransientReadError):
                return read(*args, **kwargs)
            time.sleep(pause)
        return read(*args, **kwargs)

    return read_again


class IgnoreExifPath(PosixPath):
    """Path of an image, or of a folder of images, whose EXIF orientation is not applied."""


@_retry
def read_image(path: Path | str) -> Image.Image:
    """Reads an image as 8-bit RGB, with its EXIF orientation applied.

    Grey values of 16 and 32 bits are divided by 256, because 32-bit images contain 16-bit values
    (PIL reads 16-bit PNG files in this way). Floating-point values are taken as 0 to 1, or as 0 to
    255 if one of them is above 1. Transparency is dropped, and only the first frame is read.

    Args:
        path: the file; the EXIF orientation of an `IgnoreExifPath` is not applied.

    Raises:
        InputError: the file is missing, truncated or not an image, or has more than `MAX_PIXELS`
            pixels; a `TransientReadError` if it could not be read for another reason.
    """
    with _open_image(path) as image:
        return _to_upright_rgb(image, apply_exif=not isinstance(path, IgnoreExifPath))


def to_upright_rgb(image: Image.Image) -> Image.Image:
    """An opened image, which stays unchanged, in the form that `read_image` returns."""
    upright = _to_upright_rgb(image)
    # They share their pixels if nothing had to be converted.
    return upright.copy() if upright.im is image.im else upright


def _to_upright_rgb(image: Image.Image, apply_exif: bool = True) -> Image.Image:
    """`to_upright_rgb` of an image that is not used any more: copies of large ones matter."""
    orientation = _exif_orientation(image) if apply_exif or isinstance(image, TiffImageFile) else 1
    image.load()
    if isinstance(image, TiffImageFile):
        # PIL has turned it while it loaded it.
        orientation = 1 if apply_exif else INVERSE_ORIENTATIONS.get(orientation, orientation)
    turn = EXIF_TRANSPOSES.get(orientation)
    # A plain image in place of one of a file format, with the same pixels.
    upright = image._new(image.im) if turn is None else image.transpose(turn)
    if upright.mode.startswith("I"):
        upright = _int_to_uint8(np.asarray(upright))
    elif upright.mode == "F":
        upright = _float_to_uint8(np.asarray(upright))
    elif upright.mode == "P" and isinstance(upright.info.get("transparency"), bytes):
        # PIL warns about lost transparency when such a palette is converted to RGB directly.
        upright = upright.convert("RGBA")
    rgb = upright if upright.mode == "RGB" else upright.convert("RGB")
    # Otherwise the orientation would be applied again to an image that is read and passed on.
    for name in EXIF_INFO:
        rgb.info.pop(name, None)
    return rgb


def is_large(image: Image.Image) -> bool:
    """Whether an image has more than `LARGE_IMAGE_PIXELS` pixels."""
    return image.width * image.height > LARGE_IMAGE_PIXELS


def iter_bands(
    image: Image.Image, box: tuple[int, int, int, int]
) -> Iterator[tuple[int, np.ndarray]]:
    """The pixels of an RGB image in (left, top, right, bottom), in bands of rows.

    Yields:
        Of each band, its first row in the box and its (h, w, 3) uint8 pixels, an array of its own.
    """
    left, top, right, bottom = box
    step = max(1, BAND_PIXELS // (right - left))
    for start in range(top, bottom, step):
        band = image.crop((left, start, right, min(start + step, bottom)))
        yield start - top, np.array(band)


def to_array(image: Image.Image) -> np.ndarray:
    """The (h, w, 3) uint8 pixels of an RGB image, as an array of its own.

    PIL's own conversion needs three times the memory of the array.
    """
    if image.width * image.height <= BAND_PIXELS:
        return np.array(image)
    pixels = np.empty((image.height, image.width, 3), np.uint8)
    for start, band in iter_bands(image, (0, 0, *image.size)):
        pixels[start : start + len(band)] = band
    return pixels


@dataclass(frozen=True)
class ImageHeader:
    """Size and orientation from the header of an image file.

    Attributes:
        stored_size: width and height of the image as stored in the file.
        orientation: EXIF orientation, 1 to 8; 1 for files without.
    """

    stored_size: tuple[int, int]
    orientation: int = 1

    @property
    def is_transposed(self) -> bool:
        """Whether the EXIF orientation swaps width and height."""
        return self.orientation >= 5

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the upright image."""
        width, height = self.stored_size
        return (height, width) if self.is_transposed else (width, height)


@_retry
def read_header(path: Path | str, decode: bool = False) -> ImageHeader:
    """Reads the header of an image file; an `IgnoreExifPath` has orientation 1.

    With `decode`, the pixels are decoded too, at the lowest resolution that the format offers. This
    finds truncated files, whose header is intact.

    Raises:
        InputError: the file is missing or not an image, has more than `MAX_PIXELS` pixels, or is
            damaged (with `decode`).
    """
    with _open_image(path) as image:
        ignore_exif = isinstance(path, IgnoreExifPath)
        orientation = 1 if ignore_exif else _exif_orientation(image, path)
        header = ImageHeader(_stored_size(image), orientation)
        if decode:
            image.draft(None, (1, 1))
            _to_upright_rgb(image)
        return header


def read_headers(
    paths: Sequence[Path], title: str, decode: bool = False
) -> list[ImageHeader | InputError]:
    """Reads headers in parallel, with progress; gives the error for an unreadable file."""
    with ThreadPoolExecutor(READ_THREADS) as pool:
        headers = pool.map(partial(_read_header_or_error, decode=decode), paths)
        return list(track(headers, len(paths), title, "images", brief=True))


def _read_header_or_error(path: Path, decode: bool) -> ImageHeader | InputError:
    try:
        return read_header(path, decode)
    except InputError as error:
        return error


def read_image_size(path: Path | str) -> tuple[int, int]:
    """Width and height of the upright image; see `read_header`."""
    return read_header(path).size


def _stored_size(image: Image.Image) -> tuple[int, int]:
    """Width and height of an opened image as stored; of TIFF files, newer PIL gives the upright."""
    if isinstance(image, TiffImageFile):
        return image.tag_v2[IMAGEWIDTH], image.tag_v2[IMAGELENGTH]
    return image.size


def _exif_orientation(image: Image.Image, path: Path | str | None = None) -> int:
    """EXIF orientation of an image; 1 (upright) without an EXIF block or with a damaged one.

    Of a file that is only opened, `path` is needed: to look for metadata behind the pixels of a PNG
    file, PIL would decode these.
    """
    is_png = path is not None and image.format == "PNG"
    early = is_png and not _has_late_metadata(str(path))
    try:
        exif = Image.Image.getexif(image) if early else image.getexif()
        orientation = exif.get(EXIF_ORIENTATION, 1)
    # PIL raises many kinds of errors on a damaged EXIF block, which does not affect the pixels.
    except Exception:
        return 1
    return orientation if orientation in EXIF_TRANSPOSES else 1


def _has_late_metadata(path: str) -> bool:
    """Whether a PNG file has text or an EXIF block behind its pixels."""
    with open(path, "rb") as file:
        file.seek(PNG_SIGNATURE_SIZE)
        after_pixels = False
        while len(head := file.read(8)) == 8:
            length, kind = int.from_bytes(head[:4], "big"), head[4:]
            if after_pixels and kind in PNG_METADATA:
                return True
            after_pixels = after_pixels or kind == b"IDAT"
            # The content and its checksum.
            file.seek(length + 4, os.SEEK_CUR)
    return False


def _int_to_uint8(values: np.ndarray) -> Image.Image:
    shifted = values >> 8
    return Image.fromarray(shifted.clip(0, 255, out=shifted).astype(np.uint8))


def _float_to_uint8(values: np.ndarray) -> Image.Image:
    finite = np.nan_to_num(values, nan=0.0, posinf=255.0, neginf=0.0)
    if finite.max(initial=0.0) <= 1:
        finite *= 255
    np.rint(finite, out=finite)
    return Image.fromarray(finite.clip(0, 255, out=finite).astype(np.uint8))


def _describe_other(path: Path | str) -> str:
    """What a file is that PIL does not recognise as an image."""
    if not Path(path).stat().st_size:
        return "an empty file"
    ending = Path(path).suffix.lower()
    if ending in UNREAD_EXTENSIONS:
        return f"a format that is not supported ({ending}); convert it to JPEG or PNG"
    return "another kind of file"


@contextmanager
def _open_image(path: Path | str) -> Iterator[Image.Image]:
    try:
        # Opening a named pipe would block for ever.
        if not stat.S_ISREG(Path(path).stat().st_mode):
            found = "a folder" if Path(path).is_dir() else "something that is not a file"
            raise InputError(f"{path}: expected an image file, found {found}")
        with Image.open(path) as image:
            # PIL would run Ghostscript, which runs the file as a program.
            if image.format == "EPS":
                raise InputError(f"{path}: expected an image, found PostScript")
            yield image
    except FileNotFoundError:
        raise InputError(f"{path}: no such image") from None
    except UnidentifiedImageError:
        raise InputError(f"{path}: expected an image, found {_describe_other(path)}") from None
    except Image.DecompressionBombError:
        raise InputError(
            f"{path}: expected an image of at most {MAX_PIXELS} pixels, found a larger one"
        ) from None
    except InputError:
        raise
    # PIL's decoders raise all kinds of errors on damaged bytes.
    except Exception as error:
        if isinstance(error, OSError) and error.errno in TRANSIENT_ERRORS:
            tries = len(RETRY_PAUSES) + 1
            raise TransientReadError(
                f"{path}: cannot be read ({error.strerror}, {tries} tries)"
            ) from None
        found = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{path}: expected a whole image, found {found}") from None
