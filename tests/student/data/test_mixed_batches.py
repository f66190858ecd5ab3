from collections import Counter

import numpy as np
import pytest

from pipeline.utils.errors import InputError
from student.config import LAST_BATCHES
from student.data.samplers import ExtraPool, epoch_batches, mixed_batches, split_batch_size


def made_up_sizes(count, seed):
    random = np.random.default_rng(seed)
    return random.integers(200, 800, (count, 2))


def pool(count, per_step, first):
    sizes = made_up_sizes(count, 5)
    return ExtraPool(lambda number: sizes + number, count, first, per_step)


@pytest.mark.parametrize(
    ("batch", "main", "extra", "share", "found"),
    [
        (16, 300, 100, None, (12, 4)),
        (32, 300, 2000, None, (4, 28)),
        (16, 100_000, 1, None, (15, 1)),
        (16, 1, 100_000, None, (1, 15)),
        (16, 300, 2000, 0.5, (8, 8)),
        (10, 300, 2000, 0.26, (7, 3)),
        (2, 5, 5, 0.01, (1, 1)),
        (2, 5, 5, 0.99, (1, 1)),
    ],
)
def test_shares_of_a_step(batch, main, extra, share, found):
    assert split_batch_size(batch, main, extra, share) == found


def test_a_step_of_one_image_has_no_place_for_two_sources():
    with pytest.raises(InputError, match=r"batch_size: expected at least 2 .* found 1"):
        split_batch_size(1, 10, 10, None)


@pytest.mark.parametrize("last_batch", LAST_BATCHES)
@pytest.mark.parametrize(
    ("num_main", "num_pool", "own", "guests"), [(50, 17, 8, 3), (5, 40, 8, 8), (900, 7, 4, 12)]
)
def test_every_step_has_its_own_and_the_pool_is_gone_through(
    num_main, num_pool, own, guests, last_batch
):
    sizes, others = made_up_sizes(num_main, 1), pool(num_pool, guests, num_main)
    seen = []
    for epoch in range(3):
        batches, frames = mixed_batches(sizes + epoch, others, own, 3, epoch, last_batch)
        alone = epoch_batches(sizes + epoch, own, 3, epoch, last_batch)
        main = [[index for _, index in batch if index < num_main] for batch in batches]
        assert main == alone
        for batch, frame in zip(batches, frames, strict=True):
            assert len(batch) == min(own, num_main) + guests
            assert [index >= num_main for _, index in batch] == sorted(
                index >= num_main for _, index in batch
            )
            assert all(number == epoch for number, index in batch if index < num_main)
            sides = [
                (sizes + epoch)[index]
                if index < num_main
                else others.sizes(number)[index - num_main]
                for number, index in batch
            ]
            assert frame == tuple(np.max(sides, 0))
            seen += [key for key in batch if key[1] >= num_main]
    # Pass after pass, every image once in each; only the last pass may be unfinished.
    passes = Counter(number for number, _ in seen)
    assert len(set(seen)) == len(seen) == sum(passes.values())
    assert all(passes[number] == num_pool for number in range(max(passes)))


def test_equal_arguments_give_equal_batches_and_other_seeds_others():
    sizes, others = made_up_sizes(40, 1), pool(30, 4, 40)
    first = mixed_batches(sizes, others, 4, 3, 1, "drop")
    assert first == mixed_batches(sizes, others, 4, 3, 1, "drop")
    assert first != mixed_batches(sizes, others, 4, 4, 1, "drop")


def test_images_of_like_size_meet():
    sizes, others = made_up_sizes(2000, 1), pool(2000, 8, 2000)
    batches, frames = mixed_batches(sizes, others, 8, 0, 0, "drop")
    padded = sum(len(batch) * height * width
                 for batch, (height, width) in zip(batches, frames, strict=True))  # fmt: skip
    whole = 16 * len(batches) * 800 * 800
    filled = sum(
        float((sizes if index < 2000 else others.sizes(number))[index % 2000].prod())
        for batch in batches
        for number, index in batch
    )
    # Batches drawn blindly are padded to almost 800 x 800.
    assert padded < 0.75 * whole and filled < padded
