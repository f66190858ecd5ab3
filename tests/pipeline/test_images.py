import os
import struct
import subprocess
import sys
import warnings
import zlib

import numpy as np
import PIL
import pytest
from PIL import Image

from pipeline.images import MAX_PIXELS, read_image, read_image_size
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
        ("RGB", "a.png"),
        ("RGB", "a.webp"),
        ("CMYK", "a.jpg"),
        ("P", "a.png"),
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
    ("values", "expected"),
    [
        (np.array([[0, 128, 255]], dtype=np.uint8), [0, 128, 255]),
        (np.array([[0, 128 << 8, 65535]], dtype=np.uint16), [0, 128, 255]),
        (np.array([[-5, 128 << 8, 1 << 30]], dtype=np.int32), [0, 128, 255]),
        (np.array([[False, True, True]]), [0, 255, 255]),
    ],
)
def test_grey_images(tmp_path, values, expected):
    Image.fromarray(values).save(tmp_path / "grey.tif")
    image = read_image(tmp_path / "grey.tif")
    assert image.mode == "RGB"
    assert np.asarray(image)[0].tolist() == [[value] * 3 for value in expected]


def test_16_bit_png(tmp_path):
    Image.fromarray(np.array([[0, 65535]], dtype=np.uint16)).save(tmp_path / "grey.png")
    assert np.asarray(read_image(tmp_path / "grey.png"))[0].tolist() == [[0] * 3, [255] * 3]


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


@pytest.mark.parametrize("read", [read_image, read_image_size])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such image"),
        (b"", "expected"),
        (b"not an image at all", "expected"),
    ],
)
def test_other_files_are_refused(tmp_path, read, content, message):
    path = tmp_path / "a.jpg"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=f"a.jpg: {message}"):
        read(path)


@pytest.mark.parametrize("read", [read_image, read_image_size])
def test_folders_and_pipes_are_refused(tmp_path, read):
    with pytest.raises(InputError, match="expected an image file, found a folder"):
        read(tmp_path)
    os.mkfifo(tmp_path / "pipe.jpg")
    with pytest.raises(InputError, match=r"pipe\.jpg: expected"):
        read(tmp_path / "pipe.jpg")


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.0, 0.5, 1.0], [0, 128, 255]),
        ([-3.0, 127.6, 300.0], [0, 128, 255]),
        ([np.nan, np.inf, -np.inf], [0, 255, 0]),
    ],
)
def test_floating_point_images(tmp_path, values, expected):
    Image.fromarray(np.array([values], dtype=np.float32)).save(tmp_path / "grey.tif")
    image = read_image(tmp_path / "grey.tif")
    assert np.asarray(image)[0].tolist() == [[value] * 3 for value in expected]


@pytest.mark.parametrize("mode", ["L", "LA", "PA", "YCbCr", "LAB"])
def test_unusual_modes_become_rgb(rgb_image, tmp_path, mode):
    if mode == "LAB":
        from PIL import ImageCms

        profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
        odd = ImageCms.applyTransform(
            rgb_image, ImageCms.buildTransform(*profiles, "RGB", "LAB", 0)
        )
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


def test_palette_transparency_is_dropped_without_warning(rgb_image, tmp_path):
    rgb_image.quantize(4).save(tmp_path / "a.png", transparency=bytes([0, 128, 255, 9]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        image = read_image(tmp_path / "a.png")
    assert near(image.getpixel((5, 5)), LEFT) and near(image.getpixel((35, 5)), RIGHT)


@pytest.mark.parametrize("name", ["a.gif", "a.png", "a.tif", "a.webp"])
def test_first_frame_is_read(rgb_image, tmp_path, name):
    others = [rgb_image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)] * 2
    rgb_image.save(tmp_path / name, save_all=True, append_images=others)
    image = read_image(tmp_path / name)
    assert near(image.getpixel((5, 5)), LEFT) and near(image.getpixel((35, 5)), RIGHT)


def test_progressive_jpeg(rgb_image, tmp_path):
    rgb_image.save(tmp_path / "a.jpg", progressive=True)
    assert near(read_image(tmp_path / "a.jpg").getpixel((5, 5)), LEFT)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_damaged_exif_does_not_change_the_pixels(rgb_image, tmp_path):
    rgb_image.save(tmp_path / "a.jpg", exif=b"Exif\0\0II*\0\xff\xff\xff\x7fgarbage")
    assert read_image(tmp_path / "a.jpg").size == read_image_size(tmp_path / "a.jpg") == (40, 20)


DAMAGED = {
    "cut": b"Exif\0\0II*\0\x08\0\0\0\x02\0\x12\x01\x03\0",
    "far": b"Exif\0\0II*\0\x08\0\0\0\x01\0\x0f\x01\x02\0\xff\xff\0\0\xff\xff\0\0\0\0\0\0",
}


@pytest.mark.parametrize("exif", DAMAGED)
def test_damaged_exif_gives_no_warning(rgb_image, tmp_path, exif):
    rgb_image.save(tmp_path / "a.jpg", exif=DAMAGED[exif])
    code = "import sys; from pipeline.images import read_image; read_image(sys.argv[1])"
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "a.jpg"], capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("read", [read_image, read_image_size])
def test_images_with_too_many_pixels_are_refused(rgb_image, tmp_path, read):
    """A PNG whose header claims 20,000 x 20,000 pixels."""
    rgb_image.save(tmp_path / "huge.png")
    content = bytearray((tmp_path / "huge.png").read_bytes())
    assert MAX_PIXELS < 20_000**2
    content[16:24] = struct.pack(">II", 20_000, 20_000)
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    (tmp_path / "huge.png").write_bytes(content)
    with pytest.raises(InputError, match=r"huge\.png: expected") as caught:
        read(tmp_path / "huge.png")
    assert "\n" not in str(caught.value)


def test_large_image_is_read_without_warning(tmp_path):
    Image.new("1", (20_000, 4_600)).save(tmp_path / "large.png")
    code = "import sys; from pipeline.images import read_image; print(read_image(sys.argv[1]).size)"
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "large.png"], capture_output=True, text=True
    )
    assert (done.stdout, done.stderr) == ("(20000, 4600)\n", "")


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.gif", "a.tif", "a.webp"])
@pytest.mark.parametrize("share", [0.2, 0.5, 0.8])
def test_truncated_images_are_refused(tmp_path, name, share):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / name)
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[: int(len(content) * share)])
    with pytest.raises(InputError, match=f"{name}: expected a"):
        read_image(tmp_path / name)


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.gif", "a.tif", "a.webp"])
def test_damaged_images_are_read_or_refused(rgb_image, tmp_path, name):
    rgb_image.save(tmp_path / name)
    content = bytearray((tmp_path / name).read_bytes())
    dice = np.random.default_rng(1)
    for _ in range(60):
        damaged = content.copy()
        for place in dice.integers(0, len(content), 4):
            damaged[place] = dice.integers(0, 256)
        (tmp_path / name).write_bytes(damaged)
        try:
            assert read_image(tmp_path / name).mode == "RGB"
        except InputError as error:
            assert str(tmp_path / name) in str(error)
