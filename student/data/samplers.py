"""Batch sampling: batches of images of similar size, mixed with extra datasets, for all processes.

Every process computes the batches of the whole run from the seed and the epoch and takes its share
of every batch, so that batches do not depend on the number of processes. Images that extra datasets
contribute form one pool, from which every batch takes the same number.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch.utils.data import Sampler

from pipeline.utils.errors import InputError
from student.utils.seeding import derive_seed

# Epoch and image index.
SampleKey = tuple[int, int]
# Height and width in pixels.
PadSize = tuple[int, int]
# Number of batches within which images are grouped by size. More of them need less padding; fewer
# make the composition of batches more random. An epoch of 8 or more batches has at least 8 groups:
# otherwise the images of a small dataset would always have the same padding, which the published
# model's features depend on, and would be predicted worse without it.
GROUPED_BATCHES, MIN_GROUPS = 64, 8
# Separates the random stream of the pool's order from others with the same seed.
SEED_STREAM = 0x9001


def steps_per_epoch(num_images: int, batch_size: int, last_batch: str = "drop") -> int:
    """Number of batches of an epoch, at least 1: too few images for a batch make a smaller one."""
    whole, left = divmod(num_images, batch_size)
    return max(1, whole + (left > 0 and last_batch == "fill"))


def epoch_order(
    num_images: int, batch_size: int, seed: int, epoch: int, last_batch: str = "drop"
) -> np.ndarray:
    """The random permutation of an epoch, whose length is a multiple of the batch size unless there
    is only one batch; arguments as in `epoch_batches`."""
    order = _permutation(num_images, seed, epoch)
    if last_batch == "fill" and len(order) > batch_size:
        order = np.concatenate([order, order[: -len(order) % batch_size]])
    return order[: steps_per_epoch(num_images, batch_size, last_batch) * batch_size]


def _permutation(size: int, *seeds: int) -> np.ndarray:
    generator = torch.Generator().manual_seed(derive_seed(*seeds))
    return torch.randperm(size, generator=generator).numpy()


def group_by_size(sizes: np.ndarray, batch_size: int) -> list[np.ndarray]:
    """Groups images by size into batches, by sort-tile-recursive packing in two dimensions.

    Images are sorted by aspect ratio and cut into about as many strips as a strip has batches; each
    strip is sorted by height and cut into batches. Sorting by one of the two alone would leave the
    other one's differences as padding.

    Returns:
        Indices in the (N, 2) heights and widths of each batch's images, in rising order.
    """
    heights, widths = sizes.T
    # The sorts are stable, so that images of equal size keep their order.
    by_aspect = np.argsort(widths / heights, kind="stable")
    num_batches = -(-len(sizes) // batch_size)
    strip_size = -(-num_batches // max(1, round(num_batches**0.5))) * batch_size
    groups: list[np.ndarray] = []
    for start in range(0, len(sizes), strip_size):
        strip = by_aspect[start : start + strip_size]
        strip = strip[np.argsort(heights[strip], kind="stable")]
        groups += [
            np.sort(strip[row : row + batch_size]) for row in range(0, len(strip), batch_size)
        ]
    return groups


@dataclass(frozen=True, eq=False)
class ExtraPool:
    """The images of all extra datasets.

    The pool is iterated in passes, which are independent of the epochs of the main dataset; a
    pass plays the part of the epoch in the images' augmentation.

    Attributes:
        sizes: returns the (N, 2) heights and widths of the images in a pass.
        num_images: N.
        index_offset: index of the pool's first image among the images of all datasets.
        images_per_step: number of images in every batch.
    """

    sizes: Callable[[int], np.ndarray]
    num_images: int
    index_offset: int
    images_per_step: int

    def sample(self, first: int, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """A section, by start and length, of the endless sequence of permutations of the pool.

        Returns:
            - (count, 2) pass and image index among the images of all datasets;
            - (count, 2) heights and widths.
        """
        passes = range(first // self.num_images, (first + count - 1) // self.num_images + 1)
        keys, sizes = [], []
        for number in passes:
            order = _permutation(self.num_images, seed, SEED_STREAM, number)
            keys.append(np.column_stack([np.full_like(order, number), self.index_offset + order]))
            sizes.append(self.sizes(number)[order])
        start = first - passes[0] * self.num_images
        section = slice(start, start + count)
        return np.concatenate(keys)[section], np.concatenate(sizes)[section]


def split_batch_size(
    batch_size: int, num_main: int, num_extra: int, ratio: float | None
) -> tuple[int, int]:
    """Numbers of images of a batch from the main dataset and from the extra datasets.

    Args:
        batch_size: number of images of a batch.
        num_main, num_extra: numbers of images of the datasets.
        ratio: fraction of images from the extra datasets; None for their fraction of all images. A
            batch has at least one image of both kinds.

    Raises:
        InputError: the batch size is 1.
    """
    if batch_size < 2:
        raise InputError("batch_size: expected at least 2 with --extra-data, found 1")
    if ratio is None:
        ratio = num_extra / (num_main + num_extra)
    extra = min(max(1, round(ratio * batch_size)), batch_size - 1)
    return batch_size - extra, extra


def epoch_batches(
    sizes: np.ndarray,
    batch_size: int,
    seed: int,
    epoch: int,
    last_batch: str = "drop",
    pool: ExtraPool | None = None,
) -> tuple[list[list[SampleKey]], list[PadSize]]:
    """The batches of an epoch, a pure function of the arguments.

    A random permutation of all images is cut into chunks of up to `GROUPED_BATCHES` batches. In
    each the images are grouped by size, and the groups are ordered by the position of their first
    image in the permutation, so that their order is random. Images of equal size keep the order of
    the permutation. The pool's images of a chunk are grouped in the same way, and groups of the
    same rank form a batch, so that both parts of a batch have similar sizes.

    Args:
        sizes: (N, 2) heights and widths of the main dataset's images after augmentation.
        batch_size: number of images of a batch from the main dataset, over all processes.
        seed, epoch: seed of the permutation.
        last_batch: what happens to images that are left over from whole batches. "drop" leaves them
            out, different ones in every epoch; "fill" completes the batch with the first images of
            the permutation.
        pool: images of the extra datasets.

    Returns:
        - for every step the keys of its images, those of the pool last, with the pass in place of
          the epoch;
        - for every step the largest height and width of its images.
    """
    order = epoch_order(len(sizes), batch_size, seed, epoch, last_batch)
    steps = -(-len(order) // batch_size)
    parts = [(np.column_stack([np.full_like(order, epoch), order]), sizes[order], batch_size)]
    if pool is not None:
        count = pool.images_per_step
        parts.append((*pool.sample(epoch * steps * count, steps * count, seed), count))
    batches: list[list[SampleKey]] = []
    pad_sizes: list[PadSize] = []
    grouped = max(1, min(GROUPED_BATCHES, steps // MIN_GROUPS))
    for start in range(0, steps, grouped):
        chunks = []
        for keys, key_sizes, count in parts:
            rows = slice(start * count, (start + grouped) * count)
            groups = group_by_size(key_sizes[rows], count)
            chunks.append(
                [(group[0], keys[rows][group], key_sizes[rows][group]) for group in groups]
            )
        for batch in sorted(zip(*chunks, strict=True), key=lambda groups: groups[0][0]):
            keys = np.concatenate([group_keys for _, group_keys, _ in batch])
            batches.append([(number, index) for number, index in keys.tolist()])
            height, width = np.concatenate([group_sizes for *_, group_sizes in batch]).max(0)
            pad_sizes.append((int(height), int(width)))
    return batches, pad_sizes


class DistributedBatchSampler(Sampler[tuple[list[SampleKey], PadSize]]):
    """One process's share of every batch of a run.

    It yields a list of `(epoch, index)` and the largest height and width of the batch's images in
    all processes, so that padding, and with it the published model's outputs, does not depend on
    the number of processes. Iteration does not stop at the end of an epoch, so that workers can
    prepare the first batches of the next one in advance.

    Args:
        sizes: returns the (N, 2) heights and widths of the images in an epoch.
        num_images: N.
        epochs: number of epochs of the run.
        batch_size, seed, last_batch, pool: see `epoch_batches`.
        rank, world_size: index and number of processes. Image i of a batch goes to process
            i modulo `world_size`, so that shares differ by one image at most.

    Attributes:
        first_step: step at which the next iteration starts.
        steps_per_epoch: number of batches of an epoch.
    """

    def __init__(
        self,
        sizes: Callable[[int], np.ndarray],
        num_images: int,
        epochs: int,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        last_batch: str = "drop",
        pool: ExtraPool | None = None,
    ) -> None:
        self.epochs, self._share = epochs, slice(rank, None, world_size)

        # Two epochs, because the next one's first batches are prepared during the last steps of
        # this one.
        @lru_cache(maxsize=2)
        def batches_of(epoch: int) -> tuple[list[list[SampleKey]], list[PadSize]]:
            return epoch_batches(sizes(epoch), batch_size, seed, epoch, last_batch, pool)

        self._batches_of = batches_of
        self.steps_per_epoch = steps_per_epoch(num_images, batch_size, last_batch)
        self.first_step = 0

    def __len__(self) -> int:
        return self.epochs * self.steps_per_epoch - self.first_step

    def __iter__(self) -> Iterator[tuple[list[SampleKey], PadSize]]:
        first_epoch, steps_done = divmod(self.first_step, self.steps_per_epoch)
        for epoch in range(first_epoch, self.epochs):
            for batch, pad_size in list(zip(*self._batches_of(epoch), strict=True))[steps_done:]:
                yield batch[self._share], pad_size
            steps_done = 0

    def max_pad_size(self) -> PadSize:
        """Largest height and width of the images of the epoch that `first_step` belongs to."""
        epoch = min(self.first_step // self.steps_per_epoch, self.epochs - 1)
        heights, widths = zip(*self._batches_of(epoch)[1], strict=True)
        return max(heights), max(widths)
