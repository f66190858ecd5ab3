"""Images of further sources in every step, beside those of the main one.

Every step has the same number of each. The main source's images come epoch by epoch and decide how
long an epoch is; the others form one pool that is gone through again and again, in a new order each
time, wherever epochs begin and end. All of it follows from seed and step.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from pipeline.errors import InputError
from student.sampling import GROUPED_BATCHES, Frame, Key, epoch_order, mix, size_tiles

# Keeps the pool's order apart from what else is drawn from the same seed.
PURPOSE = 0x9001


@dataclass(frozen=True, eq=False)
class Pool:
    """The images of all further sources together.

    Attributes:
        sizes: gives the (N, 2) heights and widths that the images have in a pass through the pool.
        num_images: N.
        first: number of the first of them among all images; they are the last ones.
        per_step: how many stand in a step.
    """

    sizes: Callable[[int], np.ndarray]
    num_images: int
    first: int
    per_step: int

    def drawn(self, first: int, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """The `count` images that come after `first` others: (count, 2) passes and images, counted
        within the pool, and (count, 2) their sizes."""
        passes = range(first // self.num_images, (first + count - 1) // self.num_images + 1)
        keys, sizes = [], []
        for number in passes:
            generator = torch.Generator().manual_seed(mix(seed, PURPOSE, number))
            order = torch.randperm(self.num_images, generator=generator).numpy()
            keys.append(np.column_stack([np.full(len(order), number), order]))
            sizes.append(self.sizes(number)[order])
        part = slice(first - passes[0] * self.num_images, None)
        return np.concatenate(keys)[part][:count], np.concatenate(sizes)[part][:count]


def shares(batch_size: int, num_main: int, num_extra: int, share: float | None) -> tuple[int, int]:
    """How many images of a step come from the main source, and how many from the others.

    Args:
        batch_size: images of a step.
        num_main, num_extra: images there are.
        share: wanted of the others; None for their share of all images. What comes nearest to it
            with at least one image of each is taken.

    Raises:
        InputError: a step has no place for both.
    """
    if batch_size < 2:
        raise InputError("batch_size: expected at least 2 for images of several sources, found 1")
    wanted = num_extra / (num_main + num_extra) if share is None else share
    extra = min(max(1, round(wanted * batch_size)), batch_size - 1)
    return batch_size - extra, extra


def mixed_batches(
    sizes: np.ndarray, pool: Pool, batch_size: int, seed: int, epoch: int, last_batch: str
) -> tuple[list[list[Key]], list[Frame]]:
    """The batches of an epoch with images of the pool; a pure function.

    The main source's batches are those of `student.sampling.epoch_batches`; each gets images from
    the pool that have, among those of the same run of batches, the place that its own have.

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
    before, count = epoch * steps * pool.per_step, steps * pool.per_step
    keys, pool_sizes = pool.drawn(before, count, seed)
    keys[:, 1] += pool.first
    batches, frames = [], []
    for start in range(0, steps, GROUPED_BATCHES):
        own = order[start * batch_size : (start + GROUPED_BATCHES) * batch_size]
        others = slice(start * pool.per_step, (start + GROUPED_BATCHES) * pool.per_step)
        tiles = zip(
            size_tiles(sizes[own], batch_size),
            size_tiles(pool_sizes[others], pool.per_step),
            strict=True,
        )
        for mine, theirs in sorted(tiles, key=lambda pair: int(pair[0].min())):
            images, guests = own[np.sort(mine)], keys[others][np.sort(theirs)]
            batches.append(
                [*((epoch, index) for index in images.tolist()), *map(tuple, guests.tolist())]
            )
            both = np.concatenate([sizes[images], pool_sizes[others][theirs]])
            height, width = both.max(0).tolist()
            frames.append((height, width))
    return batches, frames
