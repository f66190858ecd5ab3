"""Runs detector and CLIP on a few hundred images: the work of one shard."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from functools import cache
from types import TracebackType
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pipeline.types import Pairs
from pipeline.utils.devices import convert_out_of_memory
from pipeline.utils.errors import bad_field
from pipeline.vocabulary import Vocabulary
from teacher_cache.detectors.pairing import PairingConfig, concatenate_pairs, form_pairs
from teacher_cache.detectors.torchvision import Detector, detect_objects
from teacher_cache.extraction.decoding import (
    FailedImages,
    ImageTask,
    prefetch_images,
    same_size_batches,
)
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

# How far detection may run ahead of cutting, and cutting ahead of encoding, in batches of images
# and of regions; bounds the memory.
BATCHES_AHEAD = 2
BATCHES_QUEUED = 8


@dataclass(frozen=True)
class ExtractionConfig:
    """How images go through the models.

    Attributes:
        pairing: which detections form pairs.
        level: "region" shows the teacher a pair's union box, "image" the whole image.
        region: how that becomes the teacher's square input.
        images_per_batch: at most so many images of one size go through the detector at once.
        regions_per_batch: so many regions go through CLIP at once, of whatever images; None takes
            what suits the device.
        embeddings: whether region embeddings are kept.
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
    """The frozen models with the embedded prompts of a vocabulary.

    Attributes:
        detector, clip: the frozen models; no detector where all boxes are known beforehand.
        text: embeddings of the vocabulary's prompts.
        vocabulary: vocabulary of the outputs.
    """

    detector: Detector | None
    clip: ClipTeacher
    text: PromptEmbeddings
    vocabulary: Vocabulary


@dataclass(frozen=True, eq=False)
class _ImagePairs:
    """An image between detector and CLIP."""

    index: int
    pairs: Pairs
    region_indices: np.ndarray
    boxes: np.ndarray


def extract(
    image_tasks: Sequence[ImageTask],
    teacher: TeacherModels,
    config: ExtractionConfig,
    on_progress: Callable[[int], None],
) -> tuple[dict[str, TeacherOutputs], dict[str, str]]:
    """The teacher's outputs for some images.

    Decoding, cutting regions out and encoding them run beside each other, each on another batch
    (`WorkerPools`). So does detecting on a GPU; on a CPU it has all cores for itself. Images that
    share a detector batch have equal sizes, so none of them is padded.

    Args:
        image_tasks: the images.
        teacher: the models to run.
        config: batch sizes and choices.
        on_progress: receives how many images are done after every batch.

    Returns:
        Outputs by image id, in the order of the image tasks, and the reasons by image id where an
        image could not be read.

    Raises:
        InputError: an image cannot be read, and the configuration is strict; the teacher gives
            numbers that are not finite; or the batches do not fit a GPU's memory.
    """
    clip = teacher.clip
    failures = FailedImages(image_tasks, config.strict)
    image_pairs: list[_ImagePairs] = []
    cutting: deque[list[Future[Tensor]]] = deque()
    images: list[Image.Image] = []
    regions_per_batch = config.regions_per_batch or clip.batch_size

    def batches_taken() -> str:
        sizes = {f"{image.width} x {image.height}" for image in images}
        shown = f"{len(images)} images of {' and '.join(sizes)} pixels"
        return f"batch size {regions_per_batch} regions, detector batch size {shown}"

    with convert_out_of_memory(batches_taken), WorkerPools(clip.device) as pools:
        encoder = _BatchEncoder(clip, regions_per_batch, pools.encoder_pool)
        batches = same_size_batches(image_tasks, config.images_per_batch, failures)
        for indices, images in prefetch_images(pools.image_pool, batches, image_tasks, failures):
            if not images:
                continue
            if teacher.detector is not None:
                pools.wait_until_idle()
            batch = _detect_pairs([(n, image_tasks[n]) for n in indices], images, teacher, config)
            image_pairs += batch
            cutting.append(
                [
                    pools.image_pool.submit(
                        crop_regions,
                        image,
                        entry.boxes,
                        clip.image_size,
                        config.region,
                        clip.device,
                        clip.interpolation,
                    )
                    for image, entry in zip(images, batch, strict=True)
                ]
            )
            if len(cutting) > BATCHES_AHEAD:
                on_progress(encoder.add(cutting.popleft()))
        for regions in cutting:
            on_progress(encoder.add(regions))
        embeddings = encoder.finish()
        on_progress(len(failures.reasons))
    _check_finite(image_pairs, embeddings, image_tasks)
    outputs = _teacher_outputs(image_pairs, embeddings, teacher, config.embeddings)
    order = sorted(range(len(image_pairs)), key=lambda place: image_pairs[place].index)
    by_image = {image_tasks[image_pairs[place].index].image_id: outputs[place] for place in order}
    return by_image, failures.by_image()


def _detect_pairs(
    image_tasks: Sequence[tuple[int, ImageTask]],
    images: Sequence[Image.Image],
    teacher: TeacherModels,
    config: ExtractionConfig,
) -> list[_ImagePairs]:
    """Detects in a batch of images, where boxes are not known, and forms the pairs of each."""
    known = [image_task.boxes for _, image_task in image_tasks]
    if teacher.detector is not None:
        known = list(detect_objects(teacher.detector, images))
    image_pairs = []
    for (index, image_task), image, found in zip(image_tasks, images, known, strict=True):
        assert found is not None, "without a detector all boxes are known"
        proposed = form_pairs(found, teacher.vocabulary, config.pairing)
        pairs = concatenate_pairs(image_task.annotated_pairs, proposed)
        whole = config.level == "image"
        boxes, regions = whole_image_region(pairs, image.size) if whole else union_regions(pairs)
        image_pairs.append(_ImagePairs(index, pairs, regions, boxes))
    return image_pairs


def _check_finite(
    image_pairs: Sequence[_ImagePairs], embeddings: np.ndarray, image_tasks: Sequence[ImageTask]
) -> None:
    """Names the first image of which an embedding is not finite.

    Raises:
        InputError: there is one.
    """
    wrong = np.flatnonzero(~np.isfinite(embeddings).all(axis=1))
    if not len(wrong):
        return
    images = np.repeat(
        [image.index for image in image_pairs], [len(image.boxes) for image in image_pairs]
    )
    boxes = np.concatenate([image.boxes for image in image_pairs])
    raise bad_field(
        image_tasks[images[wrong[0]]].path,
        f"region {boxes[wrong[0]].round(1).tolist()}",
        "finite numbers from the teacher in float32",
        f"others in {len(wrong)} of {len(embeddings)} regions",
    )


def _teacher_outputs(
    image_pairs: Sequence[_ImagePairs],
    embeddings: np.ndarray,
    teacher: TeacherModels,
    keep_embeddings: bool,
) -> list[TeacherOutputs]:
    if not image_pairs:
        return []
    first_regions = np.cumsum([0, *(len(image.boxes) for image in image_pairs)])
    first_pairs = np.cumsum([0, *(len(image.pairs) for image in image_pairs)])
    rows = np.concatenate(
        [image.region_indices + first_regions[n] for n, image in enumerate(image_pairs)]
    )
    labels = np.concatenate([image.pairs.object_labels for image in image_pairs])
    text = teacher.text.embeddings
    embeddings = embeddings.reshape(-1, text.shape[1])
    logits = teacher.text.logit_scale * embeddings @ text.T
    probabilities = action_probabilities(logits[rows], labels, teacher.vocabulary)
    return [
        TeacherOutputs(
            pairs=image.pairs,
            probabilities=probabilities[first_pairs[n] : first_pairs[n + 1]],
            region_indices=image.region_indices,
            region_boxes=image.boxes,
            embeddings=embeddings[first_regions[n] : first_regions[n + 1]]
            if keep_embeddings
            else None,
        )
        for n, image in enumerate(image_pairs)
    ]


class _BatchEncoder:
    """Sends regions of several images through CLIP in full batches."""

    def __init__(self, clip: ClipTeacher, batch_size: int, pool: Executor) -> None:
        self._clip, self._batch_size, self._pool = clip, batch_size, pool
        self._waiting: deque[Tensor] = deque()
        self._running: deque[Future[Callable[[], np.ndarray]]] = deque()
        self._done: list[np.ndarray] = []

    def add(self, cutting: Sequence[Future[Tensor]]) -> int:
        """Takes on the regions of images as soon as they are cut; returns how many images."""
        self._waiting += [regions.result() for regions in cutting]
        while sum(map(len, self._waiting)) >= self._batch_size:
            batch, missing = [], self._batch_size
            while missing:
                regions = self._waiting.popleft()
                batch.append(regions[:missing])
                if len(regions) > missing:
                    self._waiting.appendleft(regions[missing:])
                missing -= len(batch[-1])
            self._submit(batch)
        return len(cutting)

    def finish(self) -> np.ndarray:
        """(R, D) float32, in the order in which regions were added."""
        if sum(map(len, self._waiting)):
            self._submit(list(self._waiting))
        while self._running:
            self._collect_oldest()
        return np.concatenate(self._done) if self._done else np.zeros((0, 0), np.float32)

    def _submit(self, batch: Sequence[Tensor]) -> None:
        self._running.append(self._pool.submit(self._start, batch))
        if len(self._running) > BATCHES_QUEUED:
            self._collect_oldest()

    def _start(self, batch: Sequence[Tensor]) -> Callable[[], np.ndarray]:
        return self._clip.encode_images_async(torch.cat(list(batch)))

    def _collect_oldest(self) -> None:
        self._done.append(self._running.popleft().result()())


# Threads that decode pictures and cut regions out beside a GPU.
NUM_GPU_WORKERS = 4
# Of a CPU; each works on a batch of its own, which takes memory.
MAX_CPU_WORKERS = 4


class WorkerPools:
    """Threads for the steps of a build, as a context manager.

    A GPU has one thread that encodes, and workers that decode and cut beside it; what they give the
    GPU to do does not queue up with the caller's, who detects meanwhile. The cores of a CPU
    are dealt out to a few workers, each of which decodes, cuts and encodes batches of its own with
    its own torch threads: several matrix products of few threads each use the cores better than
    one that all cores share, above all where other work holds up one of its parts.

    Whoever leaves by an exception waits for the work that runs, not for what is queued.

    Args:
        device: where the models run.

    Attributes:
        image_pool: decode and cut.
        encoder_pool: run the image tower.
    """

    image_pool: Executor
    encoder_pool: Executor

    def __init__(self, device: torch.device) -> None:
        self._threads = torch.get_num_threads()
        self._on_cpu = device.type == "cpu"
        if self._on_cpu:
            workers = min(self._threads, MAX_CPU_WORKERS)
            share = -(-self._threads // workers)
            self._pools = [
                _TrackedPool(workers, initializer=torch.set_num_threads, initargs=(share,))
            ]
        else:
            options: dict[str, Any] = {}
            if device.type == "cuda":
                stream = _second_stream(device)
                if stream is not None:
                    stream.wait_stream(torch.cuda.current_stream(device))
                options = {"initializer": _set_cuda_stream, "initargs": (device, stream)}
            self._pools = [_TrackedPool(NUM_GPU_WORKERS, **options), _TrackedPool(1, **options)]
        self.image_pool, self.encoder_pool = self._pools[0], self._pools[-1]

    def wait_until_idle(self) -> None:
        """Waits, on a CPU, until the workers are idle: the caller is to work with all cores."""
        if self._on_cpu:
            wait(self._pools[0].unfinished)

    def __enter__(self) -> WorkerPools:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for pool in self._pools:
            pool.shutdown(cancel_futures=kind is not None)
        # What a worker was given would be the number of every thread that is new to torch.
        torch.set_num_threads(self._threads)


@cache
def _second_stream(device: torch.device) -> Any:
    """A GPU's second stream, always the same one: memory that was used in one stream is not used
    again in another. None where there is none to be had; then all share the first."""
    try:
        return torch.cuda.Stream(device)
    except RuntimeError:
        return None


def _set_cuda_stream(device: torch.device, stream: Any) -> None:
    """Makes a GPU and its stream a new thread's current ones."""
    torch.cuda.set_device(device)
    if stream is not None:
        torch.cuda.set_stream(stream)


class _TrackedPool(ThreadPoolExecutor):
    """Knows the work that it has not finished."""

    def __init__(self, threads: int, **options: Any) -> None:
        super().__init__(threads, **options)
        self.unfinished: set[Future[Any]] = set()

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future = super().submit(fn, *args, **kwargs)
        self.unfinished = {one for one in (*self.unfinished, future) if not one.done()}
        return future
