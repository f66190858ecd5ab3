"""Which images make a step: images of like size together, shared out among processes.

Every process computes the same batches of the whole run from seed and epoch and takes its share,
so that the number of processes changes nothing but who does the work.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch.utils.data import Sampler

# Batches that are sorted by size together. More of them waste less padding; fewer leave more to
# chance which images meet.
GROUPED_BATCHES = 64


def steps_per_epoch(num_images: int, batch_size: int) -> int:
    """Whole batches of an epoch; where there is none, the images make one smaller batch."""
    return num_images // batch_size or 1


def epoch_batches(
    sizes: np.ndarray,
    batch_size: int,
    seed: int,
    epoch: int,
    rank: int = 0,
    world_size: int = 1,
) -> list[list[int]]:
    """The batches of an epoch, as far as they concern one process; a pure function.

    A permutation of all images is cut into runs of `GROUPED_BATCHES` batches. Inside a run, images
    are sorted into strips of like shape and these by height, and the batches, now of like size,
    stand in the order in which the permutation comes to them. Images of one size stay in the
    order of the permutation. What is left over from whole batches is left out, other images in
    every epoch.

    Args:
        sizes: (N, 2) heights and widths of the images as the model will see them.
        batch_size: images of a batch, over all processes.
        seed, epoch: choose the permutation.
        rank, world_size: which process of how many; image i of a batch goes to process
            i modulo `world_size`, so shares differ by one image at most.

    Returns:
        For every step the image indices of this process.
    """
    generator = torch.Generator().manual_seed(mix(seed, epoch))
    order = torch.randperm(len(sizes), generator=generator).numpy()
    order = order[: steps_per_epoch(len(sizes), batch_size) * batch_size]
    run = GROUPED_BATCHES * batch_size
    batches: list[np.ndarray] = []
    for start in range(0, len(order), run):
        batches += _grouped(order[start : start + run], sizes, batch_size)
    return [batch[rank::world_size].tolist() for batch in batches]


def _grouped(images: np.ndarray, sizes: np.ndarray, batch_size: int) -> list[np.ndarray]:
    """Cuts a run of images into batches of like size (sort-tile packing, two dimensions)."""
    heights, widths = sizes[images].T
    # Positions in the run; every sort is stable, so that equals keep the order of the permutation.
    by_shape = np.argsort(widths / heights, kind="stable")
    num_batches = -(-len(images) // batch_size)
    strip = -(-num_batches // max(1, round(num_batches**0.5))) * batch_size
    places: list[np.ndarray] = []
    for start in range(0, len(images), strip):
        one = by_shape[start : start + strip]
        one = one[np.argsort(heights[one], kind="stable")]
        places += [one[at : at + batch_size] for at in range(0, len(one), batch_size)]
    return [images[np.sort(batch)] for batch in sorted(places, key=np.min)]


def padding_share(sizes: np.ndarray, batches: Sequence[Sequence[int]]) -> float:
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


def mix(*numbers: int) -> int:
    """One seed from several numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])


class BatchSampler(Sampler[list[tuple[int, int]]]):
    """The batches of one epoch for a `DataLoader`, as lists of `(epoch, index)`.

    Args:
        sizes: gives the (N, 2) heights and widths of an epoch's images.
        num_images: N.
        batch_size, seed, rank, world_size: see `epoch_batches`.
    """

    def __init__(
        self,
        sizes: Callable[[int], np.ndarray],
        num_images: int,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.sizes, self.num_images, self.batch_size, self.seed = (
            sizes,
            num_images,
            batch_size,
            seed,
        )
        self.rank, self.world_size = rank, world_size
        self.epoch, self.first_step = 0, 0

    def position(self, epoch: int, step: int) -> None:
        """The next iteration starts at this step of this epoch."""
        self.epoch, self.first_step = epoch, step

    def __len__(self) -> int:
        return steps_per_epoch(self.num_images, self.batch_size) - self.first_step

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        epoch = self.epoch
        batches = epoch_batches(
            self.sizes(epoch), self.batch_size, self.seed, epoch, self.rank, self.world_size
        )
        for batch in batches[self.first_step :]:
            yield [(epoch, index) for index in batch]
