import json
from collections import Counter

import numpy as np
import pytest
import torch

from pipeline.utils.errors import InputError
from student.config import LAST_BATCHES
from student.data.samplers import (
    DistributedBatchSampler,
    ExtraPool,
    epoch_batches,
    mixed_batches,
    padding_fraction,
    split_batch_size,
    steps_per_epoch,
)
from student.data.transforms import NUM_RAND, sample_geometric_params


def coco_sizes(count, seed=0):
    """Sizes as in COCO: a long side of 640, some images in portrait format."""
    random = np.random.default_rng(seed)
    short = random.choice([360, 426, 427, 480, 500, 640], count)
    sizes = np.stack([short, np.full(count, 640)], 1)
    portrait = random.random(count) < 0.3
    sizes[portrait] = sizes[portrait, ::-1]
    return sizes


@pytest.mark.parametrize(
    ("images", "batch", "steps"), [(0, 4, 1), (3, 4, 1), (4, 4, 1), (11, 4, 2)]
)
def test_steps_of_an_epoch(images, batch, steps):
    assert steps_per_epoch(images, batch) == steps


def test_fewer_images_than_a_batch_make_one_batch():
    (batch,) = epoch_batches(coco_sizes(3), 4, seed=0, epoch=0)
    assert sorted(batch) == [0, 1, 2]


@pytest.mark.parametrize("count", [64, 67, 1000, 2100])
def test_every_image_is_in_one_batch_but_the_last_ones(count):
    sizes = coco_sizes(count)
    left_out = []
    for epoch in range(3):
        batches = epoch_batches(sizes, 8, seed=1, epoch=epoch)
        assert [len(batch) for batch in batches] == [8] * (count // 8)
        images = sorted(index for batch in batches for index in batch)
        assert len(set(images)) == len(images)
        left_out.append(set(range(count)) - set(images))
    assert all(len(images) == count % 8 for images in left_out)
    assert count % 8 == 0 or left_out[0] != left_out[1]


def test_batches_depend_on_seed_and_epoch_alone():
    sizes = coco_sizes(100)
    first = epoch_batches(sizes, 8, 1, 0)
    torch.rand(3)
    assert epoch_batches(sizes, 8, 1, 0) == first
    assert epoch_batches(sizes, 8, 1, 1) != first != epoch_batches(sizes, 8, 2, 0)


def test_images_of_one_size_stay_in_the_order_of_the_permutation():
    sizes = np.full((1000, 2), 128)
    found = [index for batch in epoch_batches(sizes, 4, 7, 2) for index in batch]
    mixed = coco_sizes(1000)
    others = [index for batch in epoch_batches(mixed, 4, 7, 2) for index in batch]
    assert found != others and sorted(found) == sorted(others)
    # A chunk of 64 batches has the same images, whatever their sizes are.
    assert [set(found[i : i + 256]) for i in range(0, 1000, 256)] == [
        set(others[i : i + 256]) for i in range(0, 1000, 256)
    ]


def test_large_and_small_batches_are_mixed_over_the_epoch():
    sizes = coco_sizes(4096)
    areas = [sizes[batch].prod(1).mean() for batch in epoch_batches(sizes, 16, 0, 0)]
    quarters = np.array_split(np.array(areas), 16)
    means = np.array([quarter.mean() for quarter in quarters])
    assert means.std() < np.std(areas) / 2


def test_padding_fraction():
    sizes = np.array([[10, 20], [20, 10], [20, 20]])
    assert padding_fraction(sizes, [[0], [1], [2]]) == 0
    assert padding_fraction(sizes, [[0, 1]]) == pytest.approx(0.5)
    assert padding_fraction(sizes, [[0, 1], [2]]) == pytest.approx(1 - 800 / 1200)


def padding_of_grouped_and_random(sizes, batch):
    order = np.random.default_rng(0).permutation(len(sizes))
    random = [order[i : i + batch] for i in range(0, len(sizes) - batch + 1, batch)]
    return padding_fraction(sizes, epoch_batches(sizes, batch, 0, 0)), padding_fraction(
        sizes, random
    )


@pytest.mark.parametrize("batch", [2, 4, 16])
@pytest.mark.parametrize("augmented", [False, True])
def test_grouping_needs_less_than_half_the_padding(batch, augmented):
    sizes = coco_sizes(4000)
    if augmented:
        rand = np.random.default_rng(1).random((len(sizes), NUM_RAND))
        sizes = sample_geometric_params(sizes, rand).sizes
    grouped, random = padding_of_grouped_and_random(sizes, batch)
    assert grouped < random / 2


def test_grouping_of_hico_det_needs_less_than_half_the_padding(hico_det_files):
    images = json.loads((hico_det_files / "test_hico.json").read_text())
    sizes = np.array([(image["height"], image["width"]) for image in images])
    rand = np.random.default_rng(1).random((len(sizes), NUM_RAND))
    grouped, random = padding_of_grouped_and_random(sample_geometric_params(sizes, rand).sizes, 16)
    assert grouped < random / 2


@pytest.mark.parametrize(
    ("num_images", "batch_size", "steps"), [(50, 8, 7), (48, 8, 6), (5, 8, 1), (9, 8, 2), (8, 8, 1)]
)
def test_the_last_batch_is_completed_with_other_images(num_images, batch_size, steps):
    sizes = coco_sizes(num_images)
    batches = epoch_batches(sizes, batch_size, 5, 1, last_batch="fill")
    assert len(batches) == steps == steps_per_epoch(num_images, batch_size, "fill")
    assert {len(batch) for batch in batches} == {min(batch_size, num_images)}
    counts = np.bincount(np.concatenate(batches), minlength=num_images)
    assert counts.min() == 1 and counts.sum() == steps * min(batch_size, num_images)
    assert counts.max() <= 2


@pytest.mark.parametrize("world_size", [2, 3, 4])
@pytest.mark.parametrize(("count", "batch"), [(100, 8), (5, 8)])
def test_processes_share_the_batches_of_one(world_size, count, batch):
    sizes = coco_sizes(count)
    samplers = [
        DistributedBatchSampler(lambda epoch: sizes + epoch, count, 2, batch, 3, rank, world_size)
        for rank in range(world_size)
    ]
    whole = list(DistributedBatchSampler(lambda epoch: sizes + epoch, count, 2, batch, 3))
    shares = [list(one) for one in samplers]
    for step, (keys, pad_size) in enumerate(whole):
        parts = [share[step][0] for share in shares]
        assert sorted(key for part in parts for key in part) == sorted(keys)
        lengths = [len(part) for part in parts]
        assert max(lengths) - min(lengths) <= 1
        # All processes pad to the same size, whichever has the largest image.
        images = [index for _, index in keys]
        assert pad_size == tuple((sizes[images] + keys[0][0]).max(0))
        assert [share[step][1] for share in shares] == [pad_size] * world_size


def make_sampler(**changes):
    sizes = coco_sizes(50)
    return DistributedBatchSampler(lambda epoch: sizes + epoch, 50, 3, 8, seed=5, **changes)


def test_sampler_yields_the_batches_of_all_epochs():
    one = make_sampler(rank=1, world_size=2)
    expected = [
        [(epoch, index) for index in batch[1::2]]
        for epoch in range(3)
        for batch in epoch_batches(coco_sizes(50) + epoch, 8, 5, epoch)
    ]
    assert [keys for keys, _ in one] == expected and len(one) == len(expected) == 18


@pytest.mark.parametrize("last_batch", LAST_BATCHES)
@pytest.mark.parametrize("step", [0, 1, 5, 6, 7, 13, 17, 18])
def test_sampler_resumes_at_any_step(step, last_batch):
    whole, rest = make_sampler(last_batch=last_batch), make_sampler(last_batch=last_batch)
    rest.first_step = step
    assert list(rest) == list(whole)[step:] and len(rest) == len(whole) - step


@pytest.mark.parametrize("step", [0, 1, 6, 8, 17])
def test_sampler_with_a_pool_resumes_at_any_step(step):
    whole, rest = make_sampler(pool=extra_pool(17, 3, 50)), make_sampler(pool=extra_pool(17, 3, 50))
    rest.first_step = step
    assert list(rest) == list(whole)[step:]


def test_processes_share_batches_with_a_pool():
    whole = make_sampler(pool=extra_pool(17, 3, 50))
    parts = [make_sampler(pool=extra_pool(17, 3, 50), rank=rank, world_size=2) for rank in range(2)]
    for (keys, pad_size), *shares in zip(whole, *parts, strict=True):
        assert [size for _, size in shares] == [pad_size] * 2
        first, second = (part for part, _ in shares)
        assert keys[::2] == first and keys[1::2] == second
        # Both processes have images of the pool.
        assert all(any(index >= 50 for _, index in part) for part in (first, second))


def random_sizes(count, seed):
    return np.random.default_rng(seed).integers(200, 800, (count, 2))


def extra_pool(count, per_step, first):
    sizes = random_sizes(count, 5)
    return ExtraPool(lambda pass_index: sizes + pass_index, count, first, per_step)


@pytest.mark.parametrize(
    ("batch", "main", "extra", "ratio", "expected"),
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
def test_split_batch_size(batch, main, extra, ratio, expected):
    assert split_batch_size(batch, main, extra, ratio) == expected


def test_a_batch_of_one_image_cannot_be_split():
    with pytest.raises(InputError, match=r"batch_size: expected at least 2 .* found 1"):
        split_batch_size(1, 10, 10, None)


@pytest.mark.parametrize("last_batch", LAST_BATCHES)
@pytest.mark.parametrize(
    ("num_main", "num_pool", "from_main", "from_pool"),
    [(50, 17, 8, 3), (5, 40, 8, 8), (900, 7, 4, 12)],
)
def test_mixed_batches_add_images_of_the_pool_pass_after_pass(
    num_main, num_pool, from_main, from_pool, last_batch
):
    sizes, pool = random_sizes(num_main, 1), extra_pool(num_pool, from_pool, num_main)
    seen = []
    for epoch in range(3):
        batches, pad_sizes = mixed_batches(sizes + epoch, pool, from_main, 3, epoch, last_batch)
        alone = epoch_batches(sizes + epoch, from_main, 3, epoch, last_batch)
        main = [[index for _, index in batch if index < num_main] for batch in batches]
        assert main == alone
        for batch, pad_size in zip(batches, pad_sizes, strict=True):
            assert len(batch) == min(from_main, num_main) + from_pool
            assert [index >= num_main for _, index in batch] == sorted(
                index >= num_main for _, index in batch
            )
            assert all(number == epoch for number, index in batch if index < num_main)
            sides = [
                (sizes + epoch)[index] if index < num_main else pool.sizes(number)[index - num_main]
                for number, index in batch
            ]
            assert pad_size == tuple(np.max(sides, 0))
            seen += [key for key in batch if key[1] >= num_main]
    # Every pass has every image once; only the last pass may be incomplete.
    passes = Counter(number for number, _ in seen)
    assert len(set(seen)) == len(seen) == sum(passes.values())
    assert all(passes[number] == num_pool for number in range(max(passes)))


def test_mixed_batches_depend_on_the_arguments_alone():
    sizes, pool = random_sizes(40, 1), extra_pool(30, 4, 40)
    first = mixed_batches(sizes, pool, 4, 3, 1, "drop")
    assert first == mixed_batches(sizes, pool, 4, 3, 1, "drop")
    assert first != mixed_batches(sizes, pool, 4, 4, 1, "drop")


def test_mixed_batches_group_images_of_both_kinds_by_size():
    sizes, pool = random_sizes(2000, 1), extra_pool(2000, 8, 2000)
    batches, pad_sizes = mixed_batches(sizes, pool, 8, 0, 0, "drop")
    padded = sum(len(batch) * height * width
                 for batch, (height, width) in zip(batches, pad_sizes, strict=True))  # fmt: skip
    whole = 16 * len(batches) * 800 * 800
    filled = sum(
        float((sizes if index < 2000 else pool.sizes(number))[index % 2000].prod())
        for batch in batches
        for number, index in batch
    )
    # Random batches are padded to almost 800 x 800.
    assert padded < 0.75 * whole and filled < padded
