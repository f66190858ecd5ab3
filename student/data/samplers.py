"""Which images make a step: images of like size together, shared out among processes.

Every process computes the same batches of the whole run from seed and epoch and takes its share,
so that the number of processes changes nothing but who does the work.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch.utils.data import Sampler

from pipeline.utils.errors import InputError
from student.utils.seeding import derive_seed

# Epoch and image.
SampleKey = tuple[int, int]
# Height and width.
PadSize = tuple[int, int]
# Batches that are sorted by size together. More of them waste less padding; fewer leave more to
# chance which images meet.
GROUPED_BATCHES = 64


def steps_per_epoch(num_images: int, batch_size: int, last_batch: str = "drop") -> int:
    """Batches of an epoch; fewer images than a batch make a smaller one all the same.

    Args:
        num_images, batch_size: of the run.
        last_batch: see `epoch_batches`.
    """
    whole, left = divmod(num_images, batch_size)
    return max(1, whole + (left > 0 and last_batch == "fill"))


def epoch_batches(
    sizes: np.ndarray,
    batch_size: int,
    seed: int,
    epoch: int,
    last_batch: str = "drop",
) -> list[list[int]]:
    """The batches of an epoch; a pure function.

    A permutation of all images is cut into runs of `GROUPED_BATCHES` batches. Inside a run, images
    are sorted into strips of like shape and these by height, and the batches, now of like size,
    stand in the order in which the permutation comes to them. Images of one size stay in the
    order of the permutation.

    Args:
        sizes: (N, 2) heights and widths of the images as the model will see them.
        batch_size: images of a batch, over all processes.
        seed, epoch: choose the permutation.
        last_batch: what becomes of images that are left over from whole batches: "drop" leaves
            them out, other images in every epoch; "fill" makes them a batch with images from the
            permutation's beginning.

    Returns:
        For every step the image indices.
    """
    order = epoch_order(len(sizes), batch_size, seed, epoch, last_batch)
    run = GROUPED_BATCHES * batch_size
    batches: list[np.ndarray] = []
    for start in range(0, len(order), run):
        images = order[start : start + run]
        tiles = sorted(group_by_size(sizes[images], batch_size), key=np.min)
        batches += [images[np.sort(tile)] for tile in tiles]
    return [batch.tolist() for batch in batches]


def epoch_order(
    num_images: int, batch_size: int, seed: int, epoch: int, last_batch: str = "drop"
) -> np.ndarray:
    """The images of an epoch in the order of its permutation, whole batches of them; see
    `epoch_batches`."""
    generator = torch.Generator().manual_seed(derive_seed(seed, epoch))
    order = torch.randperm(num_images, generator=generator).numpy()
    if last_batch == "fill" and len(order) > batch_size:
        order = np.concatenate([order, order[: -len(order) % batch_size]])
    return order[: steps_per_epoch(num_images, batch_size, last_batch) * batch_size]


def group_by_size(sizes: np.ndarray, batch_size: int) -> list[np.ndarray]:
    """Cuts a run of images into batches of like size (sort-tile packing, two dimensions).

    Args:
        sizes: (N, 2) heights and widths.
        batch_size: images of a batch.

    Returns:
        Positions of each batch's images, batches of like size one after the other.
    """
    heights, widths = sizes.T
    # Positions in the run; every sort is stable, so that equals keep the order of the permutation.
    by_shape = np.argsort(widths / heights, kind="stable")
    num_batches = -(-len(sizes) // batch_size)
    strip = -(-num_batches // max(1, round(num_batches**0.5))) * batch_size
    places: list[np.ndarray] = []
    for start in range(0, len(sizes), strip):
        one = by_shape[start : start + strip]
        one = one[np.argsort(heights[one], kind="stable")]
        places += [one[at : at + batch_size] for at in range(0, len(one), batch_size)]
    return places


def padding_fraction(sizes: np.ndarray, batches: Sequence[Sequence[int]]) -> float:
    """The share of padding in the pixels of these batches.

    Args:
        sizes: (N, 2) heights and widths of the images.
        batches: image indices of every batch.
    """
    filled = padded = 0
    for batch in batches:
        heights, widths = sizes[list(batch)].T.astype(np.int64)
        filled += int((heights * widths).sum())
        padded += len(batch) * int(heights.max()) * int(widths.max())
    return 1 - filled / padded


# Keeps the pool's order apart from what else is drawn from the same seed.
SEED_STREAM = 0x9001


@dataclass(frozen=True, eq=False)
class ExtraPool:
    """The images of all further sources together.

    Attributes:
        sizes: gives the (N, 2) heights and widths that the images have in a pass through the pool.
        num_images: N.
        index_offset: number of the first of them among all images; they are the last ones.
        images_per_step: how many stand in a step.
    """

    sizes: Callable[[int], np.ndarray]
    num_images: int
    index_offset: int
    images_per_step: int

    def sample(self, first: int, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """The `count` images that come after `first` others: (count, 2) passes and images, counted
        within the pool, and (count, 2) their sizes."""
        passes = range(first // self.num_images, (first + count - 1) // self.num_images + 1)
        keys, sizes = [], []
        for number in passes:
            generator = torch.Generator().manual_seed(derive_seed(seed, SEED_STREAM, number))
            order = torch.randperm(self.num_images, generator=generator).numpy()
            keys.append(np.column_stack([np.full(len(order), number), order]))
            sizes.append(self.sizes(number)[order])
        part = slice(first - passes[0] * self.num_images, None)
        return np.concatenate(keys)[part][:count], np.concatenate(sizes)[part][:count]


def split_batch_size(
    batch_size: int, num_main: int, num_extra: int, ratio: float | None
) -> tuple[int, int]:
    """How many images of a step come from the main source, and how many from the others.

    Args:
        batch_size: images of a step.
        num_main, num_extra: images there are.
        ratio: wanted share of the others; None for their share of all images. What comes nearest to
            it with at least one image of each is taken.

    Raises:
        InputError: a step has no place for both.
    """
    if batch_size < 2:
        raise InputError("batch_size: expected at least 2 for images of several sources, found 1")
    wanted = num_extra / (num_main + num_extra) if ratio is None else ratio
    extra = min(max(1, round(wanted * batch_size)), batch_size - 1)
    return batch_size - extra, extra


def mixed_batches(
    sizes: np.ndarray, pool: ExtraPool, batch_size: int, seed: int, epoch: int, last_batch: str
) -> tuple[list[list[SampleKey]], list[PadSize]]:
    """The batches of an epoch with images of the pool; a pure function.

    The main source's batches are those of `epoch_batches`; each gets images from the pool that
    have, among those of the same run of batches, the place that its own have.

    Args:
        sizes: (N, 2) of the main source's images in this epoch.
        pool: the others.
        batch_size: images of a step that come from the main source.
        seed, epoch, last_batch: see `epoch_batches`.

    Returns:
        For every step its images, those of the pool last and with their pass in the epoch's place,
        and the largest height and width among them.
    """
    order = epoch_order(len(sizes), batch_size, seed, epoch, last_batch)
    steps = -(-len(order) // batch_size)
    before, count = epoch * steps * pool.images_per_step, steps * pool.images_per_step
    keys, pool_sizes = pool.sample(before, count, seed)
    keys[:, 1] += pool.index_offset
    batches, pad_sizes = [], []
    for start in range(0, steps, GROUPED_BATCHES):
        own = order[start * batch_size : (start + GROUPED_BATCHES) * batch_size]
        others = slice(
            start * pool.images_per_step, (start + GROUPED_BATCHES) * pool.images_per_step
        )
        tiles = zip(
            group_by_size(sizes[own], batch_size),
            group_by_size(pool_sizes[others], pool.images_per_step),
            strict=True,
        )
        for mine, theirs in sorted(tiles, key=lambda pair: int(pair[0].min())):
            images, guests = own[np.sort(mine)], keys[others][np.sort(theirs)]
            batches.append(
                [*((epoch, index) for index in images.tolist()), *map(tuple, guests.tolist())]
            )
            both = np.concatenate([sizes[images], pool_sizes[others][theirs]])
            height, width = both.max(0).tolist()
            pad_sizes.append((height, width))
    return batches, pad_sizes


class DistributedBatchSampler(Sampler[tuple[list[SampleKey], PadSize]]):
    """One process's share of every step of a run: a list of `(epoch, index)`, and the largest
    height and width of the step's images in all processes, so that each pads its own as far as one
    process would.

    It goes on from one epoch to the next, so that workers prepare the next epoch's first batches
    while the model is at the last ones of this.

    Args:
        sizes: gives the (N, 2) heights and widths of an epoch's images.
        num_images: N.
        epochs: of the run.
        batch_size, seed, last_batch: see `epoch_batches`.
        rank, world_size: which process of how many; image i of a batch goes to process
            i modulo `world_size`, so shares differ by one image at most.
        pool: images of further sources that stand in every step beside `batch_size` of these.

    Attributes:
        first_step: where the next iteration starts.
        steps_per_epoch: batches of an epoch.
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
        self.pool, self.seed = pool, seed
        self.sizes, self.epochs = sizes, epochs
        self._options: dict[str, Any] = {"batch_size": batch_size, "last_batch": last_batch}
        self._share = slice(rank, None, world_size)
        # Steps are taken in one epoch while the next one's first batches are prepared.
        self._epoch = lru_cache(maxsize=2)(self._build_epoch)
        self.steps_per_epoch = steps_per_epoch(num_images, batch_size, last_batch)
        self.first_step = 0

    def __len__(self) -> int:
        return self.epochs * self.steps_per_epoch - self.first_step

    def __iter__(self) -> Iterator[tuple[list[SampleKey], PadSize]]:
        first_epoch, begun = divmod(self.first_step, self.steps_per_epoch)
        for epoch in range(first_epoch, self.epochs):
            for batch, pad_size in list(zip(*self._epoch(epoch), strict=True))[begun:]:
                yield batch[self._share], pad_size
            begun = 0

    def max_pad_size(self) -> PadSize:
        """Largest height and width of any image of the epoch that comes next."""
        pad_sizes = self._epoch(min(self.first_step // self.steps_per_epoch, self.epochs - 1))[1]
        heights, widths = zip(*pad_sizes, strict=True)
        return max(heights), max(widths)

    def _build_epoch(self, epoch: int) -> tuple[list[list[SampleKey]], list[PadSize]]:
        """The batches over all processes, and the sizes to pad them to."""
        sizes = self.sizes(epoch)
        if self.pool is not None:
            return mixed_batches(sizes, self.pool, seed=self.seed, epoch=epoch, **self._options)
        batches = epoch_batches(sizes, seed=self.seed, epoch=epoch, **self._options)
        pad_sizes = [sizes[batch].max(0).tolist() for batch in batches]
        keys = [[(epoch, index) for index in batch] for batch in batches]
        return keys, [(height, width) for height, width in pad_sizes]
