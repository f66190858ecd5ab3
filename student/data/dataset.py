"""Images and targets as the training step wants them."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors
from torchvision.ops import box_convert
from torchvision.transforms.v2 import functional as TF

from pipeline.images import image_size, read_image
from pipeline.splits import Split
from pipeline.types import Annotation, ImageRecord
from pipeline.utils.progress import track
from pipeline.vocabulary import Vocabulary
from student.config import TargetConfig
from student.data.few_shot import Shown
from student.data.samplers import Frame, Key
from student.data.targets import Targets, image_targets
from student.data.transforms import NUM_DRAWS, Augmentation, normalise
from student.models.padding import Size, padding_mask, stack_images, zeros_to_hand_over
from student.utils.seeding import mix
from teacher_cache.reader.cache import TeacherCache
from teacher_cache.reader.format import ImageAnswers

# Types and shapes of tensors by name.
Layout = dict[str, tuple[torch.dtype, tuple[int, ...]]]
# Every type of torch's may begin at a multiple of this many bytes.
ALIGNMENT = 16
BOXES = ("human_boxes", "object_boxes", "detected_boxes")
SMALLEST_SIDE = 1.0
# Files whose headers are read at once: on a network, waiting takes the time.
OPEN_FILES = 16

Transform = Callable[[dict[str, Tensor]], dict[str, Tensor]]


class Sample(NamedTuple):
    """One training image: its file name, (3, h, w) uint8 pixels, and its targets."""

    image_id: str
    image: Tensor
    targets: Targets


@dataclass(frozen=True, eq=False)
class Batch:
    """B training images, in two tensors whatever the images hold: a worker hands every tensor over
    by a file descriptor of its own, and every tensor is a copy to a GPU of its own.

    Attributes:
        image_ids: file names.
        pixels: (B, 3, H, W) uint8, see `student.models.padding.stack_images`.
        sizes: heights and widths of the images.
        buffer: the tensors of their `Targets` as bytes, one behind the other.
        layout: types and shapes of these by name.
    """

    image_ids: tuple[str, ...]
    pixels: Tensor
    sizes: tuple[Size, ...]
    buffer: Tensor
    layout: Layout

    def __len__(self) -> int:
        return len(self.image_ids)

    @cached_property
    def targets(self) -> Targets:
        """The batched targets, on the batch's device."""
        return Targets(**_views(self.buffer, self.layout))

    def images(self, rows: slice = slice(None)) -> tuple[Tensor, Tensor | None]:
        """What the detector takes for these images of the batch; see `normalise_batch`."""
        return normalise_batch(self.pixels[rows], self.sizes[rows])

    def to(self, device: torch.device) -> Batch:
        """The same batch on another device; copies do not block."""
        pixels, buffer = (one.to(device, non_blocking=True) for one in (self.pixels, self.buffer))
        return replace(self, pixels=pixels, buffer=buffer)

    def pin_memory(self) -> Batch:
        """The same batch in page-locked memory, from which copies to a GPU need not wait."""
        return replace(self, pixels=self.pixels.pin_memory(), buffer=self.buffer.pin_memory())


def collate(samples: Sequence[Sample], multiple: int = 1, frame: Sequence[int] = (0, 0)) -> Batch:
    """Samples of any sizes as one batch; see `student.models.padding.stack_images`."""
    image_ids, images, targets = zip(*samples, strict=True)
    pixels, sizes = stack_images(images, multiple, frame)
    tensors = vars(Targets.batch(targets))
    layout = {name: (value.dtype, tuple(value.shape)) for name, value in tensors.items()}
    buffer = zeros_to_hand_over((sum(map(_span, layout.values())),), pixels)
    for name, view in _views(buffer, layout).items():
        view.copy_(tensors[name])
    return Batch(image_ids, pixels, sizes, buffer, layout)


def _span(entry: tuple[torch.dtype, tuple[int, ...]]) -> int:
    """Bytes that a tensor takes in a buffer, where each begins at a multiple of `ALIGNMENT`."""
    dtype, shape = entry
    return -(-math.prod(shape) * dtype.itemsize // ALIGNMENT) * ALIGNMENT


def _views(buffer: Tensor, layout: Layout) -> dict[str, Tensor]:
    """The tensors that lie in a buffer."""
    views, start = {}, 0
    for name, (dtype, shape) in layout.items():
        size = math.prod(shape) * dtype.itemsize
        views[name] = buffer[start : start + size].view(dtype).view(shape)
        start += _span((dtype, shape))
    return views


class TrainingImages(Dataset[Sample]):
    """Training images with their targets; equal `(seed, epoch, index)` give equal samples.

    Args:
        records: images, in the order of `annotations`.
        annotations: all labels.
        cache: the teacher's answers.
        split: what is unseen.
        vocabulary: of all of them.
        config: which pairs teach.
        augmentation: changes image and boxes together.
        seed: of the augmentation.
        embedding_dim: D of the teacher's embeddings that samples have of their regions; 0 for none.
        shown: rows of labels, by image, that teach although the split hides them.
        source: 0 for the main source, whose images count as annotated, whatever their labels;
            images of others do where they have a seen label.
        name: what logs call the source.
    """

    def __init__(
        self,
        records: Sequence[ImageRecord],
        annotations: Sequence[Annotation],
        cache: TeacherCache,
        split: Split,
        vocabulary: Vocabulary,
        config: TargetConfig,
        augmentation: Augmentation,
        seed: int,
        embedding_dim: int = 0,
        shown: Shown | None = None,
        source: int = 0,
        name: str = "",
    ) -> None:
        self.records, self.annotations, self.cache = records, annotations, cache
        self.split, self.vocabulary, self.config = split, vocabulary, config
        self.augmentation, self.seed = augmentation, seed
        self.embedding_dim, self.shown, self.source = embedding_dim, shown or {}, source
        self.name = name
        self._places: dict[int, np.ndarray] = {}

    def __len__(self) -> int:
        return len(self.records)

    @cached_property
    def image_sizes(self) -> np.ndarray:
        """(N, 2) heights and widths of the images, from their files' headers."""
        paths = [record.path for record in self.records]
        with ThreadPoolExecutor(OPEN_FILES) as pool:
            sizes = pool.map(image_size, paths)
            found = track(sizes, len(paths), "reading sizes", "images")
            return np.array([(height, width) for width, height in found])

    def sizes(self, epoch: int) -> np.ndarray:
        """(N, 2) heights and widths that the samples of an epoch will have."""
        return self.augmentation.sizes(self.image_sizes, self._draws(epoch))

    def targets(self, index: int) -> Targets:
        """The untransformed targets of image `index`."""
        answers = self.cache[self.records[index].id]
        return image_targets(
            self.annotations[index],
            answers.pairs,
            answers.probabilities,
            self.split,
            self.vocabulary,
            self.config,
            self.cache.protocol,
            _by_pair(answers, self.embedding_dim) if self.embedding_dim else None,
            self.shown.get(index, ()),
            self.source,
        )

    def __getitem__(self, key: Key) -> Sample:
        """The sample of `(epoch, index)`."""
        epoch, index = key
        image = TF.pil_to_tensor(read_image(self.records[index].path))
        transform = partial(self.augmentation, draws=self._draws(epoch)[index])
        # Colours draw from torch's generator; seeding it here, and putting it back, makes a
        # sample independent of the worker that prepares it and of what came before.
        with torch.random.fork_rng(devices=[]):
            # torch.manual_seed would seed GPUs too, which takes longer than changing a small image.
            torch.default_generator.manual_seed(mix(self.seed, epoch, index))
            return make_sample(self.records[index].id, image, self.targets(index), transform)

    def _draws(self, epoch: int) -> np.ndarray:
        """The (N, `NUM_DRAWS`) numbers in [0, 1) that place the images of an epoch."""
        places = self._places.get(epoch)
        if places is None:
            places = np.random.default_rng((self.seed, epoch)).random((len(self), NUM_DRAWS))
            # Steps are taken in one epoch while the next one's first samples are prepared.
            self._places = {**dict(list(self._places.items())[-1:]), epoch: places}
        return places


class ImagesOfSources(Dataset[Sample]):
    """The images of several sources, numbered one source after the other.

    Args:
        sources: at least one.
    """

    def __init__(self, sources: Sequence[TrainingImages]) -> None:
        self.sources = sources
        self._ends = np.cumsum([len(source) for source in sources]).tolist()

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, key: Key) -> Sample:
        """The sample of `(epoch, index)`, the epoch being that of its source."""
        epoch, index = key
        place = bisect_right(self._ends, index)
        first = self._ends[place - 1] if place else 0
        return self.sources[place][epoch, index - first]


def sizes_of_all(sources: Sequence[TrainingImages], epoch: int) -> np.ndarray:
    """(N, 2) heights and widths of the samples of an epoch, one source after the other."""
    return np.concatenate([source.sizes(epoch) for source in sources])


class TrainingBatches(Dataset[Batch]):
    """Whole batches: keys of samples with the batch's frame give a `Batch`.

    Args:
        images: gives the samples.
        multiple: heights and widths of the batches are multiples of this.
    """

    def __init__(self, images: Dataset[Sample], multiple: int) -> None:
        self.images, self.multiple = images, multiple

    def __getitem__(self, step: tuple[Sequence[Key], Frame]) -> Batch:
        """The batch of these samples, at least as large as the frame."""
        keys, frame = step
        return collate([self.images[key] for key in keys], self.multiple, frame)


def make_sample(image_id: str, image: Tensor, targets: Targets, transform: Transform) -> Sample:
    """Transforms an image (3, h, w) uint8 with its targets and drops what was cut away.

    A pair leaves when one of its boxes has less than a pixel left; a detected box likewise.

    Args:
        targets: with boxes xyxy in pixels; those of the sample are cxcywh in [0, 1].
    """
    size = image.shape[-2:]
    boxes = {
        name: tv_tensors.BoundingBoxes(getattr(targets, name), format="XYXY", canvas_size=size)
        for name in BOXES
    }
    changed = transform({"image": tv_tensors.Image(image), **boxes})
    pixels = changed["image"].as_subclass(Tensor)
    height, width = pixels.shape[-2:]
    relative = {name: _relative(changed[name], width, height) for name in BOXES}
    # A verb without object carries an all-zero object box, which no crop can cut away.
    objectless = (targets.object_boxes == 0).all(1)
    relative["object_boxes"][objectless] = 0
    kept = _has_area(changed["human_boxes"])
    kept &= _has_area(changed["object_boxes"]) | objectless
    moved = replace(targets, **relative).select(kept, _has_area(changed["detected_boxes"]))
    return Sample(image_id, pixels, moved)


def _by_pair(answers: ImageAnswers, width: int) -> np.ndarray:
    """(P, D) embeddings of the pairs' regions; a shard without any region holds none."""
    if answers.embeddings is None:
        return np.zeros((len(answers.regions), width), dtype=np.float16)
    return answers.embeddings[answers.regions]


def normalise_batch(pixels: Tensor, sizes: Sequence[Size]) -> tuple[Tensor, Tensor | None]:
    """What `student.models.padding.stack_images` made of uint8 images, as the detector takes it.

    Args:
        pixels: (B, 3, H, W) uint8, on the detector's device.
        sizes: the images' heights and widths.

    Returns:
        (B, 3, H, W) float32, normalised, 0 on padding, and the mask that is True there or None.
    """
    padding = padding_mask(sizes, pixels.shape[-2:], pixels.device)
    images = normalise(pixels)
    if padding is not None:
        images.masked_fill_(padding[:, None], 0)
    return images, padding


def _has_area(boxes: Tensor) -> Tensor:
    corners = boxes.as_subclass(Tensor)
    return ((corners[:, 2:] - corners[:, :2]) >= SMALLEST_SIDE).all(1)


def _relative(boxes: Tensor, width: int, height: int) -> Tensor:
    """(N, 4) xyxy pixels -> cxcywh in [0, 1]."""
    scale = torch.tensor([width, height, width, height], dtype=torch.float32)
    return box_convert(boxes.as_subclass(Tensor).float() / scale, "xyxy", "cxcywh")
