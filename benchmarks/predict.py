"""Measures what `eoid-predict --shards` adds to the time of the bare model. Prints JSON.

The whole prediction (decoding, resizing, the model, post-processing, writing) is compared with the
model alone on batches of the same composition that are in memory. On a CPU, decoding takes the
model's cores, whoever does it. A third side is therefore the model after decoding and resizing the
same images into these batches, with as many threads; the ratio to it is what the prediction itself
costs. The sides are measured in turns.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from benchmarks.program import run_main
from benchmarks.synthetic_data import write_image
from benchmarks.timing import time_in_turns
from pipeline.splits import load_split
from pipeline.utils.devices import configure_device, default_num_workers
from pipeline.vocabulary import load_vocabulary
from student.config import get_preset
from student.data.dataset import normalise_batch
from student.data.transforms import build_evaluation_resize
from student.inference.batch_predictor import prefetch_map, prepare_image
from student.inference.detector import Detector
from student.inference.images import to_rgb_image
from student.inference.input_files import find_images
from student.inference.postprocess import SelectionConfig
from student.inference.predict_shards import ShardConfig, predict_shards
from student.models.detector import HOIDetector
from student.models.padding import stack_images
from student.weights.checkpoint_file import Checkpoint, save_checkpoint


class Bench:
    """A detector and images.

    Args:
        options: command-line options.
        folder: folder for the results, and for the model and images if none are given.
    """

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self.folder = folder
        if options.threads is not None:
            torch.set_num_threads(options.threads)
        run = options.run or write_random_model(folder / "model.pt", options.backbone)
        images = options.image_folder or write_images(folder / "in", options.images, options.side)
        self.detector = Detector.open(run, options.device)
        self.device = next(self.detector.predictor.model.parameters()).device
        found = find_images([str(images)]).images
        self.paths = list(map(str, found))[: options.images]
        # Given folders are larger: only the chosen images are predicted.
        self.config = ShardConfig(
            SelectionConfig(),
            batch_size=options.batch_size,
            workers=default_num_workers(options.workers),
            images_per_shard=options.images_per_shard,
        )
        self.count = 0

    def predict(self) -> None:
        """The whole prediction, into a new folder."""
        self.count += 1
        out = self.folder / f"out-{self.count}"
        with redirect_stdout(StringIO()):
            predict_shards(self.detector, self.paths, out, self.config)

    def read(self) -> list[list[Tensor]]:
        """Batches of images, decoded and resized by the prediction's number of threads."""
        resize = build_evaluation_resize(self.detector.predictor.train.augmentation)

        def prepare(path: str) -> Tensor:
            return prepare_image(to_rgb_image(path, path), resize, path)

        shards: list[list[Tensor]] = []
        size, threads = self.config.images_per_shard, self.config.workers or 0
        for first in range(0, len(self.paths), size):
            by_shape: dict[torch.Size, list[Tensor]] = {}
            for image in prefetch_map(prepare, self.paths[first : first + size], threads):
                by_shape.setdefault(image.shape, []).append(image)
            step = self.config.batch_size
            for images in by_shape.values():
                shards += [images[i : i + step] for i in range(0, len(images), step)]
        return shards

    @torch.inference_mode()
    def model(self, batches: list[list[Tensor]]) -> None:
        """The model on batches."""
        predictor = self.detector.predictor
        configure_device(self.device, predictor.train.precision)
        for images in batches:
            pixels, sizes = stack_images(images, predictor.model.backbone.size_divisible)
            predictor.model(normalise_batch(pixels.to(self.device), sizes))


def write_random_model(file: Path, backbone: str) -> Path:
    """Writes a checkpoint of the published architecture with random weights, which does not resize
    small images."""
    vocabulary = load_vocabulary("hico-det")
    sizes = (vocabulary.num_objects, vocabulary.num_verbs, vocabulary.person)
    recipe = get_preset("published", *sizes).override(backbone=backbone, augmentation="toy")
    torch.manual_seed(0)
    weights = HOIDetector(recipe.model).state_dict()
    save_checkpoint(file, Checkpoint(recipe, vocabulary, load_split(vocabulary, "ua"), weights, {}))
    return file


def write_images(folder: Path, count: int, side: int) -> Path:
    """Writes JPEG files, landscape and portrait, with a longer side of `side` pixels."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for index in range(count):
        path = folder / f"{index:05d}.jpg"
        write_image(path, index, rng)
        with Image.open(path) as image:
            small = image.resize((side, side * 3 // 4))
        (small.transpose(Image.Transpose.ROTATE_90) if index % 3 == 0 else small).save(path)
    return folder


def cpu_seconds(side: Callable[[], None]) -> float:
    """CPU seconds of this process, with all its threads, in a function."""
    started = time.process_time()
    side()
    return time.process_time() - started


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Times the three sides."""
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(options, Path(folder))
        batches = bench.read()
        sides: dict[str, Callable[[], Any]] = {
            "predict": bench.predict,
            "read_and_model": lambda: bench.model(bench.read()),
            "model": lambda: bench.model(batches),
        }
        if options.clock == "cpu":
            sides = {name: partial(cpu_seconds, side) for name, side in sides.items()}
        turns = time_in_turns(sides, options.turns, bench.device)
    count = len(bench.paths)
    return {
        "images": count,
        "batches": len(batches),
        "device": str(bench.device),
        "threads": torch.get_num_threads(),
        "clock": options.clock,
        "decoding_threads": bench.config.workers,
        "images_per_second": {
            name: round(count / seconds, 2) for name, seconds in turns.medians().items()
        },
        # Throughput of the prediction relative to that of the others.
        "ratio_to_read_and_model": turns.ratio("read_and_model", "predict"),
        "ratio_to_model": turns.ratio("model", "predict"),
    }


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, help="run folder; default: published, random weights")
    parser.add_argument("--image-folder", type=Path, help="default: synthetic images")
    parser.add_argument("--backbone", default="resnet50", help="without --run")
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--side", type=int, default=320, help="of synthetic images, in pixels")
    parser.add_argument("--images-per-shard", type=int, default=256)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--workers", type=int, help="decoding threads; default: the spare cores")
    parser.add_argument("--threads", type=int, help="torch's CPU threads")
    parser.add_argument(
        "--clock",
        choices=["wall", "cpu"],
        default="wall",
        help="cpu: CPU seconds of the process, which do not depend on other programs",
    )
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--device", default="auto")
    print(json.dumps(run(parser.parse_args()), indent=1))


if __name__ == "__main__":
    run_main(main)
