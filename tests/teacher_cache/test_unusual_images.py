"""Pictures of every kind, good and bad, through the command: answered about or listed as failed."""

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


def saved(mode, kind, **options):
    """The picture in another mode and file format, under its own name."""

    def make(path, image):
        image.convert(mode).save(path, kind, **options)

    return make


def grey(kind, scale):
    def make(path, image):
        values = (np.asarray(image.convert("L")).astype(np.float64) * scale).astype(kind)
        Image.fromarray(values).save(path, "TIFF")

    return make


def turned(path, image):
    exif = Image.Exif()
    exif[0x0112] = 6
    image.transpose(Image.Transpose.ROTATE_90).save(path, "JPEG", exif=exif)


def animated(path, image):
    image.save(path, "GIF", save_all=True, append_images=[Image.new("RGB", image.size)] * 3)


def palette(path, image):
    image.quantize(16).save(path, "PNG", transparency=bytes(range(16)))


def of_size(*size):
    return lambda path, image: image.resize(size).save(path, "PNG")


def cut(share):
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


def emptied(path, image):
    path.write_bytes(b"")


READ = {
    "cmyk": saved("CMYK", "JPEG"),
    "grey": saved("L", "JPEG"),
    "progressive": saved("RGB", "JPEG", progressive=True),
    "grey with alpha": saved("LA", "PNG"),
    "alpha": saved("RGBA", "PNG"),
    "one bit": saved("1", "PNG"),
    "palette": palette,
    "16 bit": grey(np.uint16, 257),
    "32 bit": grey(np.int32, 257),
    "floats": grey(np.float32, 1 / 255),
    "turned": turned,
    "animated": animated,
    "one pixel": of_size(1, 1),
    "panorama": of_size(20_000, 6),
    "tower": of_size(6, 20_000),
}
FAILED = {
    "cut": (cut(0.6), "expected a whole image"),
    "header alone": (cut(0.02), "expected a"),
    "empty": (emptied, "expected an image, found another kind of file"),
    "text": (lambda path, _: path.write_text("hello"), "expected an image, found another kind"),
    "bomb": (bomb, "expected an image of at most"),
    "missing": (lambda path, _: None, "no such image"),
    "folder": (lambda path, _: path.mkdir(), "expected an image file, found a folder"),
    "pipe": (lambda path, _: os.mkfifo(path), "expected an image file, found something"),
}


@pytest.fixture(scope="module")
def odd(shared_dataset, tmp_path_factory):
    """A dataset whose pictures are each odd in their own way, and the kind by file name."""
    root = tmp_path_factory.mktemp("odd") / "toy"
    makers = {**READ, **{name: make for name, (make, _) in FAILED.items()}}
    write_toy(root, train=len(makers), test=1, seed=2, workers=1)
    for name in ("detector.safetensors", "dataset.toml"):
        shutil.copy(shared_dataset / name, root)
    shutil.copytree(shared_dataset / "teacher", root / "teacher")
    # The pictures become others than the drawn ones, which say their sizes.
    file = root / "annotations/trainval_hico.json"
    entries = json.loads(file.read_text())
    file.write_text(json.dumps([{**one, "width": None, "height": None} for one in entries]))
    kinds = {}
    paths = sorted((root / "images/train2015").iterdir())
    for path, (kind, make) in zip(paths, makers.items(), strict=True):
        with Image.open(path) as opened:
            image = opened.convert("RGB")
        path.unlink()
        make(path, image)
        kinds[path.name] = kind
    return root, kinds


@pytest.mark.parametrize("level", ["region", "image"])
def test_every_picture_is_answered_about_or_listed(odd, tmp_path, monkeypatch, capfd, level):
    root, kinds = odd
    words = ["build", root, "--out", tmp_path / "cache", "--device", "cpu", "--level", level]
    words += ["--person-threshold", 0.06, "--object-threshold", 0.06]
    words += ["--max-people", 2, "--max-objects", 3, "--images-per-shard", 9]
    monkeypatch.setattr(sys, "argv", ["eoid-cache", *map(str, words)])
    with pytest.raises(SystemExit) as ended:
        main()
    _, complained = capfd.readouterr()
    assert ended.value.code == 0, complained
    assert "Traceback" not in complained and "Warning" not in complained
    cache = open_cache(tmp_path / "cache")
    assert sorted([*cache.image_ids, *cache.failed]) == sorted(kinds)
    assert {kinds[name] for name in cache.image_ids} == READ.keys()
    for name, reason in cache.failed.items():
        assert FAILED[kinds[name]][1] in reason and str(root) not in reason
    for name in cache.image_ids:
        outputs = cache[name]
        assert len(outputs.pairs) > 0 and np.isfinite(outputs.embeddings).all()
        np.testing.assert_allclose(outputs.probabilities.sum(1), 1, atol=5e-3)
    assert f"{len(FAILED)} images could not be read, first" in complained
