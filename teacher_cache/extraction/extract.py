"""Asks detector and CLIP about a few hundred images: the work of one shard."""

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
from pipeline.utils.devices import out_of_memory_line
from pipeline.utils.errors import bad_field
from pipeline.vocabulary import Vocabulary
from teacher_cache.detectors.pairing import PairingConfig, join_pairs, pair_up
from teacher_cache.detectors.torchvision import Detector, detect
from teacher_cache.extraction.decoding import Failures, Question, read_ahead, same_size_batches
from teacher_cache.reader.cache import TeacherText
from teacher_cache.reader.format import ImageAnswers
from teacher_cache.reader.soft_targets import action_probabilities
from teacher_cache.teachers.clip import ClipTeacher
from teacher_cache.teachers.regions import RegionMode, cut_regions, union_regions, whole_image

# How far detection may run ahead of cutting, and cutting ahead of encoding, in batches of images
# and of regions; bounds the memory.
BATCHES_AHEAD = 2
BATCHES_QUEUED = 8


@dataclass(frozen=True)
class AskingConfig:
    """How images go through the panel.

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
class Panel:
    """Everything that answers, ready to run.

    Attributes:
        detector, clip: the frozen panel; no detector where all boxes are known beforehand.
        text: embeddings of the vocabulary's prompts.
        vocabulary: what the answers are about.
    """

    detector: Detector | None
    clip: ClipTeacher
    text: TeacherText
    vocabulary: Vocabulary


@dataclass(frozen=True, eq=False)
class _Asked:
    """An image between detector and CLIP."""

    index: int
    pairs: Pairs
    regions: np.ndarray
    boxes: np.ndarray


def ask(
    questions: Sequence[Question],
    panel: Panel,
    config: AskingConfig,
    report: Callable[[int], None],
) -> tuple[dict[str, ImageAnswers], dict[str, str]]:
    """The teacher's answers about some images.

    Decoding, cutting regions out and encoding them run beside each other, each on another batch
    (`Lanes`). So does detecting on a GPU; on a CPU it has all cores for itself. Only images of
    equal size share a detector batch, so no image is padded for its neighbours' sake.

    Args:
        questions: the images.
        panel: who answers.
        config: batch sizes and choices.
        report: told how many images are done after every batch.

    Returns:
        Answers by image id, in the order of the questions, and the reasons by image id where an
        image could not be read.

    Raises:
        InputError: an image cannot be read, and the configuration is strict; the teacher gives
            numbers that are not finite; or the batches do not fit a GPU's memory.
    """
    clip = panel.clip
    failures = Failures(questions, config.strict)
    asked: list[_Asked] = []
    cutting: deque[list[Future[Tensor]]] = deque()
    images: list[Image.Image] = []
    regions_per_batch = config.regions_per_batch or clip.batch_size

    def batches_taken() -> str:
        sizes = {f"{image.width} x {image.height}" for image in images}
        shown = f"{len(images)} images of {' and '.join(sizes)} pixels"
        return f"batch size {regions_per_batch} regions, detector batch size {shown}"

    with out_of_memory_line(batches_taken), Lanes(clip.device) as lanes:
        encoder = _Encoder(clip, regions_per_batch, lanes.encoders)
        batches = same_size_batches(questions, config.images_per_batch, failures)
        for indices, images in read_ahead(lanes.helpers, batches, questions, failures):
            if not images:
                continue
            if panel.detector is not None:
                lanes.make_room()
            batch = _pairs([(n, questions[n]) for n in indices], images, panel, config)
            asked += batch
            cutting.append(
                [
                    lanes.helpers.submit(
                        cut_regions,
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
                report(encoder.add(cutting.popleft()))
        for regions in cutting:
            report(encoder.add(regions))
        embeddings = encoder.finish()
        report(len(failures.reasons))
    _refuse_not_finite(asked, embeddings, questions)
    answers = _answers(asked, embeddings, panel, config.embeddings)
    order = sorted(range(len(asked)), key=lambda place: asked[place].index)
    by_image = {questions[asked[place].index].image_id: answers[place] for place in order}
    return by_image, failures.by_image()


def _pairs(
    questions: Sequence[tuple[int, Question]],
    images: Sequence[Image.Image],
    panel: Panel,
    config: AskingConfig,
) -> list[_Asked]:
    """Detects in a batch of images, where boxes are not known, and forms the pairs of each."""
    known = [question.boxes for _, question in questions]
    if panel.detector is not None:
        known = list(detect(panel.detector, images))
    asked = []
    for (index, question), image, found in zip(questions, images, known, strict=True):
        assert found is not None, "without a detector all boxes are known"
        proposed = pair_up(found, panel.vocabulary, config.pairing)
        pairs = join_pairs(question.annotated, proposed)
        whole = config.level == "image"
        boxes, regions = whole_image(pairs, image.size) if whole else union_regions(pairs)
        asked.append(_Asked(index, pairs, regions, boxes))
    return asked


def _refuse_not_finite(
    asked: Sequence[_Asked], embeddings: np.ndarray, questions: Sequence[Question]
) -> None:
    """Names the first image of which an embedding is not finite.

    Raises:
        InputError: there is one.
    """
    wrong = np.flatnonzero(~np.isfinite(embeddings).all(axis=1))
    if not len(wrong):
        return
    images = np.repeat([image.index for image in asked], [len(image.boxes) for image in asked])
    boxes = np.concatenate([image.boxes for image in asked])
    raise bad_field(
        questions[images[wrong[0]]].path,
        f"region {boxes[wrong[0]].round(1).tolist()}",
        "finite numbers from the teacher in float32",
        f"others in {len(wrong)} of {len(embeddings)} regions",
    )


def _answers(
    asked: Sequence[_Asked], embeddings: np.ndarray, panel: Panel, keep_embeddings: bool
) -> list[ImageAnswers]:
    if not asked:
        return []
    first_regions = np.cumsum([0, *(len(image.boxes) for image in asked)])
    first_pairs = np.cumsum([0, *(len(image.pairs) for image in asked)])
    rows = np.concatenate([image.regions + first_regions[n] for n, image in enumerate(asked)])
    labels = np.concatenate([image.pairs.object_labels for image in asked])
    text = panel.text.embeddings
    embeddings = embeddings.reshape(-1, text.shape[1])
    logits = panel.text.logit_scale * embeddings @ text.T
    probabilities = action_probabilities(logits[rows], labels, panel.vocabulary)
    return [
        ImageAnswers(
            pairs=image.pairs,
            probabilities=probabilities[first_pairs[n] : first_pairs[n + 1]],
            regions=image.regions,
            region_boxes=image.boxes,
            embeddings=embeddings[first_regions[n] : first_regions[n + 1]]
            if keep_embeddings
            else None,
        )
        for n, image in enumerate(asked)
    ]


class _Encoder:
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
            self._take_oldest()
        return np.concatenate(self._done) if self._done else np.zeros((0, 0), np.float32)

    def _submit(self, batch: Sequence[Tensor]) -> None:
        self._running.append(self._pool.submit(self._start, batch))
        if len(self._running) > BATCHES_QUEUED:
            self._take_oldest()

    def _start(self, batch: Sequence[Tensor]) -> Callable[[], np.ndarray]:
        return self._clip.start_encoding(torch.cat(list(batch)))

    def _take_oldest(self) -> None:
        self._done.append(self._running.popleft().result()())


# Threads that decode pictures and cut regions out beside a GPU.
HELPERS = 4
# Of a CPU; each works on a batch of its own, which takes memory.
MOST_LANES = 4


class Lanes:
    """Threads for the steps of a build, as a context manager.

    A GPU has one thread that encodes, and helpers that decode and cut beside it; what they give the
    GPU to do does not queue up with the caller's, who detects meanwhile. The cores of a CPU
    are dealt out to a few lanes, each of which decodes, cuts and encodes batches of its own with
    its own torch threads: several matrix products of few threads each use the cores better than
    one that all cores share, above all where other work holds up one of its parts.

    Whoever leaves by an exception waits for the work that runs, not for what is queued.

    Args:
        device: where the models run.

    Attributes:
        helpers: decode and cut.
        encoders: run the image tower.
    """

    helpers: Executor
    encoders: Executor

    def __init__(self, device: torch.device) -> None:
        self._threads = torch.get_num_threads()
        self._on_cpu = device.type == "cpu"
        if self._on_cpu:
            lanes = min(self._threads, MOST_LANES)
            share = -(-self._threads // lanes)
            self._pools = [_Pool(lanes, initializer=torch.set_num_threads, initargs=(share,))]
        else:
            options: dict[str, Any] = {}
            if device.type == "cuda":
                stream = _side_stream(device)
                if stream is not None:
                    stream.wait_stream(torch.cuda.current_stream(device))
                options = {"initializer": _take_gpu, "initargs": (device, stream)}
            self._pools = [_Pool(HELPERS, **options), _Pool(1, **options)]
        self.helpers, self.encoders = self._pools[0], self._pools[-1]

    def make_room(self) -> None:
        """Waits, on a CPU, until the lanes are empty: the caller is to work with all cores."""
        if self._on_cpu:
            wait(self._pools[0].unfinished)

    def __enter__(self) -> Lanes:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for pool in self._pools:
            pool.shutdown(cancel_futures=kind is not None)
        # What a lane was given would be the number of every thread that is new to torch.
        torch.set_num_threads(self._threads)


@cache
def _side_stream(device: torch.device) -> Any:
    """A GPU's second stream, always the same one: memory that was used in one stream is not used
    again in another. None where there is none to be had; then all share the first."""
    try:
        return torch.cuda.Stream(device)
    except RuntimeError:
        return None


def _take_gpu(device: torch.device, stream: Any) -> None:
    """Makes a GPU and its stream a new thread's current ones."""
    torch.cuda.set_device(device)
    if stream is not None:
        torch.cuda.set_stream(stream)


class _Pool(ThreadPoolExecutor):
    """Knows the work that it has not finished."""

    def __init__(self, threads: int, **options: Any) -> None:
        super().__init__(threads, **options)
        self.unfinished: set[Future[Any]] = set()

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future = super().submit(fn, *args, **kwargs)
        self.unfinished = {one for one in (*self.unfinished, future) if not one.done()}
        return future
