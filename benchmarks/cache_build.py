"""Compares the speed of a cache build with that of CLIP's image tower on tensors in memory, and
measures the time of a build by stage.

Writes a folder of JPEG files with the size of photographs. Then the image tower encodes prepared
tensors, and a build processes the images, in turns and for the same number of regions. The pairs
are given, so that a detector runs only on request, and adds none. All models have random weights.
Prints JSON.

The stages of a build run beside each other. For each, the result has the seconds that threads spent
in it, waiting included, their processor seconds, and on a GPU the seconds from its first to its
last kernel in its CUDA stream.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import open_clip
import torch
from torchvision.models import get_model

from benchmarks.program import run_main
from benchmarks.synthetic_data import IMAGE_SIZE, random_boxes, write_image
from benchmarks.timing import Timings, time_in_turns
from pipeline.images import read_image
from pipeline.types import Pairs
from pipeline.utils.devices import configure_device, resolve_device
from pipeline.vocabulary import Vocabulary, load_vocabulary
from teacher_cache.detectors.base import DetectorConfig, ObjectDetector
from teacher_cache.detectors.load import load_detector
from teacher_cache.detectors.pairing import ObjectBoxes
from teacher_cache.extraction import decoding
from teacher_cache.extraction.decoding import ImageTask
from teacher_cache.extraction.extract import ExtractionConfig, TeacherModels, extract
from teacher_cache.reader.format import ANNOTATED
from teacher_cache.teachers import text_image
from teacher_cache.teachers.clip import ClipConfig, ClipTeacher
from teacher_cache.teachers.prompts import interaction_prompts
from teacher_cache.writer.shard import write_shard

THIS_MODULE = sys.modules[__name__]
# The stage of waiting for embeddings.
WAIT = "wait for embeddings"
# There are no detected boxes, only given pairs.
NO_BOXES = ObjectBoxes(np.zeros((0, 4), np.float32), np.zeros(0, np.int64), np.zeros(0, np.float32))


def write_images(folder: Path, count: int, pairs: int, num_objects: int) -> list[ImageTask]:
    """Writes JPEG files; each has `pairs` pairs of one person with different objects."""
    rng = np.random.default_rng(0)
    image_tasks = []
    for index in range(count):
        path = folder / f"{index:05d}.jpg"
        write_image(path, index, rng)
        boxes = random_boxes(rng, pairs + 1)
        given = Pairs(
            human_boxes=np.repeat(boxes[:1], pairs, axis=0),
            object_boxes=boxes[1:],
            object_labels=rng.integers(1, num_objects, pairs),
            human_scores=np.ones(pairs, np.float32),
            object_scores=np.ones(pairs, np.float32),
            sources=np.full(pairs, ANNOTATED, np.uint8),
        )
        image_tasks.append(ImageTask(path.name, path, given, boxes=NO_BOXES))
    return image_tasks


def random_clip(name: str, folder: Path, device: torch.device) -> ClipTeacher:
    """CLIP with random weights, which suffice to measure its speed."""
    file = folder / "random.pt"
    torch.save(open_clip.create_model(name).state_dict(), file)
    return ClipTeacher(ClipConfig(name, str(file)), device)


def random_detector(
    name: str, folder: Path, vocabulary: Vocabulary, device: torch.device
) -> ObjectDetector:
    """A torchvision detector with random weights; its scores are too low for boxes."""
    file = folder / "detector.pth"
    model = get_model(name, weights=None, weights_backbone=None, num_classes=91)
    torch.save(model.state_dict(), file)
    names = tuple(vocabulary.objects) + ("",) * (90 - vocabulary.num_objects)
    return load_detector(DetectorConfig(name, str(file), classes=names), vocabulary, device)


class StageTimes:
    """Times of the stages of a build, which run in several threads."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._lock = device, threading.Lock()
        self._host: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
        self._events: dict[str, list[tuple[Any, Any]]] = defaultdict(list)

    def timed(self, stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """A function whose calls are a stage's; a function that it returns waits for the result."""

        def call(*arguments: Any, **options: Any) -> Any:
            on_gpu = self._device.type == "cuda" and stage != WAIT
            events = [torch.cuda.Event(enable_timing=True) for _ in range(2 * on_gpu)]
            started, processor = time.perf_counter(), time.thread_time()
            for event in events[:1]:
                event.record()
            result = function(*arguments, **options)
            for event in events[1:]:
                event.record()
            with self._lock:
                self._host[stage][0] += time.perf_counter() - started
                self._host[stage][1] += time.thread_time() - processor
                self._events[stage] += zip(events[::2], events[1::2], strict=True)
            return self.timed(WAIT, result) if callable(result) else result

        return call

    def to_dict(self) -> dict[str, dict[str, float]]:
        """Seconds by stage, when the device has finished."""
        found = {}
        for stage, (seconds, processor) in self._host.items():
            found[stage] = {"seconds": seconds, "processor_seconds": processor}
            if self._events[stage]:
                milliseconds = sum(one.elapsed_time(two) for one, two in self._events[stage])
                found[stage]["device_seconds"] = milliseconds / 1000
        return {
            stage: {name: round(value, 4) for name, value in times.items()}
            for stage, times in found.items()
        }


def measure_stages(build: Callable[[], None], models: TeacherModels) -> dict[str, Any]:
    """Runs a build with timed stages."""
    device = models.teacher.device
    times = StageTimes(device)
    places: dict[str, list[tuple[Any, str]]] = {
        "header": [(decoding, "read_image_size")],
        "decode": [(decoding, "read_image")],
        "detect": [(models.detector, "detect")] if models.detector is not None else [],
        "crop": [(text_image, "crop_regions")],
        "encode": [(models.teacher, "encode_images_async")],
        "write": [(THIS_MODULE, "write_shard")],
    }
    with ExitStack() as patches:
        for stage, owners in places.items():
            for owner, name in owners:
                timed = times.timed(stage, getattr(owner, name))
                patches.enter_context(patch.object(owner, name, timed))
        started, processor = time.perf_counter(), time.process_time()
        build()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        whole = {
            "seconds": round(time.perf_counter() - started, 4),
            "processor_seconds": round(time.process_time() - processor, 4),
        }
    return {"build": whole, **times.to_dict()}


def measure_decoding(paths: Sequence[Path], workers: int, turns: int) -> dict[str, Any]:
    """Images per second of one thread, and of several threads and processes in turns."""

    def decode(pool: Executor) -> None:
        for image in pool.map(read_image, paths):
            image.load()

    with (
        ThreadPoolExecutor(1) as one,
        ThreadPoolExecutor(workers) as threads,
        ProcessPoolExecutor(workers, get_context("spawn")) as processes,
    ):
        pools = {"one_thread": one, "threads": threads, "processes": processes}
        sides = {name: partial(decode, pool) for name, pool in pools.items()}
        found = time_in_turns(sides, turns, torch.device("cpu"))
    rates = {name: round(len(paths) / seconds, 1) for name, seconds in found.medians().items()}
    return {
        "workers": workers,
        "images_per_second": rates,
        "threads_to_processes": found.ratio("processes", "threads"),
    }


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Measures image tower and build in turns, and then the build by stage."""
    device = configure_device(resolve_device(options.device), "auto", exact_matmul=True)
    vocabulary = load_vocabulary("toy")
    image_tasks = write_images(folder, options.images, options.pairs, vocabulary.num_objects)
    clip = random_clip(options.clip_model, folder, device)
    prompts = interaction_prompts(vocabulary)
    clip.text = clip.embed_prompts(prompts)
    detector = None
    if options.detector is not None:
        detector = random_detector(options.detector, folder, vocabulary, device)
        image_tasks = [replace(task, boxes=None) for task in image_tasks]
        clip.detector_follows = True
    models = TeacherModels(detector, clip, vocabulary)
    extraction = ExtractionConfig()
    regions = options.images * options.pairs
    shape = (clip.batch_size, 3, clip.image_size, clip.image_size)
    ready = torch.randint(256, shape, dtype=torch.uint8, device=device)
    processor: dict[str, list[float]] = defaultdict(list)

    def tower() -> None:
        for start in range(0, regions, clip.batch_size):
            clip.encode_images(ready[: regions - start])

    def build() -> None:
        outputs, failed = extract(image_tasks, models, extraction, lambda count: None)
        write_shard(folder / "shard.h5", "0" * 64, list(outputs), list(outputs.values()), failed,
                    vocabulary.num_verbs)  # fmt: skip

    def counted(name: str, function: Callable[[], None]) -> Callable[[], None]:
        def run() -> None:
            started = time.process_time()
            function()
            processor[name].append(time.process_time() - started)

        return run

    sides = {"tower": counted("tower", tower), "build": counted("build", build)}
    turns = time_in_turns(sides, options.turns, device)
    # Without the warm-up turn.
    processor_turns = Timings({name: seconds[1:] for name, seconds in processor.items()})
    return {
        "clip": options.clip_model,
        "detector": options.detector,
        "device": str(device),
        "threads": torch.get_num_threads(),
        "batch_size": clip.batch_size,
        "images": options.images,
        "image_size": IMAGE_SIZE,
        "regions": regions,
        "regions_per_second": {
            name: round(regions / seconds, 1) for name, seconds in turns.medians().items()
        },
        "ratio": turns.ratio("tower", "build"),
        "processor_seconds": processor_turns.medians(),
        "ratio_of_processor_seconds": processor_turns.ratio("tower", "build"),
        "stages": measure_stages(build, models),
        "decoding": measure_decoding(
            [task.path for task in image_tasks], options.decoders, options.turns
        ),
    }


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clip-model", default="ViT-B-32", help="name of an open_clip model")
    parser.add_argument("--detector", help="name of a torchvision detector")
    parser.add_argument("--images", type=int, default=300)
    parser.add_argument("--pairs", type=int, default=15, help="per image")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--decoders", type=int, default=2, help="threads and processes")
    parser.add_argument("--device", default="auto")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(measure(options, Path(folder)), indent=1))


if __name__ == "__main__":
    run_main(main)
