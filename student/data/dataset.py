"""The training dataset: images with their targets, augmented, and their batches.

Samples depend on the seed, the epoch and the image alone, not on workers or processes.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors
from torchvision.ops import box_convert
from torchvision.transforms.v2 import functional as TF

from pipeline.images import read_image
from pipeline.splits import Split
from pipeline.types import Annotation, ImageRecord
from pipeline.vocabulary import Vocabulary
from student.config import TargetConfig
from student.data.few_shot import FewShotRows
from student.data.samplers import PadSize, SampleKey
from student.data.targets import Targets, build_targets
from student.data.transforms import NUM_RAND, Augmentation, normalise
from student.models.backbone import IMAGENET, PixelStatistics
from student.models.padding import Size, padding_mask, stack_images
from student.utils.seeding import derive_seed
from teacher_cache.reader.cache import TeacherCache

BOX_FIELDS = ("human_boxes", "object_boxes", "proposal_boxes")
# Pixels that a box must keep along each side after a crop.
MIN_BOX_SIDE = 1.0

Transform = Callable[[dict[str, Tensor]], dict[str, Tensor]]


class Sample(NamedTuple):
    """One training image.

    Attributes:
        image_id: file name.
        image: (3, h, w) uint8 RGB.
        targets: boxes cxcywh in [0, 1].
    """

    image_id: str
    image: Tensor
    targets: Targets


@dataclass(frozen=True, eq=False)
class Batch:
    """B training images.

    Attributes:
        image_ids: file names.
        pixels: (B, 3, H, W) uint8, see `student.models.padding.stack_images`.
        sizes: heights and widths of the images.
        targets: the batched targets.
    """

    image_ids: tuple[str, ...]
    pixels: Tensor
    sizes: tuple[Size, ...]
    targets: Targets

    def __len__(self) -> int:
        return len(self.image_ids)

    def images(
        self, rows: slice = slice(None), statistics: PixelStatistics = IMAGENET
    ) -> tuple[Tensor, Tensor | None]:
        """The detector's input for these images of the batch; see `normalise_batch`."""
        return normalise_batch(self.pixels[rows], self.sizes[rows], statistics)

    def map(self, function: Callable[[Tensor], Tensor]) -> Batch:
        """Applies a function to every tensor."""
        return replace(self, pixels=function(self.pixels), targets=self.targets.map(function))

    def to(self, device: torch.device) -> Batch:
        """Copies the batch to a device without waiting for the copy."""
        return self.map(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> Batch:
        """Copies the batch to pinned memory; the DataLoader calls this with `pin_memory=True`."""
        return self.map(Tensor.pin_memory)


def collate(
    samples: Sequence[Sample], multiple: int = 1, pad_size: Sequence[int] = (0, 0)
) -> Batch:
    """Collates samples of different sizes, at least one; the other arguments are those of
    `student.models.padding.stack_images`."""
    image_ids, images, targets = zip(*samples, strict=True)
    pixels, sizes = stack_images(images, multiple, pad_size)
    return Batch(image_ids, pixels, sizes, Targets.collate(targets))


class TrainingDataset(Dataset[Sample]):
    """Training images with their targets; equal `(seed, epoch, index)` give equal samples.

    Args:
        records: the images.
        image_sizes: (N, 2) heights and widths of their upright image files.
        annotations: their annotations in the same order, with the labels of unseen interactions.
        cache: the teacher cache of these images.
        split, vocabulary: of annotations and cache.
        config: which pairs are targets.
        augmentation, seed: transforms an image together with its boxes.
        embedding_dim: D, the size of the teacher's region embeddings; 0 for targets without them.
        few_shot_rows: rows of unseen labels, by image, that are kept as targets.
        dataset_index: 0 for the main dataset, whose images are all exhaustively annotated; images
            of extra datasets are only if they have a seen label.
        name: name of the dataset in logs.
    """

    def __init__(
        self,
        records: Sequence[ImageRecord],
        image_sizes: np.ndarray,
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
        self.records, self.image_sizes = records, image_sizes
        self.annotations, self.cache = annotations, cache
        self.split, self.vocabulary, self.config = split, vocabulary, config
        self.augmentation, self.seed = augmentation, seed
        self.embedding_dim, self.few_shot_rows = embedding_dim, few_shot_rows or {}
        self.dataset_index, self.name = dataset_index, name
        self._rand_by_epoch: dict[int, np.ndarray] = {}

    def __len__(self) -> int:
        return len(self.records)

    def sizes(self, epoch: int) -> np.ndarray:
        """(N, 2) heights and widths of the samples of an epoch, after augmentation."""
        return self.augmentation.sizes(self.image_sizes, self._rand(epoch))

    def targets(self, index: int) -> Targets:
        """Targets of image `index` before augmentation, boxes xyxy in pixels."""
        outputs, embeddings = self.cache[self.records[index].id], None
        if self.embedding_dim:
            # A shard whose images have no regions stores no embeddings.
            no_regions = np.zeros((0, self.embedding_dim), dtype=np.float16)
            regions = no_regions if outputs.embeddings is None else outputs.embeddings
            embeddings = regions[outputs.region_indices]
        return build_targets(
            self.annotations[index],
            outputs.pairs,
            outputs.probabilities,
            self.split,
            self.vocabulary,
            self.config,
            self.cache.protocol,
            embeddings,
            self.few_shot_rows.get(index, ()),
            self.dataset_index,
        )

    def __getitem__(self, key: SampleKey) -> Sample:
        """The sample of `(epoch, index)`."""
        epoch, index = key
        image = TF.pil_to_tensor(read_image(self.records[index].path))
        transform = partial(self.augmentation, rand=self._rand(epoch)[index])
        # Colour jitter draws from torch's generator. Seeding it for every sample makes the sample
        # independent of the worker and of the samples before it.
        with torch.random.fork_rng(devices=[]):
            # torch.manual_seed seeds GPUs too, which takes longer than augmenting a small image.
            torch.default_generator.manual_seed(derive_seed(self.seed, epoch, index))
            return make_sample(self.records[index].id, image, self.targets(index), transform)

    def _rand(self, epoch: int) -> np.ndarray:
        """(N, `NUM_RAND`) numbers in [0, 1) for the augmentation of an epoch."""
        rand = self._rand_by_epoch.get(epoch)
        if rand is None:
            rand = np.random.default_rng((self.seed, epoch)).random((len(self), NUM_RAND))
            # Two epochs are kept, because workers prepare the first samples of the next epoch
            # while the last ones of this epoch are still needed.
            self._rand_by_epoch = {**dict(list(self._rand_by_epoch.items())[-1:]), epoch: rand}
        return rand


class ConcatTrainingDataset(Dataset[Sample]):
    """Concatenation of training datasets, as `torch.utils.data.ConcatDataset`, but for keys that
    consist of epoch and index."""

    def __init__(self, datasets: Sequence[TrainingDataset]) -> None:
        self.datasets = datasets
        self._starts = np.cumsum([0, *map(len, datasets)]).tolist()

    def __getitem__(self, key: SampleKey) -> Sample:
        """The sample of `(epoch, index)`, where the index counts the images of all datasets."""
        epoch, index = key
        row = bisect_right(self._starts, index) - 1
        return self.datasets[row][epoch, index - self._starts[row]]


def concat_sizes(datasets: Sequence[TrainingDataset], epoch: int) -> np.ndarray:
    """(N, 2) heights and widths of the samples of an epoch, in the order of
    `ConcatTrainingDataset`."""
    return np.concatenate([dataset.sizes(epoch) for dataset in datasets])


class TrainingBatches(Dataset[Batch]):
    """Batches of samples by the elements of `student.data.samplers.DistributedBatchSampler`.

    The DataLoader's own batching would not pass the size to pad to on to `collate`. Heights and
    widths of the batches are multiples of `multiple`.
    """

    def __init__(self, images: Dataset[Sample], multiple: int) -> None:
        self.images, self.multiple = images, multiple

    def __getitem__(self, step: tuple[Sequence[SampleKey], PadSize]) -> Batch:
        """The batch with these samples, at least as large as the given height and width."""
        keys, pad_size = step
        return collate([self.images[key] for key in keys], self.multiple, pad_size)


def make_sample(image_id: str, image: Tensor, targets: Targets, transform: Transform) -> Sample:
    """Transforms a (3, h, w) uint8 image together with its targets, boxes xyxy in pixels.

    `transform` is called with the image and the boxes by name, as `tv_tensors`. Pairs of which a
    box has a side shorter than `MIN_BOX_SIDE` afterwards are removed, and so are such boxes of the
    proposal head.
    """
    size = image.shape[-2:]
    boxes = {
        name: tv_tensors.BoundingBoxes(getattr(targets, name), format="XYXY", canvas_size=size)
        for name in BOX_FIELDS
    }
    transformed = transform({"image": tv_tensors.Image(image), **boxes})
    pixels = transformed["image"].as_subclass(Tensor)
    height, width = pixels.shape[-2:]
    relative = {name: _to_relative_cxcywh(transformed[name], width, height) for name in BOX_FIELDS}
    # A verb without object has a zero object box, which the transform may move and which no crop
    # removes.
    objectless = (targets.object_boxes == 0).all(1)
    relative["object_boxes"][objectless] = 0
    kept = _is_large_enough(transformed["human_boxes"])
    kept &= _is_large_enough(transformed["object_boxes"]) | objectless
    kept_proposals = _is_large_enough(transformed["proposal_boxes"])
    return Sample(image_id, pixels, replace(targets, **relative).select(kept, kept_proposals))


def normalise_batch(
    pixels: Tensor, sizes: Sequence[Size], statistics: PixelStatistics = IMAGENET
) -> tuple[Tensor, Tensor | None]:
    """Converts (B, 3, H, W) uint8 images and their heights and widths to the detector's input.

    Returns:
        - (B, 3, H, W) float32, normalised, 0 on padding;
        - the (B, H, W) bool mask that is True on padding, or None without padding.
    """
    padding = padding_mask(sizes, pixels.shape[-2:], pixels.device)
    images = normalise(pixels, statistics)
    if padding is not None:
        images.masked_fill_(padding[:, None], 0)
    return images, padding


def _is_large_enough(boxes: Tensor) -> Tensor:
    corners = boxes.as_subclass(Tensor)
    return ((corners[:, 2:] - corners[:, :2]) >= MIN_BOX_SIDE).all(1)


def _to_relative_cxcywh(boxes: Tensor, width: int, height: int) -> Tensor:
    """Converts (N, 4) boxes from xyxy in pixels to cxcywh in [0, 1]."""
    scale = torch.tensor([width, height, width, height], dtype=torch.float32)
    return box_convert(boxes.as_subclass(Tensor).float() / scale, "xyxy", "cxcywh")
