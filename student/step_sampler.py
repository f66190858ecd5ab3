"""Each process's share of the steps of a run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any

import numpy as np
from torch.utils.data import Sampler

from student.mixing import Pool, mixed_batches
from student.sampling import Frame, Key, epoch_batches, steps_per_epoch


class StepSampler(Sampler[tuple[list[Key], Frame]]):
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
        pool: Pool | None = None,
    ) -> None:
        self.pool, self.seed = pool, seed
        self.sizes, self.epochs = sizes, epochs
        self._options: dict[str, Any] = {"batch_size": batch_size, "last_batch": last_batch}
        self._share = slice(rank, None, world_size)
        # Steps are taken in one epoch while the next one's first batches are prepared.
        self._epoch = lru_cache(maxsize=2)(self._draw_epoch)
        self.steps_per_epoch = steps_per_epoch(num_images, batch_size, last_batch)
        self.first_step = 0

    def __len__(self) -> int:
        return self.epochs * self.steps_per_epoch - self.first_step

    def __iter__(self) -> Iterator[tuple[list[Key], Frame]]:
        first_epoch, begun = divmod(self.first_step, self.steps_per_epoch)
        for epoch in range(first_epoch, self.epochs):
            for batch, frame in list(zip(*self._epoch(epoch), strict=True))[begun:]:
                yield batch[self._share], frame
            begun = 0

    def largest_frame(self) -> Frame:
        """Largest height and width of any image of the epoch that comes next."""
        frames = self._epoch(min(self.first_step // self.steps_per_epoch, self.epochs - 1))[1]
        heights, widths = zip(*frames, strict=True)
        return max(heights), max(widths)

    def _draw_epoch(self, epoch: int) -> tuple[list[list[Key]], list[Frame]]:
        """The batches over all processes, and their frames."""
        sizes = self.sizes(epoch)
        if self.pool is not None:
            return mixed_batches(sizes, self.pool, seed=self.seed, epoch=epoch, **self._options)
        batches = epoch_batches(sizes, seed=self.seed, epoch=epoch, **self._options)
        frames = [sizes[batch].max(0).tolist() for batch in batches]
        keys = [[(epoch, index) for index in batch] for batch in batches]
        return keys, [(height, width) for height, width in frames]
