"""Which images make a step: images of like size together, shared out among processes.

Every process computes the same batches of the whole run from seed and epoch and takes its share,
so that the number of processes changes nothing but who does the work.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache, partial

import numpy as np
import torch
from torch.utils.data import Sampler

LAST_BATCHES = ("drop", "fill")
# Epoch and image.
Key = tuple[int, int]
# Height and width.
Frame = tuple[int, int]
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
    generator = torch.Generator().manual_seed(mix(seed, epoch))
    order = torch.randperm(len(sizes), generator=generator).numpy()
    if last_batch == "fill" and len(order) > batch_size:
        order = np.concatenate([order, order[: -len(order) % batch_size]])
    order = order[: steps_per_epoch(len(sizes), batch_size, last_batch) * batch_size]
    run = GROUPED_BATCHES * batch_size
    batches: list[np.ndarray] = []
    for start in range(0, len(order), run):
        batches += _grouped(order[start : start + run], sizes, batch_size)
    return [batch.tolist() for batch in batches]


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


class StepSampler(Sampler[list[Key]]):
    """One process's share of every step of a run, as lists of `(epoch, index)`.

    It goes on from one epoch to the next, so that workers prepare the next epoch's first batches
    while the model is at the last ones of this.

    Args:
        sizes: gives the (N, 2) heights and widths of an epoch's images.
        num_images: N.
        epochs: of the run.
        batch_size, seed, last_batch: see `epoch_batches`.
        rank, world_size: which process of how many; image i of a batch goes to process
            i modulo `world_size`, so shares differ by one image at most.

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
    ) -> None:
        self.sizes, self.epochs = sizes, epochs
        self._batches = partial(
            epoch_batches, batch_size=batch_size, seed=seed, last_batch=last_batch
        )
        self._share = slice(rank, None, world_size)
        # Steps are taken in one epoch while the next one's first batches are prepared.
        self._epoch = lru_cache(maxsize=2)(self._draw_epoch)
        self.steps_per_epoch = steps_per_epoch(num_images, batch_size, last_batch)
        self.first_step = 0

    def __len__(self) -> int:
        return self.epochs * self.steps_per_epoch - self.first_step

    def __iter__(self) -> Iterator[list[Key]]:
        first_epoch, begun = divmod(self.first_step, self.steps_per_epoch)
        for epoch in range(first_epoch, self.epochs):
            for batch in self._epoch(epoch)[0][begun:]:
                yield [(epoch, index) for index in batch[self._share]]
            begun = 0

    def frame(self, step: int) -> Frame:
        """Largest height and width of the images of all processes in the step after `step`
        others, so that each pads its own as far as one process would."""
        epoch, place = divmod(step, self.steps_per_epoch)
        return self._epoch(epoch)[1][place]

    def _draw_epoch(self, epoch: int) -> tuple[list[list[int]], list[Frame]]:
        """The batches over all processes, and their frames."""
        sizes = self.sizes(epoch)
        batches = self._batches(sizes, epoch=epoch)
        frames = [sizes[batch].max(0).tolist() for batch in batches]
        return batches, [(height, width) for height, width in frames]
