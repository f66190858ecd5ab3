"""Reads a shard's images in batches of one size, a batch ahead of the models."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from pipeline.images import image_size, read_image
from pipeline.types import Pairs
from pipeline.utils.errors import InputError
from teacher_cache.detectors.pairing import FoundBoxes

# Bounds the memory of a batch: decoded, as floats and normalised, 27 bytes for every pixel.
PIXELS_AT_ONCE = 2**25


@dataclass(frozen=True, eq=False)
class Question:
    """One image to ask about.

    Attributes:
        image_id: the image's file name.
        path: where it lies.
        annotated: its annotated pairs, which are asked about whatever the detector finds.
        boxes: what forms further pairs; None leaves that to the detector.
        size: width and height that it was annotated with, where known.
    """

    image_id: str
    path: Path
    annotated: Pairs
    boxes: FoundBoxes | None = None
    size: tuple[int, int] | None = None


class Failures:
    """Images that could not be read.

    Args:
        questions: all images.
        strict: whether the first failure ends the build.

    Attributes:
        reasons: by index of the question.
    """

    def __init__(self, questions: Sequence[Question], strict: bool) -> None:
        self._questions, self._strict = questions, strict
        self.reasons: dict[int, str] = {}

    def note(self, index: int, error: InputError) -> None:
        """Takes down a failure.

        Raises:
            InputError: the build is strict.
        """
        if self._strict:
            raise error
        self.reasons[index] = str(error).removeprefix(f"{self._questions[index].path}: ")

    def by_image(self) -> dict[str, str]:
        """Reasons by image id, in the order of the questions."""
        return {self._questions[i].image_id: self.reasons[i] for i in sorted(self.reasons)}


def same_size_batches(
    questions: Sequence[Question], size: int, failures: Failures
) -> list[list[int]]:
    """Groups images that have equally many pixels both ways, by their file headers.

    Args:
        questions: the images.
        size: how many make a batch at most; fewer where they are large.
        failures: told of files that are no images, or of another size than annotated.

    Returns:
        Indices of the questions, batch by batch.
    """
    by_size = defaultdict(list)
    for index, question in enumerate(questions):
        try:
            by_size[_checked_size(question)].append(index)
        except InputError as error:
            failures.note(index, error)
    batches = []
    for (width, height), indices in by_size.items():
        step = min(size, max(1, PIXELS_AT_ONCE // (width * height)))
        batches += [indices[start : start + step] for start in range(0, len(indices), step)]
    return batches


def _checked_size(question: Question) -> tuple[int, int]:
    """Width and height, which must be the annotated ones: boxes of a picture that was larger, or
    lay on its side, show other things in this one."""
    width, height = image_size(question.path)
    if question.size not in (None, (width, height)):
        expected = f"{question.size[0]} x {question.size[1]} pixels, as annotated"
        raise InputError(f"{question.path}: expected {expected}, found {width} x {height}")
    return width, height


def read_ahead(
    pool: Executor,
    batches: Sequence[list[int]],
    questions: Sequence[Question],
    failures: Failures,
) -> Iterator[tuple[list[int], list[Image.Image]]]:
    """Decodes batches, the next one while the caller works on this one.

    Args:
        pool: decodes the pictures of a batch.
        batches: indices of `questions`.
        questions: the images.
        failures: told of images that cannot be decoded.

    Yields:
        Indices and RGB pictures of a batch's readable images.
    """

    def decode(batch: list[int]) -> list[Future[Image.Image | InputError]]:
        return [pool.submit(_try_reading, questions[index].path) for index in batch]

    waiting = [decode(batch) for batch in batches[:1]]
    for number, batch in enumerate(batches):
        results = [picture.result() for picture in waiting.pop()]
        if number + 1 < len(batches):
            waiting.append(decode(batches[number + 1]))
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
