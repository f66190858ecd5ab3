import errno
import io
import os
import struct
import subprocess
import sys
import zlib
from itertools import product
from types import SimpleNamespace

import numpy as np
import PIL
import pytest
from PIL import Image, ImageFile
from PIL.PngImagePlugin import PngImageFile

from pipeline import images
from pipeline.images import (
    EXIF_TRANSPOSES,
    MAX_PIXELS,
    TRANSIENT_ERRORS,
    IgnoreExifPath,
    ImageHeader,
    TransientReadError,
    read_header,
    read_image,
    read_image_size,
    to_array,
    to_upright_rgb,
)
from pipeline.utils.errors import InputError

LEFT, RIGHT = (200, 40, 40), (40, 40, 200)


@pytest.fixture
def rgb_image():
    """An image of 40 x 20 pixels, left half red, right half blue."""
    image = Image.new("RGB", (40, 20), LEFT)
    image.paste(RIGHT, (20, 0, 40, 20))
    return image


def near(pixel, colour):
    return max(abs(a - b) for a, b in zip(pixel, colour, strict=True)) < 60


@pytest.mark.parametrize(
    ("mode", "name"),
    [
        ("RGB", "a.jpg"),
        ("RGB", "a.webp"),
        ("CMYK", "a.jpg"),
        ("P", "a.gif"),
        ("RGBA", "a.png"),
    ],
)
def test_colour_images_of_all_formats(rgb_image, tmp_path, mode, name):
    rgb_image.convert(mode).save(tmp_path / name)
    image = read_image(tmp_path / name)
    assert (image.mode, image.size) == ("RGB", (40, 20))
    assert read_image_size(tmp_path / name) == (40, 20)
    assert near(image.getpixel((5, 5)), LEFT) and near(image.getpixel((35, 5)), RIGHT)


@pytest.mark.parametrize(
    ("values", "dtype", "name", "expected"),
    [
        ([0, 128, 255], np.uint8, "grey.tif", [0, 128, 255]),
        ([0, 128 << 8, 65535], np.uint16, "grey.tif", [0, 128, 255]),
        ([-5, 128 << 8, 1 << 30], np.int32, "grey.tif", [0, 128, 255]),
        ([False, True, True], np.bool_, "grey.tif", [0, 255, 255]),
        ([0.0, 0.5, 1.0], np.float32, "grey.tif", [0, 128, 255]),
        ([np.nan, np.inf, -np.inf], np.float32, "grey.tif", [0, 255, 0]),
    ],
)
def test_grey_images(tmp_path, values, dtype, name, expected):
    Image.fromarray(np.array([values], dtype=dtype)).save(tmp_path / name)
    image = read_image(tmp_path / name)
    assert image.mode == "RGB"
    assert np.asarray(image)[0].tolist() == [[value] * 3 for value in expected]


@pytest.mark.parametrize(
    ("orientation", "size", "left_top"),
    [(1, (40, 20), LEFT), (3, (40, 20), RIGHT), (6, (20, 40), LEFT), (8, (20, 40), RIGHT)],
)
def test_exif_orientation_is_applied(rgb_image, tmp_path, orientation, size, left_top):
    exif = Image.Exif()
    exif[0x0112] = orientation
    rgb_image.save(tmp_path / "turned.jpg", exif=exif)
    image = read_image(tmp_path / "turned.jpg")
    assert image.size == read_image_size(tmp_path / "turned.jpg") == size
    assert near(image.getpixel((3, 3)), left_top)
    # It is not turned again where it is passed on.
    np.testing.assert_array_equal(to_upright_rgb(image), image)


def move_behind_pixels(content, kind):
    """A PNG file with a chunk of this kind moved to its end."""
    start = content.index(kind) - 4
    end = start + 12 + int.from_bytes(content[start : start + 4], "big")
    rest, last = content[:start] + content[end:-12], content[-12:]
    return rest + content[start:end] + last


@pytest.mark.parametrize("late", [False, True])
def test_the_orientation_of_png_files(rgb_image, tmp_path, monkeypatch, late):
    exif = Image.Exif()
    exif[0x0112] = 6
    rgb_image.save(tmp_path / "turned.png", exif=exif)
    if late:
        content = (tmp_path / "turned.png").read_bytes()
        (tmp_path / "turned.png").write_bytes(move_behind_pixels(content, b"eXIf"))
    assert read_image(tmp_path / "turned.png").size == (20, 40)
    assert read_image_size(tmp_path / "turned.png") == (20, 40)


def test_the_header_of_a_png_file_is_read_without_its_pixels(rgb_image, tmp_path, monkeypatch):
    rgb_image.save(tmp_path / "a.png")
    monkeypatch.setattr(PngImageFile, "load", lambda image: pytest.fail("decoded"))
    assert read_image_size(tmp_path / "a.png") == (40, 20)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp", "a.tif"])
def test_all_orientations_in_all_formats(rgb_image, tmp_path, name, orientation):
    """Applied, and ignored; PIL itself turns TIFF files."""
    rgb_image.paste((40, 200, 40), (0, 0, 20, 10))
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / name
    rgb_image.save(path, exif=exif)
    turn = EXIF_TRANSPOSES.get(orientation)
    upright = rgb_image if turn is None else rgb_image.transpose(turn)
    for source, expected in ((path, upright), (IgnoreExifPath(path), rgb_image)):
        image = read_image(source)
        assert image.size == read_image_size(source) == to_upright_rgb(image).size == expected.size
        for x, y in product((2, image.width - 3), (2, image.height - 3)):
            assert near(image.getpixel((x, y)), expected.getpixel((x, y)))
    assert read_header(path) == ImageHeader((40, 20), orientation)
    with Image.open(path) as opened:
        assert to_upright_rgb(opened).size == upright.size


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_an_opened_image_stays_unchanged(rgb_image, tmp_path, mode):
    rgb_image.convert(mode).save(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as opened:
        to_upright_rgb(opened).paste(0, (0, 0, 9, 9))
        assert opened.mode == mode and opened.getpixel((5, 5)) != opened.getpixel((35, 5))


def test_an_image_that_was_read_is_no_open_file(rgb_image, tmp_path):
    rgb_image.save(tmp_path / "a.png")
    image = read_image(tmp_path / "a.png")
    assert type(image) is Image.Image
    np.testing.assert_array_equal(image, rgb_image)


@pytest.mark.parametrize("pixels", [1, 90, 10**6])
def test_pixels_as_an_array_of_their_own(rgb_image, monkeypatch, pixels):
    monkeypatch.setattr(images, "BAND_PIXELS", pixels)
    found = to_array(rgb_image)
    np.testing.assert_array_equal(found, rgb_image)
    assert found.flags.writeable and found.base is None


@pytest.mark.parametrize("mode", ["L", "LA", "PA", "YCbCr", "LAB"])
def test_unusual_modes_become_rgb(rgb_image, tmp_path, mode):
    if mode == "LAB":
        from PIL import ImageCms

        profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
        transform = ImageCms.buildTransform(*profiles, "RGB", "LAB", 0)
        odd = ImageCms.applyTransform(rgb_image, transform)
    else:
        odd = rgb_image.convert(mode)
    odd.save(tmp_path / "odd.tif")
    try:
        image = read_image(tmp_path / "odd.tif")
    except InputError as error:
        # LAB needs a Pillow with Little CMS, a YCbCr TIFF without compression Pillow 13.
        assert mode == "LAB" or (mode == "YCbCr" and int(PIL.__version__.split(".")[0]) < 13)
        assert "odd.tif: expected a whole image" in str(error)
    else:
        assert (image.mode, image.size) == ("RGB", (40, 20))


@pytest.mark.parametrize("name", ["a.gif", "a.png", "a.tif", "a.webp"])
def test_first_frame_is_read(rgb_image, tmp_path, name):
    others = [rgb_image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)] * 2
    rgb_image.save(tmp_path / name, save_all=True, append_images=others)
    image = read_image(tmp_path / name)
    assert near(image.getpixel((5, 5)), LEFT) and near(image.getpixel((35, 5)), RIGHT)


def test_images_that_pil_warns_about_are_read_without_warning(rgb_image, tmp_path):
    """Transparent palettes, damaged EXIF blocks and large images."""
    rgb_image.quantize(4).save(tmp_path / "a.png", transparency=bytes([0, 128, 255, 9]))
    for index, exif in enumerate(DAMAGED_EXIF):
        rgb_image.save(tmp_path / f"{index}.jpg", exif=b"Exif\0\0II*\0" + exif)
    Image.new("1", (20_000, 4_600)).save(tmp_path / "b.png")
    code = (
        "import sys; from pipeline.images import read_image, read_image_size\n"
        "for path in sys.argv[1:]: print(read_image(path).size, read_image_size(path))"
    )
    words = [sys.executable, "-c", code, *sorted(tmp_path.iterdir())]
    done = subprocess.run(words, capture_output=True, text=True)
    small, large = "(40, 20) (40, 20)\n", "(20000, 4600) (20000, 4600)\n"
    assert (done.stdout, done.stderr) == (4 * small + large, "")
    assert near(read_image(tmp_path / "a.png").getpixel((5, 5)), LEFT)


DAMAGED_EXIF = (
    b"\xff\xff\xff\x7fgarbage",
    b"\x08\0\0\0\x02\0\x12\x01\x03\0",
    b"\x08\0\0\0\x01\0\x0f\x01\x02\0\xff\xff\0\0\xff\xff\0\0\0\0\0\0",
)


def header_of_20_000_pixels_a_side(content):
    content = bytearray(content)
    content[16:24] = struct.pack(">II", 20_000, 20_000)
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    return content


def to_postscript(content):
    found = io.BytesIO()
    with Image.open(io.BytesIO(content)) as image:
        image.convert("RGB").save(found, "EPS")
    return found.getvalue()


@pytest.mark.parametrize("read", [read_image, read_image_size])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda _: b"", "expected an image, found an empty file"),
        (lambda _: b"not an image at all", "expected an image, found another kind of file"),
        (header_of_20_000_pixels_a_side, f"expected an image of at most {MAX_PIXELS}"),
        (to_postscript, "expected an image, found PostScript"),
    ],
)
def test_other_files_are_refused(rgb_image, tmp_path, read, change, message):
    path = tmp_path / "a.png"
    rgb_image.save(path)
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(InputError, match=rf"a\.png: {message}") as caught:
        read(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("read", [read_image, read_image_size])
def test_formats_that_are_not_read_are_named(tmp_path, read):
    (tmp_path / "a.HEIC").write_bytes(b"\0\0\0\x18ftypheic")
    with pytest.raises(InputError, match=r"a\.HEIC: .*\.heic.*convert it to JPEG or PNG"):
        read(tmp_path / "a.HEIC")


@pytest.mark.parametrize("read", [read_image, read_image_size])
def test_missing_files_folders_and_pipes_are_refused(tmp_path, read):
    with pytest.raises(InputError, match=r"a\.jpg: no such image"):
        read(tmp_path / "a.jpg")
    with pytest.raises(InputError, match="expected an image file, found a folder"):
        read(tmp_path)
    os.mkfifo(tmp_path / "pipe.jpg")
    with pytest.raises(InputError, match=r"pipe\.jpg: expected"):
        read(tmp_path / "pipe.jpg")


FORMATS = ["a.jpg", "a.png", "a.gif", "a.tif", "a.webp"]


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("share", [0.2, 0.8])
def test_truncated_images_are_refused(tmp_path, name, share):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / name)
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[: int(len(content) * share)])
    with pytest.raises(InputError, match=f"{name}: expected a"):
        read_image(tmp_path / name)


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("name", FORMATS)
def test_damaged_images_are_read_or_refused(rgb_image, tmp_path, name):
    rgb_image.save(tmp_path / name)
    content = bytearray((tmp_path / name).read_bytes())
    rng = np.random.default_rng(1)
    for _ in range(30):
        damaged = content.copy()
        for place in rng.integers(0, len(content), 4):
            damaged[place] = rng.integers(0, 256)
        (tmp_path / name).write_bytes(damaged)
        try:
            assert read_image(tmp_path / name).mode == "RGB"
        except InputError as error:
            assert str(tmp_path / name) in str(error)


@pytest.fixture
def pauses(monkeypatch):
    """The pauses between tries, which do not take place."""
    pauses = []
    # Not of `time` itself, whose function other threads call too.
    monkeypatch.setattr("pipeline.images.time", SimpleNamespace(sleep=pauses.append))
    return pauses


@pytest.fixture
def fail(monkeypatch):
    """`fail(owner, name, number, times)`: a function of PIL raises an error so many times."""

    def make(owner, name, number, times):
        original, left = getattr(owner, name), [None] * times

        def read(*args, **options):
            if left:
                left.pop()
                raise OSError(number, os.strerror(number))
            return original(*args, **options)

        monkeypatch.setattr(owner, name, read)

    return make


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN])
@pytest.mark.parametrize(("owner", "name"), [(Image, "open"), (ImageFile.ImageFile, "load")])
def test_errors_that_pass_are_tried_three_times(
    rgb_image, tmp_path, pauses, fail, owner, name, number
):
    path = tmp_path / "a.jpg"
    rgb_image.save(path)
    fail(owner, name, number, 2)
    assert read_image(path).size == (40, 20) and pauses == [1.0, 4.0]
    fail(owner, name, number, 3)
    with pytest.raises(TransientReadError) as caught:
        read_image(path)
    assert str(caught.value) == f"{path}: cannot be read ({os.strerror(number)}, 3 tries)"
    assert pauses == 2 * [1.0, 4.0]
    if name == "open":
        fail(owner, name, number, 1)
        assert read_image_size(path) == (40, 20) and pauses[4:] == [1.0]


@pytest.mark.parametrize("number", [errno.ENOENT, errno.EACCES, errno.EINVAL, errno.ENAMETOOLONG])
def test_other_errors_are_not_tried_again(rgb_image, tmp_path, pauses, fail, number):
    """They do not pass within seconds; PIL raises EINVAL for a damaged offset."""
    rgb_image.save(tmp_path / "a.jpg")
    fail(Image, "open", number, 1)
    with pytest.raises(InputError) as caught:
        read_image(tmp_path / "a.jpg")
    assert not isinstance(caught.value, TransientReadError) and pauses == []
    assert number not in TRANSIENT_ERRORS


@pytest.mark.parametrize("kind", ["missing", "folder", "empty", "text", "truncated"])
def test_damaged_and_missing_images_are_not_tried_again(rgb_image, tmp_path, pauses, kind):
    path = tmp_path / "a.jpg"
    rgb_image.save(path)
    whole = path.read_bytes()
    path.unlink()
    if kind == "folder":
        path.mkdir()
    elif kind != "missing":
        path.write_bytes({"empty": b"", "text": b"text", "truncated": whole[:-200]}[kind])
    with pytest.raises(InputError, match=r"a\.jpg: "):
        read_image(path)
    assert pauses == []
