"""Image files of many kinds, valid and damaged, through `eoid-cache build`."""

import json
import os
import shutil
import struct
import sys
import zlib

import numpy as np
import pytest
from PIL import Image

from pipeline.toy.generate import write_toy
from teacher_cache.cli import main
from teacher_cache.reader.cache import open_cache


def save_as(mode, kind, **options):
    """Saves the image in another mode and file format under its name."""

    def make(path, image):
        image.convert(mode).save(path, kind, **options)

    return make


def grey_tiff(dtype, scale):
    def make(path, image):
        values = (np.asarray(image.convert("L")).astype(np.float64) * scale).astype(dtype)
        Image.fromarray(values).save(path, "TIFF")

    return make


def rotated(path, image):
    exif = Image.Exif()
    exif[0x0112] = 6
    image.transpose(Image.Transpose.ROTATE_90).save(path, "JPEG", exif=exif)


def animated(path, image):
    image.save(path, "GIF", save_all=True, append_images=[Image.new("RGB", image.size)] * 3)


def palette(path, image):
    image.quantize(16).save(path, "PNG", transparency=bytes(range(16)))


def resized(*size):
    return lambda path, image: image.resize(size).save(path, "PNG")


def truncated(share):
    def make(path, image):
        image.save(path, "JPEG")
        path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])

    return make


def bomb(path, image):
    """A header that claims 20,000 x 20,000 pixels."""
    image.save(path, "PNG")
    content = bytearray(path.read_bytes())
    content[16:24] = struct.pack(">II", 20_000, 20_000)
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    path.write_bytes(content)


def empty(path, image):
    path.write_bytes(b"")


READABLE = {
    "cmyk": save_as("CMYK", "JPEG"),
    "grey": save_as("L", "JPEG"),
    "progressive": save_as("RGB", "JPEG", progressive=True),
    "grey with alpha": save_as("LA", "PNG"),
    "alpha": save_as("RGBA", "PNG"),
    "one bit": save_as("1", "PNG"),
    "palette": palette,
    "16 bit": grey_tiff(np.uint16, 257),
    "32 bit": grey_tiff(np.int32, 257),
    "floats": grey_tiff(np.float32, 1 / 255),
    "rotated": rotated,
    "animated": animated,
    "one pixel": resized(1, 1),
    "panorama": resized(20_000, 6),
    "tall and narrow": resized(6, 20_000),
}
FAILED = {
    "truncated": (truncated(0.6), "expected a whole image"),
    "only a header": (truncated(0.02), "expected a"),
    "empty": (empty, "expected an image, found an empty file"),
    "text": (lambda path, _: path.write_text("hello"), "expected an image, found another kind"),
    "bomb": (bomb, "expected an image of at most"),
    "missing": (lambda path, _: None, "no such image"),
    "folder": (lambda path, _: path.mkdir(), "expected an image file, found a folder"),
    "pipe": (lambda path, _: os.mkfifo(path), "expected an image file, found something"),
}


@pytest.fixture(scope="module")
def unusual(shared_dataset, tmp_path_factory):
    """A dataset of one image of each kind; returns its folder, and the kind by file name."""
    root = tmp_path_factory.mktemp("unusual") / "toy"
    makers = {**READABLE, **{name: make for name, (make, _) in FAILED.items()}}
    write_toy(root, train=len(makers), test=1, seed=2, workers=1)
    for name in ("detector.safetensors", "dataset.toml"):
        shutil.copy(shared_dataset / name, root)
    shutil.copytree(shared_dataset / "teacher", root / "teacher")
    # Without the sizes of the original images.
    file = root / "annotations/trainval_hico.json"
    entries = json.loads(file.read_text())
    file.write_text(json.dumps([{**entry, "width": None, "height": None} for entry in entries]))
    kinds = {}
    paths = sorted((root / "images/train2015").iterdir())
    for path, (kind, make) in zip(paths, makers.items(), strict=True):
        with Image.open(path) as original:
            image = original.convert("RGB")
        path.unlink()
        make(path, image)
        kinds[path.name] = kind
    return root, kinds


def test_every_image_has_outputs_or_is_listed_as_failed(unusual, tmp_path, monkeypatch, capfd):
    root, kinds = unusual
    arguments = ["build", root, "--out", tmp_path / "cache", "--device", "cpu"]
    arguments += ["--person-threshold", 0.06, "--object-threshold", 0.06]
    arguments += ["--max-people", 2, "--max-objects", 3, "--images-per-shard", 9]
    monkeypatch.setattr(sys, "argv", ["eoid-cache", *map(str, arguments)])
    with pytest.raises(SystemExit) as caught:
        main()
    _, stderr = capfd.readouterr()
    assert caught.value.code == 0, stderr
    assert "Traceback" not in stderr and "Warning" not in stderr
    cache = open_cache(tmp_path / "cache")
    assert sorted([*cache.image_ids, *cache.failed]) == sorted(kinds)
    assert {kinds[name] for name in cache.image_ids} == READABLE.keys()
    for name, reason in cache.failed.items():
        assert FAILED[kinds[name]][1] in reason and str(root) not in reason
    for name in cache.image_ids:
        outputs = cache[name]
        assert len(outputs.pairs) > 0 and np.isfinite(outputs.embeddings).all()
        np.testing.assert_allclose(outputs.probabilities.sum(1), 1, atol=5e-3)
    assert f"{len(FAILED)} images could not be read, first" in stderr
