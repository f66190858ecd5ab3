"""Measures the resident memory of `eoid-cache build` on the toy dataset: over many images of
several sizes, and with one image of many megapixels in several file formats. Prints JSON. Linux
only.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.program import run_main
from pipeline.toy.generate import LAYOUTS, write_toy
from pipeline.utils.errors import InputError
from pipeline.utils.files import read_json, write_json
from teacher_cache.reader.format import SHARDS

COMMAND = (sys.executable, "-c", "from teacher_cache.cli import main; main()", "build")
MODELS = ("--clip-model", "toy", "--detector", "toy", "--device", "cpu")
POLL_INTERVAL = 0.1
# Many images are this number of drawn ones in these sizes; both numbers have no common factor.
NUM_DRAWN = 500
SIZES = ((128, 128), (96, 128), (128, 96), (160, 120), (120, 160), (96, 96), (192, 128))
EXIF_ORIENTATION, TURNED = 0x0112, 6
# Ways to save the large image. A JPEG may hold its coefficients in memory, a turned image needs a
# second copy, and 16-bit grey values are converted.
FORMATS: dict[str, Callable[[Image.Image, Path], None]] = {
    "JPEG": lambda image, path: image.save(path, "JPEG"),
    "progressive JPEG": lambda image, path: image.save(path, "JPEG", progressive=True),
    "turned JPEG": lambda image, path: image.save(path, "JPEG", exif=_turned()),
    "PNG": lambda image, path: image.save(path, "PNG", compress_level=1),
    "PNG with alpha": lambda image, path: image.convert("RGBA").save(path, "PNG", compress_level=1),
    "16-bit PNG": lambda image, path: _grey16(image).save(path, "PNG", compress_level=1),
}


def _turned() -> Image.Exif:
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = TURNED
    return exif


def _grey16(image: Image.Image) -> Image.Image:
    return Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)


def memory(pid: int) -> tuple[int, int]:
    """Resident memory of a process and its maximum so far, in megabytes; zeros at its end."""
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0, 0
    found = [re.search(rf"{name}:\s*(\d+) kB", text) for name in ("VmRSS", "VmHWM")]
    resident, peak = (round(int(one[1]) * 1024 / 1e6) if one else 0 for one in found)
    return resident, peak


def build(dataset: Path, out: Path, *options: str) -> tuple[dict[int, int], int]:
    """Builds a cache in a process of its own.

    Returns:
        Resident megabytes by the number of finished shards, and the process's maximum.

    Raises:
        InputError: the build failed.
    """
    words = [*COMMAND, str(dataset), "--out", str(out), *MODELS, *options]
    by_shards, highest = {}, 0
    with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        # Progress is a few kilobytes, which fit the pipe.
        while process.poll() is None:
            resident, peak = memory(process.pid)
            highest = max(highest, peak)
            shards = len(list((out / SHARDS).glob("*.h5")))
            if resident and shards not in by_shards:
                by_shards[shards] = resident
            time.sleep(POLL_INTERVAL)
        assert process.stderr is not None
        text = process.stderr.read().decode()
    if process.returncode:
        raise InputError(text.strip().splitlines()[-1])
    return by_shards, highest


def many_images(folder: Path, count: int, images_per_shard: int) -> dict[str, Any]:
    """Resident megabytes at a twentieth of the shards, at each tenth and at the end."""
    write_toy(folder / "toy", train=min(count, NUM_DRAWN), test=1, seed=0)
    repeat_images(folder / "toy", count)
    shard = ("--images-per-shard", str(images_per_shard))
    by_shards, peak = build(folder / "toy", folder / "cache", *shard)
    last = -(-count // images_per_shard)
    points = sorted({round(last * share / 20) for share in (1, *range(2, 20, 2), 19)})
    found = {
        number * images_per_shard: by_shards[max(each for each in by_shards if each <= number)]
        for number in points
    }
    return {"images": count, "megabytes_after_images": found, "peak_megabytes": peak}


def repeat_images(root: Path, count: int) -> None:
    """Replaces a toy dataset's training images by `count` of several sizes, with their boxes."""
    images, annotations = (root / path for path in LAYOUTS["hico"]["train"])
    drawn = read_json(annotations)
    entries = []
    for number in range(count):
        entry, (width, height) = drawn[number % len(drawn)], SIZES[number % len(SIZES)]
        name = f"repeated_{number:08}.jpg"
        with Image.open(images / entry["file_name"]) as image:
            factors = 2 * (width / image.width, height / image.height)
            image.convert("RGB").resize((width, height)).save(images / name)
        rows = [
            {**row, "bbox": [a * b for a, b in zip(row["bbox"], factors, strict=True)]}
            for row in entry["annotations"]
        ]
        size = {"width": width, "height": height}
        entries.append({**entry, **size, "file_name": name, "annotations": rows})
    write_json(annotations, entries)


def enlarge(root: Path, name: str, side: int, save: Callable[[Image.Image, Path], None]) -> None:
    """Replaces a training image of a toy dataset by one of `side` x `side` pixels, with its boxes.

    The file keeps its name; readers recognise formats by their content.
    """
    images, annotations = (root / path for path in LAYOUTS["hico"]["train"])
    with Image.open(images / name) as image:
        factor = side / image.width
        large = image.convert("RGB").resize((side, side), Image.Resampling.NEAREST)
    save(large, images / name)
    entries = read_json(annotations)
    for entry in entries:
        if entry["file_name"] == name:
            entry["width"] = entry["height"] = side
            for row in entry["annotations"]:
                row["bbox"] = [factor * value for value in row["bbox"]]
    write_json(annotations, entries)


def large_image(folder: Path, megapixels: float, count: int, form: str) -> int:
    """Maximum resident megabytes of a build of four images, the first `count` of which are large
    (none for the comparison)."""
    root = folder / "toy"
    write_toy(root, train=4, test=1, seed=0, workers=1)
    for entry in read_json(root / LAYOUTS["hico"]["train"][1])[:count]:
        enlarge(root, entry["file_name"], round((megapixels * 1e6) ** 0.5), FORMATS[form])
    return build(root, folder / "cache")[1]


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=10_000, help="0 leaves this part out")
    parser.add_argument("--images-per-shard", type=int, default=100)
    parser.add_argument("--megapixels", type=float, default=100.0, help="of the large image")
    parser.add_argument("--large", type=int, default=1, help="number of large images")
    parser.add_argument("--formats", nargs="*", choices=FORMATS, default=list(FORMATS))
    options = parser.parse_args()
    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        if options.images:
            found = many_images(Path(folder), options.images, options.images_per_shard)
            result["many_images"] = found
    peaks = {}
    for form, count in [("none", 0), *((form, options.large) for form in options.formats)]:
        with tempfile.TemporaryDirectory() as folder:
            peaks[form] = large_image(Path(folder), options.megapixels, count, form)
    result["large_image"] = {
        "megapixels": options.megapixels,
        "images": options.large,
        "peak_megabytes": peaks,
    }
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    run_main(main)
