"""Batched prediction: the path from images to detections of all commands and of `Detector`.

Only images of one size after resizing share a batch, so that no image is padded because of the
others. Padding would change the predictions: a convolution assumes zeros beyond the border of an
image, but the padded area of a feature map is no longer zero after the first layers with a bias.
The published model is defined with this effect, so it is avoided by the choice of the batches. The
composition of a batch then changes scores by rounding alone, below 1e-5 in float32.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import groupby, islice
from typing import TypeVar, cast

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
from student.config import TrainConfig
from student.data.dataset import normalise_batch
from student.data.transforms import MAX_SIZE, build_evaluation_resize
from student.inference.images import ImageInput, image_name, to_rgb_image
from student.inference.postprocess import select_detections
from student.models.backbone import pixel_statistics
from student.models.detector import HOIDetector
from student.models.padding import stack_images
from student.utils.distributed import SINGLE_PROCESS, DistContext

Item = TypeVar("Item")
Result = TypeVar("Result")

BATCH_SIZE = 16
# Number of images that are sorted by shape at once. The first batch waits until so many headers are
# read, so that a larger window fills batches better but starts later.
SORT_WINDOW = 1024


@dataclass(frozen=True, eq=False)
class Prediction:
    """Detections in the image at an index of the list, in descending order of score.

    Boxes are in pixels of the upright image, which has the size (width, height).
    """

    index: int
    size: tuple[int, int]
    detections: Detections


@dataclass(frozen=True)
class UnreadableImage:
    """An image that could not be read, by its index in the list; `reason` is one line."""

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
    """A detector with the settings that its predictions depend on.

    Predictions are computed in float32, whatever the precision of the training. Matrix products on
    a GPU use TF32 (10 bits of mantissa), unless the detector was trained with "float32".

    Attributes:
        model: the detector.
        vocabulary: names of its classes.
        train: settings of its training; the augmentation determines the input size.
    """

    model: HOIDetector
    vocabulary: Vocabulary
    train: TrainConfig

    def to(self, device: torch.device) -> BatchPredictor:
        """Returns a predictor whose model is moved to a device and put into eval mode."""
        configure_device(device, self.train.precision)
        # Convolutions are faster in this memory format, on CPUs and GPUs.
        model = self.model.to(device).to(memory_format=torch.channels_last).eval()
        return replace(self, model=model)

    def stream(
        self, sources: Sequence[ImageInput], batch_size: int = BATCH_SIZE, threads: int = 0
    ) -> Iterator[Prediction | UnreadableImage]:
        """Predicts images of any size.

        Images are read by threads instead of processes: decoding and resizing release the GIL, and
        results need not be copied between processes.

        Args:
            sources: images, see `student.inference.images.to_rgb_image`.
            batch_size: maximum number of images per batch.
            threads: number of threads that read images ahead; 0 reads in the calling thread.

        Yields:
            A prediction or an error for every image, in the order of the batches.
        """
        resize = build_evaluation_resize(self.train.augmentation)

        def read(index: int) -> _PreparedImage | UnreadableImage:
            name = image_name(sources[index], index)
            try:
                image = to_rgb_image(sources[index], name)
                pixels = prepare_image(image, resize, name)
            except InputError as error:
                return UnreadableImage(index, str(error))
            return _PreparedImage(index, name, image.size, pixels)

        entries = prefetch_map(read, _sort_by_shape(sources, threads), threads, batch_size)
        for _, run in groupby(entries, _batch_key):
            while batch := list(islice(run, batch_size)):
                images = [entry for entry in batch if isinstance(entry, _PreparedImage)]
                errors = [entry for entry in batch if isinstance(entry, UnreadableImage)]
                yield from self._predict_batch(images)
                yield from errors

    def predict(
        self,
        records: Sequence[ImageRecord],
        context: DistContext = SINGLE_PROCESS,
        threads: int = 0,
        batch_size: int = BATCH_SIZE,
        quiet: bool = False,
    ) -> list[Detections]:
        """Predicts a dataset's images, divided among the processes, and shows progress.

        All processes of the `context` call it with the same records; `threads` and `batch_size` are
        those of each process.

        Returns:
            One `Detections` per record, in the order of the records, in every process.

        Raises:
            InputError: an image cannot be read by one of the processes; raised in all of them.
        """
        share, found = records[context.rank :: context.world_size], []
        with (
            context.propagate_errors(),
            Progress(
                len(share), "predicting", "images", quiet=quiet or not context.is_main_process
            ) as progress,
        ):
            for prediction in self.stream([record.path for record in share], batch_size, threads):
                if isinstance(prediction, UnreadableImage):
                    raise InputError(prediction.reason)
                found.append(replace(prediction.detections, image_id=share[prediction.index].id))
                progress.update()
        gathered = {one.image_id: one for part in context.all_gather(found) for one in part}
        return [gathered[record.id] for record in records]

    def _predict_batch(self, batch: Sequence[_PreparedImage]) -> Iterator[Prediction]:
        """Predicts images of one size."""
        if not batch:
            return
        device = next(self.model.parameters()).device
        # The current CUDA device is a setting of each thread, and the caller may be a new thread.
        configure_device(device, self.train.precision)
        height, width = batch[0].pixels.shape[-2:]
        summary = f"batch size {len(batch)}, image size {width} x {height}"
        with convert_out_of_memory(lambda: summary), torch.inference_mode():
            multiple = cast(int, self.model.backbone.size_divisible)
            pixels, sizes = stack_images([item.pixels for item in batch], multiple)
            statistics = pixel_statistics(self.model.backbone)
            outputs = self.model(normalise_batch(pixels.to(device), sizes, statistics))
            found = select_detections(
                outputs,
                [item.name for item in batch],
                [item.size for item in batch],
                self.vocabulary,
            )
        for item, detections in zip(batch, found, strict=True):
            yield Prediction(item.index, item.size, detections)


def prepare_image(image: Image.Image, resize: v2.Transform, name: str) -> Tensor:
    """Resizes an upright RGB image to the model's input size, (3, h, w) uint8.

    Raises:
        InputError: the ratio of the sides is too large, so that the shorter one would vanish.
    """
    width, height = image.size
    if max(width, height) > MAX_SIZE * min(width, height):
        expected = f"sides of at most {MAX_SIZE} to 1"
        raise bad_field(name, "size", expected, f"{width} x {height} pixels")
    return resize(tv_tensors.Image(v2.functional.pil_to_tensor(image))).as_subclass(Tensor)


def prefetch_map(
    function: Callable[[Item], Result], items: Iterable[Item], threads: int, ahead: int = 0
) -> Iterator[Result]:
    """`map(function, items)`, computed ahead by threads (0: on request), with results in order.

    `ahead` is the maximum number of finished results beside those being computed.
    """
    if threads == 0:
        yield from map(function, items)
        return
    pool = ThreadPoolExecutor(threads, thread_name_prefix="reader")
    running: deque[Future[Result]] = deque()
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
    """Indices of the images, sorted by shape within every `SORT_WINDOW`."""
    for first in range(0, len(sources), SORT_WINDOW):
        window = range(first, min(first + SORT_WINDOW, len(sources)))
        found = prefetch_map(_shape_key, (sources[index] for index in window), threads, SORT_WINDOW)
        shapes = dict(zip(window, found, strict=True))
        yield from sorted(window, key=shapes.__getitem__)


def _shape_key(source: ImageInput) -> tuple[float, ...]:
    """Sort key that groups images which have one size after resizing.

    For files and PIL images this is the ratio of the sides, which alone determines the size after
    DETR's resize, followed by the sides.
    """
    if isinstance(source, Image.Image):
        width, height = source.size
    elif isinstance(source, (str, os.PathLike)):
        try:
            width, height = read_image_size(os.fspath(source))
        except InputError:
            # The error is reported when the image itself is read.
            return ()
    else:
        return tuple(getattr(source, "shape", ()))
    return width / max(height, 1), width, height


def _batch_key(item: _PreparedImage | UnreadableImage) -> tuple[int, ...]:
    return tuple(item.pixels.shape) if isinstance(item, _PreparedImage) else ()
