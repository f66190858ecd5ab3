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

from pipeline.images import read_image, read_image_size
from pipeline.splits import Split
from pipeline.types import Annotation, ImageRecord
from pipeline.utils.progress import track
from pipeline.vocabulary import Vocabulary
from student.config import TargetConfig
from student.data.few_shot import FewShotRows
from student.data.samplers import PadSize, SampleKey
from student.data.targets import Targets, build_targets
from student.data.transforms import NUM_RAND, Augmentation, normalise
from student.models.padding import Size, padding_mask, shared_zeros, stack_images
from student.utils.seeding import derive_seed
from teacher_cache.reader.cache import TeacherCache
from teacher_cache.reader.format import TeacherOutputs

# Types and shapes of tensors by name.
TensorSpecs = dict[str, tuple[torch.dtype, tuple[int, ...]]]
# Every type of torch's may begin at a multiple of this many bytes.
ALIGNMENT = 16
BOX_FIELDS = ("human_boxes", "object_boxes", "detected_boxes")
MIN_BOX_SIDE = 1.0
# Files whose headers are read at once: on a network, waiting takes the time.
HEADER_THREADS = 16

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
    layout: TensorSpecs

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


def collate(
    samples: Sequence[Sample], multiple: int = 1, pad_size: Sequence[int] = (0, 0)
) -> Batch:
    """Samples of any sizes as one batch; see `student.models.padding.stack_images`."""
    image_ids, images, targets = zip(*samples, strict=True)
    pixels, sizes = stack_images(images, multiple, pad_size)
    tensors = vars(Targets.collate(targets))
    layout = {name: (value.dtype, tuple(value.shape)) for name, value in tensors.items()}
    buffer = shared_zeros((sum(map(_aligned_size, layout.values())),), pixels)
    for name, view in _views(buffer, layout).items():
        view.copy_(tensors[name])
    return Batch(image_ids, pixels, sizes, buffer, layout)


def _aligned_size(entry: tuple[torch.dtype, tuple[int, ...]]) -> int:
    """Bytes that a tensor takes in a buffer, where each begins at a multiple of `ALIGNMENT`."""
    dtype, shape = entry
    return -(-math.prod(shape) * dtype.itemsize // ALIGNMENT) * ALIGNMENT


def _views(buffer: Tensor, layout: TensorSpecs) -> dict[str, Tensor]:
    """The tensors that lie in a buffer."""
    views, start = {}, 0
    for name, (dtype, shape) in layout.items():
        size = math.prod(shape) * dtype.itemsize
        views[name] = buffer[start : start + size].view(dtype).view(shape)
        start += _aligned_size((dtype, shape))
    return views


class TrainingDataset(Dataset[Sample]):
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
        few_shot_rows: rows of labels, by image, that teach although the split hides them.
        dataset_index: 0 for the main dataset, whose images count as annotated, whatever their
            labels; images of others do where they have a seen label.
        name: what logs call the dataset.
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
        few_shot_rows: FewShotRows | None = None,
        dataset_index: int = 0,
        name: str = "",
    ) -> None:
        self.records, self.annotations, self.cache = records, annotations, cache
        self.split, self.vocabulary, self.config = split, vocabulary, config
        self.augmentation, self.seed = augmentation, seed
        self.embedding_dim, self.few_shot_rows, self.dataset_index = (
            embedding_dim,
            few_shot_rows or {},
            dataset_index,
        )
        self.name = name
        self._rand_by_epoch: dict[int, np.ndarray] = {}

    def __len__(self) -> int:
        return len(self.records)

    @cached_property
    def image_sizes(self) -> np.ndarray:
        """(N, 2) heights and widths of the images, from their files' headers."""
        paths = [record.path for record in self.records]
        with ThreadPoolExecutor(HEADER_THREADS) as pool:
            sizes = pool.map(read_image_size, paths)
            found = track(sizes, len(paths), "reading sizes", "images")
            return np.array([(height, width) for width, height in found])

    def sizes(self, epoch: int) -> np.ndarray:
        """(N, 2) heights and widths that the samples of an epoch will have."""
        return self.augmentation.sizes(self.image_sizes, self._rand(epoch))

    def targets(self, index: int) -> Targets:
        """The untransformed targets of image `index`."""
        answers = self.cache[self.records[index].id]
        return build_targets(
            self.annotations[index],
            answers.pairs,
            answers.probabilities,
            self.split,
            self.vocabulary,
            self.config,
            self.cache.protocol,
            _pair_embeddings(answers, self.embedding_dim) if self.embedding_dim else None,
            self.few_shot_rows.get(index, ()),
            self.dataset_index,
        )

    def __getitem__(self, key: SampleKey) -> Sample:
        """The sample of `(epoch, index)`."""
        epoch, index = key
        image = TF.pil_to_tensor(read_image(self.records[index].path))
        transform = partial(self.augmentation, rand=self._rand(epoch)[index])
        # Colours draw from torch's generator; seeding it here, and putting it back, makes a
        # sample independent of the worker that prepares it and of what came before.
        with torch.random.fork_rng(devices=[]):
            # torch.manual_seed would seed GPUs too, which takes longer than changing a small image.
            torch.default_generator.manual_seed(derive_seed(self.seed, epoch, index))
            return make_sample(self.records[index].id, image, self.targets(index), transform)

    def _rand(self, epoch: int) -> np.ndarray:
        """The (N, `NUM_RAND`) numbers in [0, 1) that place the images of an epoch."""
        places = self._rand_by_epoch.get(epoch)
        if places is None:
            places = np.random.default_rng((self.seed, epoch)).random((len(self), NUM_RAND))
            # Steps are taken in one epoch while the next one's first samples are prepared.
            self._rand_by_epoch = {**dict(list(self._rand_by_epoch.items())[-1:]), epoch: places}
        return places


class ConcatTrainingDataset(Dataset[Sample]):
    """The images of several datasets, numbered one dataset after the other.

    Args:
        datasets: at least one.
    """

    def __init__(self, datasets: Sequence[TrainingDataset]) -> None:
        self.datasets = datasets
        self._ends = np.cumsum([len(dataset) for dataset in datasets]).tolist()

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, key: SampleKey) -> Sample:
        """The sample of `(epoch, index)`, the epoch being that of its dataset."""
        epoch, index = key
        place = bisect_right(self._ends, index)
        first = self._ends[place - 1] if place else 0
        return self.datasets[place][epoch, index - first]


def concat_sizes(datasets: Sequence[TrainingDataset], epoch: int) -> np.ndarray:
    """(N, 2) heights and widths of the samples of an epoch, one dataset after the other."""
    return np.concatenate([dataset.sizes(epoch) for dataset in datasets])


class TrainingBatches(Dataset[Batch]):
    """Whole batches: keys of samples with the size to pad to give a `Batch`.

    Args:
        images: gives the samples.
        multiple: heights and widths of the batches are multiples of this.
    """

    def __init__(self, images: Dataset[Sample], multiple: int) -> None:
        self.images, self.multiple = images, multiple

    def __getitem__(self, step: tuple[Sequence[SampleKey], PadSize]) -> Batch:
        """The batch of these samples, at least as large as `pad_size`."""
        keys, pad_size = step
        return collate([self.images[key] for key in keys], self.multiple, pad_size)


def make_sample(image_id: str, image: Tensor, targets: Targets, transform: Transform) -> Sample:
    """Transforms an image (3, h, w) uint8 with its targets and drops what was cut away.

    A pair leaves when one of its boxes has less than a pixel left; a detected box likewise.

    Args:
        targets: with boxes xyxy in pixels; those of the sample are cxcywh in [0, 1].
    """
    size = image.shape[-2:]
    boxes = {
        name: tv_tensors.BoundingBoxes(getattr(targets, name), format="XYXY", canvas_size=size)
        for name in BOX_FIELDS
    }
    changed = transform({"image": tv_tensors.Image(image), **boxes})
    pixels = changed["image"].as_subclass(Tensor)
    height, width = pixels.shape[-2:]
    relative = {name: _to_relative_cxcywh(changed[name], width, height) for name in BOX_FIELDS}
    # A verb without object carries an all-zero object box, which no crop can cut away.
    objectless = (targets.object_boxes == 0).all(1)
    relative["object_boxes"][objectless] = 0
    kept = _has_area(changed["human_boxes"])
    kept &= _has_area(changed["object_boxes"]) | objectless
    moved = replace(targets, **relative).select(kept, _has_area(changed["detected_boxes"]))
    return Sample(image_id, pixels, moved)


def _pair_embeddings(answers: TeacherOutputs, width: int) -> np.ndarray:
    """(P, D) embeddings of the pairs' regions; a shard without any region holds none."""
    if answers.embeddings is None:
        return np.zeros((len(answers.region_indices), width), dtype=np.float16)
    return answers.embeddings[answers.region_indices]


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
    return ((corners[:, 2:] - corners[:, :2]) >= MIN_BOX_SIDE).all(1)


def _to_relative_cxcywh(boxes: Tensor, width: int, height: int) -> Tensor:
    """(N, 4) xyxy pixels -> cxcywh in [0, 1]."""
    scale = torch.tensor([width, height, width, height], dtype=torch.float32)
    return box_convert(boxes.as_subclass(Tensor).float() / scale, "xyxy", "cxcywh")
