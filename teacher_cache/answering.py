"""Asks detector and CLIP about a few hundred images: the work of one shard."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from pipeline.errors import InputError
from pipeline.images import image_size, read_image
from pipeline.types import Pairs
from pipeline.vocabulary import Vocabulary
from teacher_cache.clip_teacher import ClipTeacher
from teacher_cache.detectors import Detector
from teacher_cache.format import ImageAnswers
from teacher_cache.pairing import PairingConfig, join_pairs, pair_up
from teacher_cache.reader import TeacherText
from teacher_cache.regions import RegionMode, crop_regions, union_regions
from teacher_cache.soft_targets import action_probabilities


@dataclass(frozen=True, eq=False)
class Question:
    """One image to ask about.

    Attributes:
        image_id: the image's file name.
        path: where it lies.
        annotated: its annotated pairs, which are asked about whatever the detector finds.
    """

    image_id: str
    path: Path
    annotated: Pairs


@dataclass(frozen=True)
class AskingConfig:
    """How images go through the panel.

    Attributes:
        pairing: which detections form pairs.
        region: what the teacher sees of a pair.
        images_per_batch: at most so many images of one size go through the detector at once.
        regions_per_batch: so many regions go through CLIP at once, of whatever images.
        embeddings: whether region embeddings are kept.
        strict: whether an unreadable image ends the build.
    """

    pairing: PairingConfig = field(default_factory=PairingConfig)
    region: RegionMode = field(default_factory=RegionMode)
    images_per_batch: int = 16
    regions_per_batch: int = 256
    embeddings: bool = True
    strict: bool = False


@dataclass(frozen=True, eq=False)
class Panel:
    """Everything that answers, ready to run.

    Attributes:
        detector, clip: the frozen panel.
        text: embeddings of the vocabulary's prompts.
        vocabulary: what the answers are about.
    """

    detector: Detector
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

    Files are decoded and regions cut on other threads while the models run. Only images of equal
    size share a detector batch, so no image is padded for its neighbours' sake.

    Args:
        questions: the images.
        panel: who answers.
        config: batch sizes and choices.
        report: told how many images are done after every batch.

    Returns:
        Answers by image id, in the order of the questions, and the reasons by image id where an
        image could not be read.

    Raises:
        InputError: an image cannot be read, and the configuration is strict.
    """
    failures = _Failures(questions, config.strict)
    asked: list[_Asked] = []
    encoder = _Encoder(panel.clip, config.regions_per_batch)
    with ThreadPoolExecutor(max_workers=2) as pool:
        batches = _batches(questions, config.images_per_batch, failures)
        cutting: Future[list[np.ndarray]] | None = None
        for batch, images in _ahead(pool, batches, questions, failures):
            found = panel.detector([np.asarray(image) for image in images]) if images else []
            jobs = []
            for index, image, boxes in zip(batch, images, found, strict=True):
                proposed = pair_up(boxes, panel.vocabulary, config.pairing)
                pairs = join_pairs(questions[index].annotated, proposed)
                union, rows = union_regions(pairs)
                asked.append(_Asked(index, pairs, rows, union))
                jobs.append((image, union))
            if cutting is not None:
                encoder.add(cutting.result())
            cutting = pool.submit(_cut, jobs, panel.clip.image_size, config.region)
            report(len(batch))
        if cutting is not None:
            encoder.add(cutting.result())
    report(len(failures.reasons))
    embeddings = encoder.finish()
    answers = {}
    first_rows = np.cumsum([0, *(len(image.boxes) for image in asked)])
    order = sorted(range(len(asked)), key=lambda place: asked[place].index)
    for place in order:
        entry = asked[place]
        rows = embeddings[first_rows[place] : first_rows[place + 1]]
        answers[questions[entry.index].image_id] = _answer(entry, rows, panel, config.embeddings)
    return answers, failures.by_image()


def _answer(
    asked: _Asked, embeddings: np.ndarray, panel: Panel, keep_embeddings: bool
) -> ImageAnswers:
    logits = panel.text.logit_scale * (embeddings @ panel.text.embeddings.T)
    labels = asked.pairs.object_labels
    return ImageAnswers(
        pairs=asked.pairs,
        probabilities=action_probabilities(logits[asked.regions], labels, panel.vocabulary),
        regions=asked.regions,
        region_boxes=asked.boxes,
        embeddings=embeddings if keep_embeddings else None,
    )


class _Encoder:
    """Sends regions of several images through CLIP in full batches."""

    def __init__(self, clip: ClipTeacher, batch_size: int) -> None:
        self._clip, self._batch_size = clip, batch_size
        self._waiting: list[np.ndarray] = []
        self._done: list[np.ndarray] = []

    def add(self, regions: list[np.ndarray]) -> None:
        self._waiting += regions
        while len(self._waiting) >= self._batch_size:
            self._encode()

    def finish(self) -> np.ndarray:
        """(R, D) float32, in the order in which regions were added."""
        if self._waiting:
            self._encode()
        return np.concatenate(self._done) if self._done else np.zeros((0, 0), np.float32)

    def _encode(self) -> None:
        batch = self._waiting[: self._batch_size]
        del self._waiting[: self._batch_size]
        self._done.append(self._clip.encode_images(np.stack(batch)))


def _cut(
    jobs: Sequence[tuple[Image.Image, np.ndarray]], size: int, mode: RegionMode
) -> list[np.ndarray]:
    return [crop for image, boxes in jobs for crop in crop_regions(image, boxes, size, mode)]


class _Failures:
    """Images that could not be read; ends the build where it is strict."""

    def __init__(self, questions: Sequence[Question], strict: bool) -> None:
        self._questions, self._strict = questions, strict
        self.reasons: dict[int, str] = {}

    def note(self, index: int, error: InputError) -> None:
        if self._strict:
            raise error
        self.reasons[index] = str(error).removeprefix(f"{self._questions[index].path}: ")

    def by_image(self) -> dict[str, str]:
        return {self._questions[i].image_id: self.reasons[i] for i in sorted(self.reasons)}


def _batches(questions: Sequence[Question], size: int, failures: _Failures) -> list[list[int]]:
    by_size = defaultdict(list)
    for index, question in enumerate(questions):
        try:
            by_size[image_size(question.path)].append(index)
        except InputError as error:
            failures.note(index, error)
    return [
        indices[start : start + size]
        for indices in by_size.values()
        for start in range(0, len(indices), size)
    ]


def _ahead(
    pool: ThreadPoolExecutor,
    batches: Sequence[list[int]],
    questions: Sequence[Question],
    failures: _Failures,
) -> Iterator[tuple[list[int], list[Image.Image]]]:
    """Decoded batches, the next one being decoded while the caller works on this one."""

    def decode(batch: list[int]) -> list[Image.Image | InputError]:
        return [_try_reading(questions[index].path) for index in batch]

    waiting = [pool.submit(decode, batch) for batch in batches[:1]]
    for number, batch in enumerate(batches):
        results = waiting.pop().result()
        if number + 1 < len(batches):
            waiting.append(pool.submit(decode, batches[number + 1]))
        indices, images = [], []
        for index, result in zip(batch, results, strict=True):
            if isinstance(result, InputError):
                failures.note(index, result)
            else:
                indices.append(index)
                images.append(result)
        yield indices, images


def _try_reading(path: Path) -> Image.Image | InputError:
    try:
        return read_image(path)
    except InputError as error:
        return error
