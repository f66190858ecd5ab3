"""Detections for any mix of pictures, one picture's trouble being no other's."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

from pipeline.errors import InputError, bad_field
from pipeline.types import Detections
from student.data import normalise
from student.geometry import LONGEST_SIDE
from student.inference import NUM_DETECTIONS, to_detections
from student.picture_sources import Source, as_picture, source_name
from student.reading_ahead import batches_of_one_kind, read_ahead
from student.ready import ReadyModel


@dataclass(frozen=True, eq=False)
class Looked:
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
class Unreadable:
    """A picture that cannot be read: its place in the list, and one line that says why."""

    index: int
    reason: str


@dataclass(frozen=True, eq=False)
class _Prepared:
    index: int
    name: str
    size: tuple[int, int]
    pixels: Tensor


def prepare(picture: Image.Image, resize: v2.Transform, name: str) -> Tensor:
    """An upright RGB picture as the detector takes it: resized, normalised, (3, h, w).

    Raises:
        InputError: too thin to be resized.
    """
    width, height = picture.size
    if max(width, height) > LONGEST_SIDE * min(width, height):
        expected = f"sides of at most {LONGEST_SIDE} to 1"
        raise bad_field(name, "size", expected, f"{width} x {height} pixels")
    return normalise(resize(tv_tensors.Image(v2.functional.pil_to_tensor(picture))))


def detect_stream(
    opened: ReadyModel,
    device: torch.device,
    sources: Sequence[Source],
    batch_size: int,
    threads: int = 0,
) -> Iterator[Looked | Unreadable]:
    """Looks at pictures of any sizes; answers come batch by batch, not in order.

    Only pictures that have one size after resizing share a batch, so that no picture's detections
    depend on which others there are.

    Args:
        opened: model and what belongs to it; the model is on `device`, in eval mode.
        sources: see `student.picture_sources.as_picture`.
        batch_size: most pictures at once.
        threads: that read pictures ahead.
    """

    def read(entry: tuple[int, Source]) -> _Prepared | Unreadable:
        index, source = entry
        name = source_name(source, index)
        try:
            picture = as_picture(source, name)
            pixels = prepare(picture, opened.resize, name)
        except InputError as error:
            return Unreadable(index, str(error))
        return _Prepared(index, name, picture.size, pixels)

    entries = read_ahead(read, enumerate(sources), threads)
    for batch in batches_of_one_kind(entries, _kind, batch_size):
        good = [item for item in batch if isinstance(item, _Prepared)]
        if good:
            yield from _look(opened, device, good)
        yield from (item for item in batch if isinstance(item, Unreadable))


def _kind(item: _Prepared | Unreadable) -> tuple[int, ...]:
    return tuple(item.pixels.shape) if isinstance(item, _Prepared) else ()


def _look(opened: ReadyModel, device: torch.device, batch: list[_Prepared]) -> Iterator[Looked]:
    with torch.inference_mode():
        outputs = opened.model([item.pixels.to(device) for item in batch])
        found = to_detections(
            outputs,
            [item.name for item in batch],
            [item.size for item in batch],
            opened.vocabulary,
            NUM_DETECTIONS,
        )
    for item, detections in zip(batch, found, strict=True):
        yield Looked(item.index, item.size, detections)
