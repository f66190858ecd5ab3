"""Measures what a photograph costs on a CPU: seconds by stage, peak memory and bytes of the cache.

Networks of the real sizes with random weights run on the photographs of the tests, with the boxes
that a detector found in them. Each network runs in a process of its own. The times are processor
seconds, which depend little on other programs. Writes JSON and prints the shares of the stages.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torchvision.models import get_model

from benchmarks.cache_build import random_clip
from benchmarks.photographs import DETECTIONS, PHOTOS, TEACHER, write_teacher
from benchmarks.program import json_file, positive_int, recipe_setting, run_main
from pipeline.images import read_image
from pipeline.splits import FULL
from pipeline.utils.files import write_json
from pipeline.utils.progress import track
from pipeline.vocabulary import load_vocabulary
from student.config import get_preset
from student.data.dataset import collate, normalise_batch
from student.data.transforms import build_evaluation_resize
from student.engine.run_inputs import RunConfig, build_inputs
from student.engine.train_step import TrainStep
from student.inference.batch_predictor import prepare_image
from student.inference.postprocess import select_detections
from student.models.detector import HOIDetector
from student.models.padding import stack_images
from student.utils.distributed import SINGLE_PROCESS, Execution
from teacher_cache.build import BuildConfig, build_cache
from teacher_cache.detectors.base import DetectorConfig
from teacher_cache.detectors.load import load_detector
from teacher_cache.detectors.pairing import PairingConfig, concatenate_pairs, form_pairs
from teacher_cache.detectors.torchvision import DEFAULT_DETECTOR
from teacher_cache.extraction.extract import ExtractionConfig
from teacher_cache.extraction.inputs import BuildData, InputsConfig, read_build_data
from teacher_cache.reader.format import TeacherOutputs
from teacher_cache.teachers.load import TeacherConfig
from teacher_cache.teachers.regions import RegionMode, crop_regions, union_regions
from teacher_cache.writer.shard import write_shard

CPU = torch.device("cpu")
PREDICTION, TRAINING = "prediction", "training step"
# Stages and their colours in the figure. Short stages share a colour.
STAGES = {
    "read": "#444444",
    "detect": "#7fb2d9",
    "pairs and regions": "#cc79a7",
    "encode": "#e8b04b",
    "write": "#444444",
    "forward": "#63bf9c",
    "post-processing": "#444444",
    "matching and losses": "#cc79a7",
    "backward": "#a6d5f2",
    "update": "#cc79a7",
}
# Smallest percentage of a stage whose name fits into its segment.
MIN_NAMED_PERCENT = 9


class Stopwatch:
    """Processor seconds of this process by stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._last = time.process_time()

    def lap(self, stage: str) -> None:
        """Adds the time since the last call to a stage."""
        now = time.process_time()
        self.seconds[stage] += now - self._last
        self._last = now


def read_data(limit: int | None) -> BuildData:
    """Some of the labelled photographs with the detector's boxes."""
    config = InputsConfig(PHOTOS, "train", None, TeacherConfig(), (), ExtractionConfig(), "cpu")
    return read_build_data(replace(config, proposals=PHOTOS / DETECTIONS, limit=limit))


def detect(options: argparse.Namespace, folder: Path, name: str) -> dict[str, Any]:
    """Measures reading, and a detector on one image at a time.

    Random weights give as many proposals (1,000) as trained ones.
    """
    data = read_data(options.photographs)
    model = get_model(name, weights=None, weights_backbone=None)
    torch.save(model.state_dict(), folder / "detector.pth")
    config = DetectorConfig(name, str(folder / "detector.pth"))
    detector = load_detector(config, data.vocabulary, CPU)
    detector.detect([read_image(data.image_tasks[0].path)])
    watch = Stopwatch()
    for task in data.image_tasks:
        image = read_image(task.path)
        watch.lap("read")
        detector.detect([image])
        watch.lap("detect")
    return {"seconds": watch.seconds}


def encode(options: argparse.Namespace, folder: Path, name: str) -> dict[str, Any]:
    """Measures pairs and their regions, a CLIP on some of them, and writing a shard."""
    data, clip, rng = read_data(None), random_clip(name, folder, CPU), np.random.default_rng(0)
    images, outputs, crops = [read_image(task.path) for task in data.image_tasks], {}, []
    watch = Stopwatch()
    for task, image in zip(data.image_tasks, images, strict=True):
        detected = form_pairs(task.boxes, data.vocabulary, PairingConfig())
        pairs = concatenate_pairs(task.annotated_pairs, detected)
        boxes, rows = union_regions(pairs)
        crops.append(crop_regions(image, boxes, clip.image_size, RegionMode(), CPU))
        probabilities = np.zeros((len(pairs), data.vocabulary.num_verbs), np.float32)
        outputs[task.image_id] = TeacherOutputs(pairs, probabilities, rows, boxes, None)
    watch.lap("pairs and regions")
    batch = torch.cat(crops)[: options.regions]
    dimension = clip.encode_images(batch[:1]).shape[1]
    watch.lap("warm-up")
    clip.encode_images(batch)
    watch.lap("encode")
    # CLIP takes the same time for every region, so that some of them suffice.
    watch.seconds["encode"] *= sum(map(len, crops)) / len(batch)
    full = [
        replace(one, embeddings=rng.normal(size=(len(one.region_boxes), dimension)))
        for one in outputs.values()
    ]
    watch.lap("warm-up")
    shard = folder / "shard.h5"
    write_shard(shard, "0" * 64, list(outputs), full, {}, data.vocabulary.num_verbs)
    watch.lap("write")
    del watch.seconds["warm-up"]
    return {
        "seconds": watch.seconds,
        "pairs": [len(output.pairs) for output in full],
        "regions": list(map(len, crops)),
        "bytes_per_photograph": round(shard.stat().st_size / len(full)),
    }


def predict(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Measures the published student for HICO-DET on one image at a time."""
    vocabulary, tasks = load_vocabulary("hico-det"), read_data(options.photographs).image_tasks
    sizes = (vocabulary.num_objects, vocabulary.num_verbs, vocabulary.person)
    recipe = get_preset("published", *sizes).override(**dict(options.set))
    model = HOIDetector(recipe.model).eval().to(memory_format=torch.channels_last)
    resize, watch = build_evaluation_resize(recipe.train.augmentation), Stopwatch()
    for index, task in enumerate([tasks[0], *tasks]):
        image = read_image(task.path)
        stacked = stack_images([prepare_image(image, resize, task.image_id)], 1)
        with torch.inference_mode():
            pixels = normalise_batch(*stacked)
            watch.lap("read")
            found = model(pixels)
            watch.lap("forward")
            select_detections(found, [task.image_id], [image.size], vocabulary)
            watch.lap("post-processing")
        if not index:
            watch.seconds.clear()
    return {"seconds": watch.seconds}


def train(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Measures an epoch of the published student on the photographs, augmented as published."""
    teacher, cache, limit = folder / TEACHER, folder / "cache", options.photographs
    write_teacher(teacher, load_vocabulary(PHOTOS / "vocabulary.json"))
    boxes = {"proposals": PHOTOS / DETECTIONS, "clip_model": str(teacher)}
    build_cache(BuildConfig(PHOTOS, cache, limit=limit, **boxes, device="cpu"))
    settings = dict(options.set)
    config = RunConfig(PHOTOS, cache, FULL, folder / "run", options=settings, limit=limit)
    inputs, size = build_inputs(config, SINGLE_PROCESS), options.batch_size
    images, model, watch = inputs.images, HOIDetector(inputs.recipe.model).train(), Stopwatch()
    step = TrainStep(inputs.recipe, model, inputs.split, 10**6, Execution(CPU))
    compute_losses = step.losses

    def losses(*arguments: Any) -> Any:
        found = compute_losses(*arguments)
        watch.lap("matching and losses")
        return found

    step.losses = losses
    model.register_forward_hook(lambda *_: watch.lap("forward"))
    step.optimizer.register_step_pre_hook(lambda *_: watch.lap("backward"))
    for number, start in enumerate([0, *range(0, len(images), size)]):
        batch = collate([images[0, row] for row in range(len(images))[start : start + size]])
        watch.lap("read")
        step(batch)
        watch.lap("update")
        if not number:
            watch.seconds.clear()
    return {"seconds": watch.seconds, "mean_size": images.sizes(0).mean(0).round().tolist()}


def run_part(
    function: Callable[..., dict[str, Any]], options: argparse.Namespace, *names: str
) -> dict[str, Any]:
    """Runs a part with the threads of the options; adds its peak memory."""
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        found = function(options, Path(folder), *names)
    count = len(found["pairs"]) if "pairs" in found else options.photographs
    found["seconds"] = {stage: round(value / count, 6) for stage, value in found["seconds"].items()}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {**found, "peak_memory_gb": round(peak * 1024 / 1e9, 2)}


def measure(options: argparse.Namespace) -> tuple[dict[str, Any], dict[str, dict[str, float]]]:
    """Measures all parts.

    Returns:
        The results of the parts, and the seconds by stage of what a user does with a photograph.
    """
    parts: dict[str, tuple[Any, ...]] = {name: (detect, name) for name in options.detectors}
    parts |= {name: (encode, name) for name in options.clips}
    parts |= {PREDICTION: (predict,), TRAINING: (train,)}
    found, context = {}, multiprocessing.get_context("spawn")
    for part in track(parts, len(parts), "measuring", "parts"):
        function, *names = parts[part]
        # A process for each, because the peak memory of a process never decreases.
        with ProcessPoolExecutor(1, context) as pool:
            found[part] = pool.submit(run_part, function, options, *names).result()
        write_json(options.json, found)
    tasks = {}
    for detector, clip in product(options.detectors, options.clips):
        seconds = found[detector]["seconds"] | found[clip]["seconds"]
        tasks[f"cache with {detector} and {clip}"] = seconds
    for name in (PREDICTION, TRAINING):
        tasks[f"student, {name}"] = found[name]["seconds"]
    return found, tasks


def draw(tasks: dict[str, dict[str, float]], file: Path) -> None:
    """Draws the shares of the stages of every task as a stacked bar."""
    figure = Figure(figsize=(9, 0.85 * len(tasks) + 0.3), layout="constrained")
    axis = figure.add_subplot()
    for row, (task, seconds) in enumerate(tasks.items()):
        total, left, small = sum(seconds.values()), 0.0, []
        for stage in sorted(seconds, key=list(STAGES).index):
            share = 100 * seconds[stage] / total
            axis.barh(row, share, 0.5, left, color=STAGES[stage])
            if share >= MIN_NAMED_PERCENT:
                name = f"{stage} {share:.0f} %"
                axis.text(left + share / 2, row, name, ha="center", va="center")
            else:
                small.append(f"{stage} {share:.1f} %" if share >= 0.05 else f"{stage} < 0.1 %")
            left += share
        axis.text(0, row - 0.3, f"{task}: {total:.1f} s", va="bottom", weight="bold")
        axis.text(100, row - 0.3, ", ".join(small), ha="right", va="bottom", color="#555555")
    axis.set(xlim=(0, 100), ylim=(len(tasks) - 0.6, -0.7))
    axis.set_axis_off()
    figure.savefig(file, dpi=150)


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=json_file, required=True, help="a figure is put beside it")
    parser.add_argument("--detectors", nargs="+", default=[DEFAULT_DETECTOR], help="of torchvision")
    parser.add_argument("--clips", nargs="+", default=["ViT-B-32", "RN50x16"], help="of open_clip")
    parser.add_argument(
        "--set",
        type=recipe_setting,
        nargs="*",
        default=[],
        metavar="NAME=VALUE",
        help="other settings of the student, values in JSON",
    )
    parser.add_argument(
        "--photographs", type=positive_int, default=4, help="for detector and student, at most 20"
    )
    parser.add_argument("--regions", type=positive_int, default=16, help="that each CLIP encodes")
    parser.add_argument("--batch-size", type=positive_int, default=2, help="of the training step")
    parser.add_argument("--threads", type=positive_int, default=1)
    options = parser.parse_args()
    found, tasks = measure(options)
    settings = {**vars(options), "json": str(options.json), "torch": torch.__version__}
    write_json(options.json, {"settings": settings, "parts": found, "tasks": tasks})
    for task, seconds in tasks.items():
        total = sum(seconds.values())
        shares = ", ".join(f"{name} {value / total:.1%}" for name, value in seconds.items())
        print(f"{task}: {total:.2f} s per photograph ({shares})")
    draw(tasks, options.json.with_suffix(".png"))


if __name__ == "__main__":
    run_main(main)
