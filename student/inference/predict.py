"""Inference: the one path from pictures to detections, of every command and of `Detector`.

Only pictures that have one size after resizing share a batch, so that no picture is padded because
of others. Padding would change answers: a convolution takes zeros beyond a picture's edge, but
beside a padded picture it finds what the layers before made of the padding. The published model is
defined with that, so it is kept out of the batches instead of out of the layers. What is left of a
batch's composition is rounding, below 1e-5 of a score in float32.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import groupby, islice
from typing import TypeVar, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

from pipeline.images import read_image_size
from pipeline.types import Detections, ImageRecord
from pipeline.utils.devices import configure_device, convert_out_of_memory
from pipeline.utils.errors import InputError, bad_field
from pipeline.utils.progress import Progress
from pipeline.vocabulary import Vocabulary
from student.data.dataset import normalise_batch
from student.data.transforms import MAX_SIZE, build_evaluation_resize
from student.inference.images import ImageInput, image_name, to_rgb_image
from student.inference.postprocess import to_detections
from student.models.detector import HOIDetector
from student.models.padding import stack_images
from student.utils.distributed import SINGLE_PROCESS, DistContext

Item = TypeVar("Item")
Made = TypeVar("Made")
Own = TypeVar("Own", bound="BatchPredictor")

BATCH_SIZE = 16
# Pictures that are sorted by size at once; the first answer waits for the headers of so many.
SORT_WINDOW = 1024


@dataclass(frozen=True, eq=False)
class Prediction:
    """What the detector says about one picture.

    Attributes:
        index: its place in the list.
        size: (width, height) of the upright picture, in pixels.
        detections: best first, boxes in these pixels.
    """

    index: int
    size: tuple[int, int]
    detections: Detections


@dataclass(frozen=True)
class ImageError:
    """A picture that cannot be read: its place in the list, and one line that says why."""

    index: int
    reason: str


@dataclass(frozen=True, eq=False)
class _PreparedImage:
    index: int
    name: str
    size: tuple[int, int]
    pixels: Tensor


@dataclass(frozen=True, eq=False)
class BatchPredictor:
    """A detector and what decides its answers.

    They are computed in float32 whatever the detector was trained in. Only products on a GPU are
    TF32 (10 bits of mantissa), unless the detector was trained with "float32".

    Attributes:
        model: the detector.
        vocabulary: what its classes mean.
        augmentation: the one it was trained with, which decides the size of its pictures.
        precision: the one it was trained with, see `pipeline.utils.devices.configure_device`.
    """

    model: HOIDetector
    vocabulary: Vocabulary
    augmentation: str
    precision: str

    def to(self: Own, device: torch.device) -> Own:
        """The same detector, its model moved to a device, in eval mode."""
        configure_device(device, self.precision)
        # Laid out as in training, which is quicker on CPUs and GPUs alike.
        model = self.model.to(device).to(memory_format=torch.channels_last).eval()
        return replace(self, model=model)

    @property
    def resize(self) -> v2.Transform:
        """Brings pictures to the size they are looked at in."""
        return build_evaluation_resize(self.augmentation)

    def stream(
        self, sources: Sequence[ImageInput], batch_size: int = BATCH_SIZE, threads: int = 0
    ) -> Iterator[Prediction | ImageError]:
        """Looks at pictures of any sizes; answers come batch by batch, not in order.

        Threads, not processes, read pictures: decoding and resizing let other threads work, and
        nothing has to be sent.

        Args:
            sources: see `student.inference.images.to_rgb_image`.
            batch_size: most pictures at once.
            threads: that read pictures ahead; 0 reads when the detector is done.
        """
        resize = self.resize

        def read(index: int) -> _PreparedImage | ImageError:
            name = image_name(sources[index], index)
            try:
                picture = to_rgb_image(sources[index], name)
                pixels = prepare_image(picture, resize, name)
            except InputError as error:
                return ImageError(index, str(error))
            return _PreparedImage(index, name, picture.size, pixels)

        entries = prefetch_map(read, _sort_by_shape(sources, threads), threads, batch_size)
        for _, run in groupby(entries, _batch_key):
            while batch := list(islice(run, batch_size)):
                yield from self._predict_batch(
                    [one for one in batch if isinstance(one, _PreparedImage)]
                )
                yield from (one for one in batch if isinstance(one, ImageError))

    def predict(
        self,
        records: Sequence[ImageRecord],
        context: DistContext = SINGLE_PROCESS,
        threads: int = 0,
        batch_size: int = BATCH_SIZE,
        quiet: bool = False,
    ) -> list[Detections]:
        """Looks at a dataset's images, with progress; several processes share them.

        Args:
            records: the images, the same ones in every process.
            context: the processes that take part; every image goes to one of them.
            threads: that read images, in each process.
            batch_size: most images at once, in each process.
            quiet: show no progress.

        Returns:
            One `Detections` for every record, in their order, in every process.

        Raises:
            InputError: an image cannot be read; all processes say so.
        """
        own, found = records[context.rank :: context.world_size], []
        with (
            context.propagate_errors(),
            Progress(
                len(own), "predicting", "images", quiet=quiet or not context.is_main_process
            ) as progress,
        ):
            for prediction in self.stream([record.path for record in own], batch_size, threads):
                if isinstance(prediction, ImageError):
                    raise InputError(prediction.reason)
                found.append(replace(prediction.detections, image_id=own[prediction.index].id))
                progress.update()
        return merge_predictions(context.all_gather(found), [record.id for record in records])

    def _predict_batch(self, batch: Sequence[_PreparedImage]) -> Iterator[Prediction]:
        """Looks at pictures of one size."""
        if not batch:
            return
        device = next(self.model.parameters()).device
        # Callers may be threads of their own, which begin at the first GPU.
        configure_device(device, self.precision)
        height, width = batch[0].pixels.shape[-2:]
        work = f"batch size {len(batch)}, image size {width} x {height}"
        with convert_out_of_memory(lambda: work), torch.inference_mode():
            multiple = cast(int, self.model.backbone.size_divisible)
            pixels, sizes = stack_images([item.pixels for item in batch], multiple)
            outputs = self.model(normalise_batch(pixels.to(device), sizes))
            found = to_detections(
                outputs,
                [item.name for item in batch],
                [item.size for item in batch],
                self.vocabulary,
            )
        for item, detections in zip(batch, found, strict=True):
            yield Prediction(item.index, item.size, detections)


def prepare_image(picture: Image.Image, resize: v2.Transform, name: str) -> Tensor:
    """An upright RGB picture in the size it is looked at, (3, h, w) uint8.

    Raises:
        InputError: too thin to be resized.
    """
    width, height = picture.size
    if max(width, height) > MAX_SIZE * min(width, height):
        expected = f"sides of at most {MAX_SIZE} to 1"
        raise bad_field(name, "size", expected, f"{width} x {height} pixels")
    return resize(tv_tensors.Image(v2.functional.pil_to_tensor(picture))).as_subclass(Tensor)


def prefetch_map(
    function: Callable[[Item], Made], items: Iterable[Item], threads: int, ahead: int = 0
) -> Iterator[Made]:
    """`map(function, items)` in order, some items ahead of who asks.

    Args:
        threads: that work; 0 works when asked.
        ahead: items that may be ready, beside those that the threads work on.
    """
    if threads == 0:
        yield from map(function, items)
        return
    pool = ThreadPoolExecutor(threads, thread_name_prefix="reader")
    running: deque[Future[Made]] = deque()
    try:
        for item in items:
            running.append(pool.submit(function, item))
            if len(running) > threads + ahead:
                yield running.popleft().result()
        while running:
            yield running.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _sort_by_shape(sources: Sequence[ImageInput], threads: int) -> Iterator[int]:
    """Places of the pictures, those of one shape behind each other within every `SORT_WINDOW`."""
    for first in range(0, len(sources), SORT_WINDOW):
        window = range(first, min(first + SORT_WINDOW, len(sources)))
        found = prefetch_map(_shape_key, (sources[place] for place in window), threads, SORT_WINDOW)
        shapes = dict(zip(window, found, strict=True))
        yield from sorted(window, key=shapes.__getitem__)


def _shape_key(source: ImageInput) -> tuple[float, ...]:
    """What sorts pictures of one shape together: of files and PIL images the ratio of their sides,
    which alone decides the size that DETR's resize gives them, then the sides."""
    if isinstance(source, Image.Image):
        width, height = source.size
    elif isinstance(source, (str, os.PathLike)):
        try:
            width, height = read_image_size(os.fspath(source))
        # It is told when the picture's turn comes.
        except InputError:
            return ()
    else:
        return tuple(getattr(source, "shape", ()))
    return width / max(height, 1), width, height


def _batch_key(item: _PreparedImage | ImageError) -> tuple[int, ...]:
    return tuple(item.pixels.shape) if isinstance(item, _PreparedImage) else ()


COMPARED_FIELDS = ("boxes", "labels", "hois", "scores")


def merge_predictions(
    parts: Iterable[Sequence[Detections]], image_ids: Sequence[str]
) -> list[Detections]:
    """Joins what each process predicted, by image id.

    A sampler that fills up its last round hands some images to two processes; equal predictions
    for an image count once.

    Args:
        parts: the predictions of each process, in any order.
        image_ids: the images that were to be predicted, each once.

    Returns:
        One entry for each of `image_ids`, in their order, however many processes there were.

    Raises:
        InputError: two predictions for an image differ, an image was predicted that nobody asked
            for, or one was left out.
    """
    found: dict[str, Detections] = {}
    for part in parts:
        for item in part:
            known = found.setdefault(item.image_id, item)
            if known is not item and not _same_detections(known, item):
                raise InputError(
                    f"{item.image_id}: expected one prediction, found two that differ"
                    " (of two processes, or of two runs)"
                )
    missing = [image_id for image_id in image_ids if image_id not in found]
    if missing:
        raise InputError(
            f"predictions: expected all {len(image_ids)} images, found none for {len(missing)},"
            f" the first being {missing[0]}"
        )
    if len(found) > len(image_ids):
        others = sorted(found.keys() - set(image_ids))
        raise InputError(
            f"predictions: expected {len(image_ids)} images, found {len(others)} others,"
            f" the first being {others[0]}"
        )
    return [found[image_id] for image_id in image_ids]


def _same_detections(first: Detections, second: Detections) -> bool:
    return all(
        np.array_equal(getattr(first, name), getattr(second, name)) for name in COMPARED_FIELDS
    )
