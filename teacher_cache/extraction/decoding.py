"""Decodes the images of a shard in batches of equal size, one batch ahead of the models."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from pipeline.images import is_large, read_image, read_image_size
from pipeline.types import Pairs
from pipeline.utils.errors import InputError
from teacher_cache.detectors.pairing import ObjectBoxes

# Limits the memory of a batch to 0.9 GB: as uint8, as float32 and normalised, a pixel takes
# 3 + 12 + 12 bytes.
MAX_BATCH_PIXELS = 2**25


@dataclass(frozen=True, eq=False)
class ImageTask:
    """One image to run the teacher on.

    Attributes:
        image_id: the image's file name.
        annotated_pairs: its annotated pairs, for which outputs are always computed.
        boxes: boxes that form further pairs; None runs the detector.
        size: width and height in the annotations, where known.
    """

    image_id: str
    path: Path
    annotated_pairs: Pairs
    boxes: ObjectBoxes | None = None
    size: tuple[int, int] | None = None


# Receives the index of an image that cannot be read, and why.
OnError = Callable[[int, InputError], None]


def same_size_batches(
    image_tasks: Sequence[ImageTask], size: int, on_error: OnError
) -> list[list[int]]:
    """Groups images of equal width and height, read from their file headers.

    Batches have up to `size` images; large images form smaller ones (`MAX_BATCH_PIXELS`).

    Returns:
        Indices of the image tasks of each batch, without those of files that are not images, or
        whose size differs from the annotations.
    """
    by_size = defaultdict(list)
    for index, image_task in enumerate(image_tasks):
        try:
            by_size[_check_size(image_task)].append(index)
        except InputError as error:
            on_error(index, error)
    batches = []
    for (width, height), indices in by_size.items():
        step = min(size, max(1, MAX_BATCH_PIXELS // (width * height)))
        batches += [indices[start : start + step] for start in range(0, len(indices), step)]
    return batches


def _check_size(image_task: ImageTask) -> tuple[int, int]:
    """Width and height of an image; refuses another size than annotated, as boxes do not fit it."""
    width, height = read_image_size(image_task.path)
    if image_task.size not in (None, (width, height)):
        expected = f"{image_task.size[0]} x {image_task.size[1]} pixels, as annotated"
        raise InputError(f"{image_task.path}: expected {expected}, found {width} x {height}")
    return width, height


def prefetch_images(
    pool: Executor,
    batches: Sequence[list[int]],
    image_tasks: Sequence[ImageTask],
    on_error: OnError,
) -> Iterator[tuple[list[int], list[Image.Image]]]:
    """Decodes batches; the next one is decoded while the caller works on the present one.

    While the caller has a large image, no other one is decoded.

    Yields:
        Indices and RGB images of a batch, without those that cannot be decoded.
    """

    def decode(batch: list[int]) -> list[Future[Image.Image | InputError]]:
        return [pool.submit(try_read, image_tasks[index].path) for index in batch]

    pending: list[Future[Image.Image | InputError]] = []
    for number, batch in enumerate(batches):
        results = [future.result() for future in pending or decode(batch)]
        indices, images = [], []
        for index, result in zip(batch, results, strict=True):
            if isinstance(result, InputError):
                on_error(index, result)
            else:
                indices.append(index)
                images.append(result)
        alone = any(map(is_large, images))
        pending = decode(batches[number + 1]) if not alone and number + 1 < len(batches) else []
        yield indices, images
        # Not held while the next ones are decoded.
        del images, results, result


def try_read(path: Path) -> Image.Image | InputError:
    """Reads an image; gives the error for one that cannot be read."""
    try:
        return read_image(path)
    except InputError as error:
        return error
