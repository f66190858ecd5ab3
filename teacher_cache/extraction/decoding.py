"""Reads a shard's images in batches of one size, a batch ahead of the models."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from pipeline.images import read_image, read_image_size
from pipeline.types import Pairs
from pipeline.utils.errors import InputError
from teacher_cache.detectors.pairing import ObjectBoxes

# Bounds the memory of a batch: decoded, as floats and normalised, 27 bytes for every pixel.
MAX_BATCH_PIXELS = 2**25


@dataclass(frozen=True, eq=False)
class ImageTask:
    """One image to run the teacher on.

    Attributes:
        image_id: the image's file name.
        path: where it lies.
        annotated_pairs: its annotated pairs, which get outputs whatever the detector finds.
        boxes: what forms further pairs; None leaves that to the detector.
        size: width and height that it was annotated with, where known.
    """

    image_id: str
    path: Path
    annotated_pairs: Pairs
    boxes: ObjectBoxes | None = None
    size: tuple[int, int] | None = None


class FailedImages:
    """Images that could not be read.

    Args:
        image_tasks: all images.
        strict: whether the first failure ends the build.

    Attributes:
        reasons: by index of the image task.
    """

    def __init__(self, image_tasks: Sequence[ImageTask], strict: bool) -> None:
        self._image_tasks, self._strict = image_tasks, strict
        self.reasons: dict[int, str] = {}

    def add(self, index: int, error: InputError) -> None:
        """Takes down a failure.

        Raises:
            InputError: the build is strict.
        """
        if self._strict:
            raise error
        self.reasons[index] = str(error).removeprefix(f"{self._image_tasks[index].path}: ")

    def by_image(self) -> dict[str, str]:
        """Reasons by image id, in the order of the image tasks."""
        return {self._image_tasks[i].image_id: self.reasons[i] for i in sorted(self.reasons)}


def same_size_batches(
    image_tasks: Sequence[ImageTask], size: int, failures: FailedImages
) -> list[list[int]]:
    """Groups images that have equally many pixels both ways, by their file headers.

    Args:
        image_tasks: the images.
        size: how many make a batch at most; fewer where they are large.
        failures: told of files that are no images, or of another size than annotated.

    Returns:
        Indices of the image tasks, batch by batch.
    """
    by_size = defaultdict(list)
    for index, image_task in enumerate(image_tasks):
        try:
            by_size[_check_size(image_task)].append(index)
        except InputError as error:
            failures.add(index, error)
    batches = []
    for (width, height), indices in by_size.items():
        step = min(size, max(1, MAX_BATCH_PIXELS // (width * height)))
        batches += [indices[start : start + step] for start in range(0, len(indices), step)]
    return batches


def _check_size(image_task: ImageTask) -> tuple[int, int]:
    """Width and height, which must be the annotated ones: boxes of a picture that was larger, or
    lay on its side, show other things in this one."""
    width, height = read_image_size(image_task.path)
    if image_task.size not in (None, (width, height)):
        expected = f"{image_task.size[0]} x {image_task.size[1]} pixels, as annotated"
        raise InputError(f"{image_task.path}: expected {expected}, found {width} x {height}")
    return width, height


def prefetch_images(
    pool: Executor,
    batches: Sequence[list[int]],
    image_tasks: Sequence[ImageTask],
    failures: FailedImages,
) -> Iterator[tuple[list[int], list[Image.Image]]]:
    """Decodes batches, the next one while the caller works on this one.

    Args:
        pool: decodes the pictures of a batch.
        batches: indices of `image_tasks`.
        image_tasks: the images.
        failures: told of images that cannot be decoded.

    Yields:
        Indices and RGB pictures of a batch's readable images.
    """

    def decode(batch: list[int]) -> list[Future[Image.Image | InputError]]:
        return [pool.submit(_try_read, image_tasks[index].path) for index in batch]

    waiting = [decode(batch) for batch in batches[:1]]
    for number, batch in enumerate(batches):
        results = [picture.result() for picture in waiting.pop()]
        if number + 1 < len(batches):
            waiting.append(decode(batches[number + 1]))
        indices, images = [], []
        for index, result in zip(batch, results, strict=True):
            if isinstance(result, InputError):
                failures.add(index, result)
            else:
                indices.append(index)
                images.append(result)
        yield indices, images


def _try_read(path: Path) -> Image.Image | InputError:
    try:
        return read_image(path)
    except InputError as error:
        return error
