"""Measures what the teacher cache changes in the cost of the student's training step.

A step with the cache is compared with one without any candidates, and with one in which CLIP
encodes the regions of the matched pairs. Both sides of every ratio are measured in turns. With
--compare, steps with other backbones are compared with those of --backbone instead. Prints JSON.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from benchmarks.cache_build import random_clip
from benchmarks.program import run_main
from benchmarks.synthetic_data import make_images
from benchmarks.timing import time_in_turns
from pipeline.boxes import union_boxes
from pipeline.images import read_image
from pipeline.utils.devices import configure_device, resolve_device
from student.config import get_preset
from student.data.dataset import Batch, TrainingBatches, TrainingDataset, collate
from student.engine.train_step import TrainStep
from student.models.detector import HOIDetector
from student.utils.distributed import Execution
from student.utils.workers import BatchIterator, loader_options
from teacher_cache.teachers.regions import RegionMode, crop_regions


class Bench:
    """The published student on synthetic images.

    Args:
        options: command-line options.
        folder: folder for images and cache.
    """

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self.options, self.folder = options, folder
        self.device = configure_device(resolve_device(options.device), "auto")
        self.images, self.without = make_images(
            folder, options.images, options.labelled, options.proposed, options.side
        )
        self.samples = [self.images[0, index] for index in range(options.batch_size)]
        self.train_step, self.batch = self._build_step(options.backbone)

    def _build_step(self, backbone: str, **fields: Any) -> tuple[TrainStep, Batch]:
        """A training step of the student with a backbone, and its batch."""
        vocabulary, options = self.images.vocabulary, self.options
        sizes = (vocabulary.num_objects, vocabulary.num_verbs, vocabulary.person)
        recipe = get_preset("published", *sizes).override(
            backbone=backbone, batch_size=options.batch_size, interactive_threshold=0.0, **fields
        )
        model, split = HOIDetector(recipe.model).train(), self.images.split
        batch = collate(self.samples, cast(int, model.backbone.size_divisible)).to(self.device)
        return TrainStep(recipe, model, split, 10**6, Execution(self.device)), batch

    def backbones(self) -> dict[str, Any]:
        """Steps with other backbones, trained and frozen, and the tensors kept for their gradients.

        Seconds on a CPU are those of the process, which other processes do not add to.
        """
        reference, found = self.options.backbone, {}
        for name in (reference, *self.options.compare):
            for state, factor in (("trained", 0.1), ("frozen", 0.0)):
                # Two models at a time, because a large one with its optimizer needs gigabytes.
                train_step, batch = self._build_step(name, backbone_lr_factor=factor)
                kept = measure_kept_bytes(train_step, batch)
                sides = {
                    "reference": partial(self._seconds, self.train_step, self.batch),
                    "other": partial(self._seconds, train_step, batch),
                }
                turns = time_in_turns(sides, self.options.turns, self.device)
                found[f"{name}, {state}"] = {
                    "seconds": turns.medians()["other"],
                    "ratio": turns.ratio("other", "reference"),
                    "kept_megabytes": round(kept / 1e6, 1),
                }
                del train_step, sides
        return found

    def _seconds(self, train_step: TrainStep, batch: Batch) -> float | None:
        started = time.process_time()
        train_step(batch)
        return time.process_time() - started if self.device.type == "cpu" else None

    def cache(self) -> dict[str, Any]:
        """Steps with the cache's candidates and probabilities, and without any.

        The times include loading by workers.
        """
        size, count, side = self.options.batch_size, self.options.steps, self.options.side

        def steps(images: TrainingDataset) -> float:
            order = [(0, index % len(images)) for index in range((count + 1) * size)]
            keys = [order[start : start + size] for start in range(0, len(order), size)]
            loader = DataLoader(
                TrainingBatches(images, 1),
                batch_size=None,
                sampler=[(key, (side, side)) for key in keys],
                **loader_options(self.options.workers, 4 * size * side**2),
            )
            with BatchIterator(loader) as batches:
                # The first batch includes the start of the workers.
                next(batches)
                started = time.perf_counter()
                for batch in batches:
                    self.train_step(batch.to(self.device))
                return (time.perf_counter() - started) / count

        turns = time_in_turns(
            {"with": lambda: steps(self.images), "without": lambda: steps(self.without)},
            self.options.turns,
            self.device,
        )
        return {"seconds": turns.medians(), "ratio": turns.ratio("with", "without")}

    def teacher(self) -> dict[str, Any]:
        """The step with and without CLIP encoding the regions of matched pairs.

        CLIP encodes them in every decoder layer, as in the published code, or once per pair.
        """
        clip = random_clip(self.options.clip_model, self.folder, self.device)
        criterion, found = self.train_step.criterion, []

        def remember(*arguments: Any) -> Any:
            found[:] = [criterion(*arguments)]
            return found[0]

        self.train_step.criterion = remember
        images = [read_image(self.images.records[row].path) for row in range(len(self.samples))]

        def encode(pairs: Sequence[tuple[int, int]]) -> None:
            for index, image in enumerate(images):
                targeted = [pair for row, pair in pairs if row == index]
                if targeted:
                    targets = self.samples[index].targets
                    boxes = _union_boxes(
                        targets.human_boxes[targeted], targets.object_boxes[targeted], image
                    )
                    clip.encode_images(
                        crop_regions(image, boxes, clip.image_size, RegionMode("pad"), self.device)
                    )

        def matched() -> list[tuple[int, int]]:
            matches = found[0].matches
            return list(zip(matches.images.tolist(), matches.targets.tolist(), strict=True))

        def step(pairs: Callable[[], Sequence[tuple[int, int]]]) -> None:
            self.train_step(self.batch)
            encode(pairs())

        turns = time_in_turns(
            {
                "cached": lambda: step(list),
                "every_layer": lambda: step(matched),
                "each_pair_once": lambda: step(lambda: sorted(set(matched()))),
            },
            self.options.turns,
            self.device,
        )
        pairs = matched()
        return {
            "seconds": turns.medians(),
            "ratio": turns.ratio("every_layer", "cached"),
            "ratio_each_pair_once": turns.ratio("each_pair_once", "cached"),
            "clip": self.options.clip_model,
            "regions": {"every_layer": len(pairs), "each_pair_once": len(set(pairs))},
        }


def measure_kept_bytes(train_step: TrainStep, batch: Batch) -> int:
    """Size of all tensors, without parameters, that a step keeps for its backward pass."""
    parameters = {one.untyped_storage().data_ptr() for one in train_step.model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        train_step(batch)
    return sum(kept.values())


def _union_boxes(humans: Tensor, objects: Tensor, image: Any) -> np.ndarray:
    """(N, 4) xyxy union boxes in pixels, of relative cxcywh boxes."""
    scale = np.array([*image.size, *image.size], np.float32)
    both = []
    for boxes in (humans.cpu().numpy(), objects.cpu().numpy()):
        centre, half = boxes[:, :2], boxes[:, 2:] / 2
        both.append(np.concatenate([centre - half, centre + half], 1) * scale)
    return union_boxes(*both).astype(np.float32)


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbone", default="resnet50")
    parser.add_argument("--compare", nargs="+", default=[], help="other backbones")
    parser.add_argument("--clip-model", default="ViT-B-16")
    parser.add_argument("--side", type=int, default=512, help="side of the images in pixels")
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--labelled", type=int, default=5, help="pairs per image")
    parser.add_argument("--proposed", type=int, default=15, help="pairs per image")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--steps", type=int, default=8, help="per turn, for the cache")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--device", default="auto")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(options, Path(folder))
        if options.compare:
            found = {"backbones": bench.backbones()}
        else:
            found = {"cache": bench.cache(), "teacher": bench.teacher()}
    environment = {"device": str(bench.device), "threads": torch.get_num_threads()}
    print(json.dumps({**vars(options), **environment, **found}, indent=1))


if __name__ == "__main__":
    run_main(main)
