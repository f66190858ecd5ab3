"""Estimates a build before it starts: pairs, regions, bytes and hours, from a sample of its images.

The models of the build run on the sample as they would in a build, and what they make is thrown
away. What is known of all images, as with annotated pairs, is counted instead of extrapolated.
"""

from __future__ import annotations

import json as json_module
import math
import shutil
import textwrap
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import msgspec
import numpy as np
import torch
from PIL import Image

from pipeline.cluster.modes import InProcess
from pipeline.datasets.dataset import open_dataset
from pipeline.utils.errors import InputError
from pipeline.utils.logging import get_logger
from pipeline.utils.progress import Progress, track
from pipeline.utils.text import count_noun, format_bytes, format_duration
from pipeline.vocabulary import Vocabulary
from teacher_cache.build import BuildConfig, make_plan, read_inputs
from teacher_cache.detectors.base import ObjectDetector
from teacher_cache.detectors.pairing import ObjectBoxes
from teacher_cache.extraction.decoding import ImageTask
from teacher_cache.extraction.extract import (
    ExtractionConfig,
    TeacherModels,
    extract,
    pair_regions,
)
from teacher_cache.extraction.inputs import BuildInputs, get_build_inputs
from teacher_cache.reader.cache import PromptEmbeddings
from teacher_cache.reader.format import PAIR_DATASETS, TeacherOutputs
from teacher_cache.teachers.base import Batch, CheckedScores, Teacher
from teacher_cache.teachers.text_image import TextImageTeacher
from teacher_cache.writer.plan import BuildPlan

logger = get_logger(__name__)

SAMPLE_SIZE = 64
# Images that run before the sample: the first ones take longer, above all on a GPU.
WARM_UP_IMAGES = 4
# Bytes of a shard beside its arrays, of `teacher.h5` beside its arrays, and of the manifest per
# shard and per image beside its name.
SHARD_OVERHEAD, TEACHER_OVERHEAD, MANIFEST_SHARD, MANIFEST_IMAGE = 9200, 3000, 210, 13
TABLE_WIDTH = 80
LOADING, READING, DETECTOR, TEACHER = "loading", "reading", "detector", "teacher"


class Total(msgspec.Struct, frozen=True):
    """A number of all images, counted in all of them or extrapolated from the sample, then with
    its standard error; None if that is a single image."""

    count: int
    is_counted: bool
    standard_error: int | None = None


class Estimate(msgspec.Struct, frozen=True):
    """What a build will take, as `--json` prints it.

    Attributes:
        dataset, part: what the cache is built from.
        device: device of the sample, and so of all times.
        sample: number of images that the models ran on.
        failed: image id -> error, for images of the sample that could not be read.
        images: number of images of the build.
        pairs, regions: their numbers.
        shards, images_per_shard: number and size of the shards.
        bytes: size of the finished cache.
        disk_free: bytes left on the file system of the output folder.
        hours: by stage, for one process: `loading` dataset and models, and then what the process
            waits for: `reading` images, the `detector`, the `teacher`. Stages run at the same time,
            so that each of these is what it adds to the others.
        hours_in_all: their sum.
        jobs: number of jobs.
        hours_of_jobs: time of that many jobs at once, each on a device like this one.
    """

    dataset: str
    part: str
    device: str
    sample: int
    failed: dict[str, str]
    images: int
    pairs: Total
    regions: Total
    shards: int
    images_per_shard: int
    bytes: int
    disk_free: int
    hours: dict[str, float]
    hours_in_all: float
    jobs: int
    hours_of_jobs: float


def show_estimate(
    config: BuildConfig, jobs: int = 1, sample: int = SAMPLE_SIZE, json: bool = False
) -> None:
    """Prints the estimate of a build; writes nothing.

    Raises:
        InputError: the input is bad, or no image of the sample can be read.
    """
    estimate = estimate_build(config, jobs, sample)
    if json:
        text = json_module.dumps(msgspec.to_builtins(estimate), indent=2, ensure_ascii=False)
    else:
        text = "\n".join(format_estimate(estimate))
    print(text)
    if estimate.bytes > estimate.disk_free:
        logger.warning(
            f"{config.out}: the file system has {format_bytes(estimate.disk_free)} left, less than"
            " the cache needs"
        )


def estimate_build(config: BuildConfig, jobs: int = 1, sample: int = SAMPLE_SIZE) -> Estimate:
    """Estimates a build in this process, and in several jobs of the same kind.

    Args:
        config: the build; its mode is not used.
        jobs: number of jobs.
        sample: number of images that the models run on.

    Raises:
        InputError: the input is bad, or no image of the sample can be read.
    """
    started = time.perf_counter()
    config, inputs_config, data = read_inputs(config, InProcess(), open_dataset(config.dataset))
    plan, text = make_plan(config, InProcess(), inputs_config, data)
    inputs = get_build_inputs(inputs_config)
    inputs.teacher.text = text
    loading = time.perf_counter() - started
    tasks, extraction = data.image_tasks, inputs_config.extraction
    sample = min(sample, len(tasks))
    chosen = [tasks[row * len(tasks) // sample] for row in range(sample)]
    outputs, failed, seconds = _measure(chosen, inputs, extraction)
    if not outputs:
        image, reason = next(iter(failed.items()))
        found = f"none of {count_noun(sample, 'images')} of the sample, first {image}: {reason}"
        raise InputError(f"{config.dataset}: expected images that can be read, found {found}")
    counts = np.array([(len(one.pairs), len(one.region_boxes)) for one in outputs])
    if inputs.detector is None:
        tracked = track(tasks, len(tasks), "Counting pairs", "images", brief=True)
        known = [_count(task, data.vocabulary, extraction) for task in tracked]
        pairs, regions = (Total(int(count), True) for count in np.sum(known, axis=0))
    else:
        # Images that cannot be read have no pairs.
        padded = np.concatenate([counts, np.zeros((len(failed), 2), counts.dtype)])
        pairs, regions = (_extrapolate(column, len(tasks)) for column in padded.T)
    # The time of a text-image teacher is that of its regions.
    unit = 1 if isinstance(inputs.teacher, TextImageTeacher) else 0
    units = int(counts[:, unit].sum())
    scale = len(tasks) / sample
    scales = {TEACHER: (pairs, regions)[unit].count / units if units else scale}
    hours = {
        LOADING: loading / 3600,
        **{name: each * scales.get(name, scale) / 3600 for name, each in seconds.items()},
    }
    size = config.images_per_shard
    shards = -(-len(tasks) // size)
    share = min(len(tasks), -(-shards // jobs) * size) / len(tasks)
    device = inputs.teacher.device
    folder = next(each for each in (config.out, *config.out.absolute().parents) if each.is_dir())
    return Estimate(
        dataset=str(config.dataset),
        part=config.part,
        device=f"{device} ({_describe(device)})",
        sample=sample,
        failed=failed,
        images=len(tasks),
        pairs=pairs,
        regions=regions,
        shards=shards,
        images_per_shard=size,
        bytes=_shard_bytes(tasks, outputs, pairs.count, regions.count, shards, data.vocabulary)
        + _other_bytes(tasks, plan, text, shards),
        disk_free=shutil.disk_usage(folder).free,
        hours=hours,
        hours_in_all=sum(hours.values()),
        jobs=jobs,
        hours_of_jobs=hours[LOADING] + share * (sum(hours.values()) - hours[LOADING]),
    )


def _describe(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return count_noun(torch.get_num_threads(), "threads")


def _count(
    task: ImageTask, vocabulary: Vocabulary, extraction: ExtractionConfig
) -> tuple[int, int]:
    """Numbers of pairs and regions of an image whose boxes are known."""
    assert task.boxes is not None
    pairs, _, regions = pair_regions(task, task.boxes, (1, 1), vocabulary, extraction)
    return len(pairs), len(regions)


def _extrapolate(counts: np.ndarray, total: int) -> Total:
    """The sum over `total` images of which (n,) counts are a sample."""
    n, count = len(counts), round(counts.mean() * total)
    if n == total or n == 1:
        return Total(count, n == total)
    error = total * counts.std(ddof=1) / math.sqrt(n) * math.sqrt(1 - n / total)
    return Total(count, False, round(error))


def _shard_bytes(
    tasks: Sequence[ImageTask],
    outputs: Sequence[TeacherOutputs],
    pairs: int,
    regions: int,
    shards: int,
    vocabulary: Vocabulary,
) -> int:
    """Bytes of all shards."""
    widths = {"human_box": 4, "object_box": 4, "action_probabilities": vocabulary.num_verbs}
    pair_bytes = sum(
        dtype.itemsize * widths.get(name.removeprefix("pairs/"), 1)
        for name, dtype in PAIR_DATASETS.items()
    )
    region_bytes = 4 * 4 + max(
        2 * one.embeddings.shape[1] if one.embeddings is not None else 0 for one in outputs
    )
    # An offset and the name, of which all are as long as the longest.
    image_bytes = 8 + max(len(task.image_id.encode()) for task in tasks)
    arrays = pairs * pair_bytes + regions * region_bytes + len(tasks) * image_bytes
    return arrays + shards * SHARD_OVERHEAD


def _other_bytes(
    tasks: Sequence[ImageTask], plan: BuildPlan, text: PromptEmbeddings | None, shards: int
) -> int:
    """Bytes of `build.json`, `manifest.json` and `teacher.h5`."""
    plan_bytes = len(json_module.dumps(plan.to_dict(), indent=2).encode())
    names = sum(len(task.image_id.encode()) + MANIFEST_IMAGE for task in tasks)
    teacher = TEACHER_OVERHEAD
    if text is not None:
        sentences = [sentence.encode() for group in text.prompts for sentence in group]
        teacher += text.embeddings.nbytes + len(sentences) * max(map(len, sentences))
    return 2 * plan_bytes + names + shards * MANIFEST_SHARD + teacher


class _Stopwatch:
    """Divides the time of the thread that runs a build among its stages."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._stage, self._last = "", time.perf_counter()

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Counts the time of the `with` block to a stage, and no longer to that around it."""
        before = self._stage
        self._switch(name)
        try:
            yield
        finally:
            self._switch(before)

    def _switch(self, name: str) -> None:
        now = time.perf_counter()
        self.seconds[self._stage] += now - self._last
        self._stage, self._last = name, now


class _TimedDetector:
    """A detector whose time is that of its stage."""

    def __init__(self, detector: ObjectDetector, watch: _Stopwatch) -> None:
        self._detector, self._watch = detector, watch

    def __getattr__(self, name: str) -> Any:
        return getattr(self._detector, name)

    def detect(self, images: Sequence[Image.Image]) -> list[ObjectBoxes]:
        with self._watch.stage(DETECTOR):
            return self._detector.detect(images)


class _TimedTeacher:
    """A teacher; what passes until it gets a batch is the time of reading, and of the detector."""

    def __init__(self, teacher: Teacher, watch: _Stopwatch) -> None:
        self._teacher, self._watch = teacher, watch

    def __getattr__(self, name: str) -> Any:
        return getattr(self._teacher, name)

    def score_batches(
        self, batches: Iterable[Batch], vocabulary: Vocabulary
    ) -> Iterator[CheckedScores]:
        return self._teacher.score_batches(self._timed(batches), vocabulary)

    def _timed(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        iterator = iter(batches)
        while True:
            with self._watch.stage(READING):
                batch = next(iterator, None)
            if batch is None:
                return
            yield batch


def _measure(
    chosen: Sequence[ImageTask], inputs: BuildInputs, extraction: ExtractionConfig
) -> tuple[list[TeacherOutputs], dict[str, str], dict[str, float]]:
    """Runs the models on images as a build does.

    Returns:
        The outputs, the errors of images that could not be read by image id, and seconds by stage.
    """
    watch, vocabulary = _Stopwatch(), inputs.data.vocabulary
    models = TeacherModels(inputs.detector, inputs.teacher, vocabulary)
    extract(chosen[:WARM_UP_IMAGES], models, extraction, lambda count: None)
    timed = TeacherModels(
        cast(ObjectDetector, inputs.detector and _TimedDetector(inputs.detector, watch)),
        cast(Teacher, _TimedTeacher(inputs.teacher, watch)),
        vocabulary,
    )
    with (
        Progress(len(chosen), "Timing a sample", "images") as progress,
        watch.stage(TEACHER),
    ):
        outputs, failed = extract(chosen, timed, extraction, progress.update)
    stages = (READING, DETECTOR, TEACHER) if inputs.detector is not None else (READING, TEACHER)
    return list(outputs.values()), failed, {name: watch.seconds[name] for name in stages}


def format_estimate(estimate: Estimate) -> list[str]:
    """Lines of a table of an estimate."""
    rows = [("images", f"{estimate.images:,}", "")]
    for name, total in (("pairs", estimate.pairs), ("regions", estimate.regions)):
        note = "counted" if total.is_counted else "from one image"
        if total.standard_error is not None:
            note = f"± {total.standard_error:,}"
        rows.append((name, f"{total.count:,}", note))
    rows += [
        ("shards", f"{estimate.shards:,}", f"of {estimate.images_per_shard} images"),
        ("cache", format_bytes(estimate.bytes), f"{format_bytes(estimate.disk_free)} left"),
    ]
    notes = {
        LOADING: "dataset and models, in every job",
        READING: "waiting for decoded images",
        DETECTOR: "waiting for boxes",
        TEACHER: "waiting for the scores of the pairs",
    }
    rows += [
        (name, format_duration(3600 * hours), notes[name]) for name, hours in estimate.hours.items()
    ]
    in_all = format_duration(3600 * estimate.hours_in_all)
    rows.append(("in all", in_all, "one process"))
    if estimate.jobs > 1:
        most = -(-estimate.shards // estimate.jobs)
        note = f"at most {most} of {count_noun(estimate.shards, 'shards')} each"
        jobs = format_duration(3600 * estimate.hours_of_jobs)
        rows.append((f"{estimate.jobs} jobs", jobs, note))
    lines = [f"{estimate.dataset}, part {estimate.part}, on {estimate.device}"]
    lines += [f"  {name:<10}{value:>12}  {note}".rstrip() for name, value, note in rows]
    sample, closing = count_noun(estimate.sample, "images"), []
    if estimate.failed:
        image, reason = next(iter(estimate.failed.items()))
        count = f"{len(estimate.failed)} of {sample}"
        closing.append(f"{count} could not be read, first {image}: {reason}.")
    closing.append(f"Measured on {sample}, after {WARM_UP_IMAGES} to warm up.")
    if estimate.sample < estimate.images:
        extrapolated = (
            "Times, bytes and numbers with ±" if estimate.pairs.standard_error else "Times"
        )
        closing[-1] += f" {extrapolated} are extrapolated."
    for sentence in closing:
        lines += textwrap.wrap(sentence, TABLE_WIDTH, break_on_hyphens=False)
    return lines
