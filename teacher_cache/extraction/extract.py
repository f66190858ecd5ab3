"""Runs detector and CLIP on the images of one shard (EoID section 3.3).

For each image: detect persons and objects, form pairs, crop their union boxes, encode these with
CLIP, and turn the scores of the prompts into action probabilities.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from itertools import chain
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pipeline.types import Pairs
from pipeline.utils.devices import convert_out_of_memory
from pipeline.utils.errors import InputError, bad_field
from pipeline.utils.text import count_noun
from pipeline.vocabulary import Vocabulary
from teacher_cache.detectors.pairing import (
    ObjectBoxes,
    PairingConfig,
    concatenate_pairs,
    form_pairs,
)
from teacher_cache.detectors.torchvision import Detector, detect_objects
from teacher_cache.extraction.decoding import ImageTask, prefetch_images, same_size_batches
from teacher_cache.reader.cache import PromptEmbeddings
from teacher_cache.reader.format import TeacherOutputs
from teacher_cache.reader.soft_targets import action_probabilities
from teacher_cache.teachers.clip import ClipTeacher
from teacher_cache.teachers.regions import (
    RegionMode,
    crop_regions,
    union_regions,
    whole_image_region,
)

# Batches of images that detection may be ahead of cropping, and batches of regions that cropping
# may be ahead of encoding; they limit the memory.
MAX_BATCHES_CROPPING = 2
MAX_BATCHES_ENCODING = 8
# Threads that decode and crop while a GPU runs the models.
NUM_GPU_WORKERS = 4
# On a CPU; each worker holds a batch in memory.
MAX_CPU_WORKERS = 4


@dataclass(frozen=True)
class ExtractionConfig:
    """Settings of `extract`.

    Attributes:
        level: what CLIP encodes for a pair: "region", its union box, or "image", the whole image.
        region: how that becomes CLIP's square input.
        images_per_batch: largest detector batch; it contains images of one size.
        regions_per_batch: CLIP's batch size, also with regions of different images; None takes
            `ClipTeacher.batch_size`.
        embeddings: whether region embeddings are stored.
        strict: whether an unreadable image ends the build.
    """

    pairing: PairingConfig = field(default_factory=PairingConfig)
    level: str = "region"
    region: RegionMode = field(default_factory=RegionMode)
    images_per_batch: int = 16
    regions_per_batch: int | None = None
    embeddings: bool = True
    strict: bool = False


@dataclass(frozen=True, eq=False)
class TeacherModels:
    """The frozen models (without a detector where all boxes are known beforehand) and prompts."""

    detector: Detector | None
    clip: ClipTeacher
    text: PromptEmbeddings
    vocabulary: Vocabulary


@dataclass(frozen=True, eq=False)
class _ImagePairs:
    """Pairs and regions of an image before CLIP: (P,) rows of the (R, 4) xyxy `region_boxes`."""

    index: int
    pairs: Pairs
    region_indices: np.ndarray
    region_boxes: np.ndarray


def extract(
    image_tasks: Sequence[ImageTask],
    teacher: TeacherModels,
    config: ExtractionConfig,
    on_progress: Callable[[int], None],
) -> tuple[dict[str, TeacherOutputs], dict[str, str]]:
    """Computes the teacher's outputs for the images of a shard.

    Decoding, cropping and encoding run concurrently on different batches (`worker_pools`). So does
    detection on a GPU; on a CPU it uses all cores alone. The images of a detector batch have equal
    sizes, so none of them is padded.

    `on_progress` receives the number of finished images after each batch.

    Returns:
        Image id -> outputs, in the order of the image tasks; and image id -> error, for images that
        could not be read.

    Raises:
        InputError: an image cannot be read and the configuration is strict; embeddings are not
            finite; or the batches exceed the GPU's memory.
    """
    clip = teacher.clip
    # Index of an image that cannot be read -> error.
    reasons: dict[int, str] = {}
    image_pairs: list[_ImagePairs] = []
    cropping: deque[list[Future[Tensor]]] = deque()
    # The latest batch, which the error message of `describe_batches` needs.
    images: list[Image.Image] = []
    regions_per_batch = config.regions_per_batch or clip.batch_size

    def describe_batches() -> str:
        sizes = {f"{image.width} x {image.height}" for image in images}
        detector_batch = f"{count_noun(len(images), 'images')} of {' and '.join(sizes)} pixels"
        return f"batch size {regions_per_batch} regions, detector batch size {detector_batch}"

    def on_error(index: int, error: InputError) -> None:
        if config.strict:
            raise error
        # Without the path: a cache must not depend on the folder of its dataset.
        reasons[index] = str(error).removeprefix(f"{image_tasks[index].path}: ")

    pools = worker_pools(clip.device)
    with convert_out_of_memory(describe_batches), pools as (image_pool, encoder_pool):
        encoder = _BatchEncoder(clip, regions_per_batch, encoder_pool)
        batches = same_size_batches(image_tasks, config.images_per_batch, on_error)
        for indices, images in prefetch_images(image_pool, batches, image_tasks, on_error):
            if not images:
                continue
            if teacher.detector is not None and clip.device.type == "cpu":
                wait(list(chain.from_iterable(cropping)))
                wait(encoder.running)
            batch = _detect_pairs([(n, image_tasks[n]) for n in indices], images, teacher, config)
            image_pairs += batch
            cropping.append(
                [
                    image_pool.submit(
                        crop_regions,
                        image,
                        entry.region_boxes,
                        clip.image_size,
                        config.region,
                        clip.device,
                        clip.interpolation,
                    )
                    for image, entry in zip(images, batch, strict=True)
                ]
            )
            if len(cropping) > MAX_BATCHES_CROPPING:
                on_progress(encoder.add(cropping.popleft()))
        for futures in cropping:
            on_progress(encoder.add(futures))
        embeddings = encoder.finish()
        on_progress(len(reasons))
    _check_finite(image_pairs, embeddings, image_tasks)
    outputs = _teacher_outputs(image_pairs, embeddings, teacher, config.embeddings)
    # Batches are formed by image size; a shard lists its images in the annotation file's order.
    in_order = sorted(zip(image_pairs, outputs, strict=True), key=lambda each: each[0].index)
    by_image = {image_tasks[image.index].image_id: output for image, output in in_order}
    failed = {image_tasks[index].image_id: reasons[index] for index in sorted(reasons)}
    return by_image, failed


def _detect_pairs(
    image_tasks: Sequence[tuple[int, ImageTask]],
    images: Sequence[Image.Image],
    teacher: TeacherModels,
    config: ExtractionConfig,
) -> list[_ImagePairs]:
    """Forms the pairs of a batch of images from detected boxes, or from those of the tasks."""
    if teacher.detector is not None:
        boxes_by_image: list[ObjectBoxes | None] = [*detect_objects(teacher.detector, images)]
    else:
        boxes_by_image = [image_task.boxes for _, image_task in image_tasks]
    image_pairs = []
    for (index, image_task), image, boxes in zip(image_tasks, images, boxes_by_image, strict=True):
        assert boxes is not None, "without a detector all boxes are known"
        candidates = form_pairs(boxes, teacher.vocabulary, config.pairing)
        pairs = concatenate_pairs(image_task.annotated_pairs, candidates)
        if config.level == "image":
            region_boxes, region_indices = whole_image_region(pairs, image.size)
        else:
            region_boxes, region_indices = union_regions(pairs)
        image_pairs.append(_ImagePairs(index, pairs, region_indices, region_boxes))
    return image_pairs


def _check_finite(
    image_pairs: Sequence[_ImagePairs], embeddings: np.ndarray, image_tasks: Sequence[ImageTask]
) -> None:
    """Refuses embeddings that are not finite, and names the first image with one."""
    rows = np.flatnonzero(~np.isfinite(embeddings).all(axis=1))
    if not len(rows):
        return
    image_indices = np.repeat(
        [image.index for image in image_pairs], [len(image.region_boxes) for image in image_pairs]
    )
    boxes = np.concatenate([image.region_boxes for image in image_pairs])
    raise bad_field(
        image_tasks[image_indices[rows[0]]].path,
        f"region {boxes[rows[0]].round(1).tolist()}",
        "finite CLIP embeddings in float32",
        f"others in {len(rows)} of {len(embeddings)} regions",
    )


def _teacher_outputs(
    image_pairs: Sequence[_ImagePairs],
    embeddings: np.ndarray,
    teacher: TeacherModels,
    keep_embeddings: bool,
) -> list[TeacherOutputs]:
    """Scores all pairs at once and divides the results among the images."""
    if not image_pairs:
        return []
    region_offsets = np.cumsum([0, *(len(image.region_boxes) for image in image_pairs)])
    pair_offsets = np.cumsum([0, *(len(image.pairs) for image in image_pairs)])
    rows = np.concatenate(
        [image.region_indices + region_offsets[n] for n, image in enumerate(image_pairs)]
    )
    labels = np.concatenate([image.pairs.object_labels for image in image_pairs])
    text = teacher.text.embeddings
    embeddings = embeddings.reshape(-1, text.shape[1])
    logits = teacher.text.logit_scale * embeddings @ text.T
    probabilities = action_probabilities(logits[rows], labels, teacher.vocabulary)
    return [
        TeacherOutputs(
            pairs=image.pairs,
            probabilities=probabilities[pair_offsets[n] : pair_offsets[n + 1]],
            region_indices=image.region_indices,
            region_boxes=image.region_boxes,
            embeddings=embeddings[region_offsets[n] : region_offsets[n + 1]]
            if keep_embeddings
            else None,
        )
        for n, image in enumerate(image_pairs)
    ]


class _BatchEncoder:
    """Encodes regions with CLIP in full batches, which may contain regions of several images."""

    def __init__(self, clip: ClipTeacher, batch_size: int, pool: Executor) -> None:
        self._clip, self._batch_size, self._pool = clip, batch_size, pool
        self._queued: deque[Tensor] = deque()
        self.running: deque[Future[Callable[[], np.ndarray]]] = deque()
        self._embeddings: list[np.ndarray] = []

    def add(self, cropping: Sequence[Future[Tensor]]) -> int:
        """Adds the (R, 3, S, S) uint8 regions of some images; returns the number of images."""
        self._queued += [regions.result() for regions in cropping]
        while sum(map(len, self._queued)) >= self._batch_size:
            batch, missing = [], self._batch_size
            while missing:
                regions = self._queued.popleft()
                batch.append(regions[:missing])
                if len(regions) > missing:
                    self._queued.appendleft(regions[missing:])
                missing -= len(batch[-1])
            self._submit(batch)
        return len(cropping)

    def finish(self) -> np.ndarray:
        """Encodes the rest; (R, D) float32 embeddings in the order in which regions were added."""
        if sum(map(len, self._queued)):
            self._submit(list(self._queued))
        while self.running:
            self._collect_oldest()
        if not self._embeddings:
            return np.zeros((0, 0), np.float32)
        return np.concatenate(self._embeddings)

    def _submit(self, batch: Sequence[Tensor]) -> None:
        self.running.append(self._pool.submit(self._start, batch))
        if len(self.running) > MAX_BATCHES_ENCODING:
            self._collect_oldest()

    def _start(self, batch: Sequence[Tensor]) -> Callable[[], np.ndarray]:
        return self._clip.encode_images_async(torch.cat(list(batch)))

    def _collect_oldest(self) -> None:
        self._embeddings.append(self.running.popleft().result()())


@contextmanager
def worker_pools(device: torch.device) -> Iterator[tuple[Executor, Executor]]:
    """Thread pools for decoding and cropping, and for encoding.

    With a GPU, one thread encodes and `NUM_GPU_WORKERS` decode and crop. They use a CUDA stream of
    their own, so that their kernels do not wait for the detector's in the caller's stream.

    On a CPU, a few workers do all three steps, and torch's threads are divided among them. Several
    matrix products of few threads each use the cores better than one of many threads, which is as
    slow as its slowest thread.

    When the `with` block raises, running work is awaited and queued work is cancelled.
    """
    threads = torch.get_num_threads()
    if device.type == "cuda":
        stream = _second_stream(device)
        # The models were copied to the device in the caller's stream.
        stream.wait_stream(torch.cuda.current_stream(device))
        pools = [
            ThreadPoolExecutor(count, initializer=_set_cuda_stream, initargs=(device, stream))
            for count in (NUM_GPU_WORKERS, 1)
        ]
    else:
        count = min(threads, MAX_CPU_WORKERS)
        shares = (-(-threads // count),)
        pools = [ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=shares)]
    try:
        yield pools[0], pools[-1]
    except BaseException:
        for pool in pools:
            pool.shutdown(cancel_futures=True)
        raise
    finally:
        for pool in pools:
            pool.shutdown()
        # A worker's setting is the default of every thread that uses torch for the first time.
        torch.set_num_threads(threads)


@cache
def _second_stream(device: torch.device) -> Any:
    """A second stream of a GPU.

    Cached, because torch's allocator reuses memory only within the stream that freed it: a new
    stream for each shard would leave the memory of the last one unused.
    """
    return torch.cuda.Stream(device)


def _set_cuda_stream(device: torch.device, stream: Any) -> None:
    """Sets the current device and stream of a worker thread."""
    torch.cuda.set_device(device)
    torch.cuda.set_stream(stream)
