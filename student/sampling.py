"""Which images make a step: images of like size together, shared out among processes.

Every process computes the same batches of the whole run from seed and epoch and takes its share,
so that the number of processes changes nothing but who does the work.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

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
    order = epoch_order(len(sizes), batch_size, seed, epoch, last_batch)
    run = GROUPED_BATCHES * batch_size
    batches: list[np.ndarray] = []
    for start in range(0, len(order), run):
        images = order[start : start + run]
        tiles = sorted(size_tiles(sizes[images], batch_size), key=np.min)
        batches += [images[np.sort(tile)] for tile in tiles]
    return [batch.tolist() for batch in batches]


def epoch_order(
    num_images: int, batch_size: int, seed: int, epoch: int, last_batch: str = "drop"
) -> np.ndarray:
    """The images of an epoch in the order of its permutation, whole batches of them; see
    `epoch_batches`."""
    generator = torch.Generator().manual_seed(mix(seed, epoch))
    order = torch.randperm(num_images, generator=generator).numpy()
    if last_batch == "fill" and len(order) > batch_size:
        order = np.concatenate([order, order[: -len(order) % batch_size]])
    return order[: steps_per_epoch(num_images, batch_size, last_batch) * batch_size]


def size_tiles(sizes: np.ndarray, batch_size: int) -> list[np.ndarray]:
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
