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


def random_sizes(count, seed):
    return np.random.default_rng(seed).integers(200, 800, (count, 2))


def extra_pool(count, per_step, first):
    sizes = random_sizes(count, 5)
    return ExtraPool(lambda number: sizes + number, count, first, per_step)


def batches_of(*arguments, **options):
    """The images of each batch of an epoch, without the epoch."""
    keys, _ = epoch_batches(*arguments, **options)
    return [[index for _, index in batch] for batch in keys]


@pytest.mark.parametrize("count", [3, 64, 67, 1000, 2100])
def test_every_image_is_in_one_batch_but_the_last_ones(count):
    left_out = []
    for epoch in range(3):
        batches = batches_of(coco_sizes(count), 8, seed=1, epoch=epoch)
        assert len(batches) == steps_per_epoch(count, 8)
        assert [len(batch) for batch in batches] == [min(8, count)] * max(1, count // 8)
        images = {index for batch in batches for index in batch}
        assert len(images) == sum(map(len, batches))
        left_out.append(set(range(count)) - images)
    assert count % 8 == 0 or count < 8 or left_out[0] != left_out[1]


@pytest.mark.parametrize(("count", "steps"), [(50, 7), (48, 6), (5, 1), (9, 2)])
def test_the_last_batch_is_completed_with_other_images(count, steps):
    batches = batches_of(coco_sizes(count), 8, 5, 1, last_batch="fill")
    assert len(batches) == steps == steps_per_epoch(count, 8, "fill")
    assert {len(batch) for batch in batches} == {min(8, count)}
    counts = np.bincount(np.concatenate(batches), minlength=count)
    assert counts.min() == 1 and counts.max() <= 2


def test_batches_depend_on_seed_and_epoch_alone():
    sizes = coco_sizes(100)
    first = epoch_batches(sizes, 8, 1, 0)
    torch.rand(3)
    assert epoch_batches(sizes, 8, 1, 0) == first
    assert epoch_batches(sizes, 8, 1, 1) != first != epoch_batches(sizes, 8, 2, 0)


def test_images_of_one_size_stay_in_the_order_of_the_permutation():
    found = np.concatenate(batches_of(np.full((1000, 2), 128), 4, 7, 2))
    others = np.concatenate(batches_of(coco_sizes(1000), 4, 7, 2))
    assert not np.array_equal(found, others)
    # A chunk of 31 of the 250 batches has the same images, whatever their sizes are.
    for start in range(0, 1000, 124):
        chunk = slice(start, start + 124)
        assert np.array_equal(np.sort(found[chunk]), np.sort(others[chunk]))


def test_large_and_small_batches_are_mixed_over_the_epoch():
    sizes = coco_sizes(4096)
    areas = [sizes[batch].prod(1).mean() for batch in batches_of(sizes, 16, 0, 0)]
    means = np.array_split(np.array(areas), 16)
    assert np.std([part.mean() for part in means]) < np.std(areas) / 2


def padding_fraction(sizes, batches):
    """Fraction of the batches' pixels that is padding."""
    pixels = sum(sizes[batch].prod(1).sum() for batch in batches)
    return 1 - pixels / sum(len(batch) * sizes[batch].max(0).prod() for batch in batches)


@pytest.mark.parametrize("batch", [2, 16])
def test_grouping_of_hico_det_needs_less_than_half_the_padding(hico_det_files, batch):
    images = json.loads((hico_det_files / "test_hico.json").read_text())
    sizes = np.array([(image["height"], image["width"]) for image in images])
    rand = np.random.default_rng(1).random((len(sizes), NUM_RAND))
    sizes = sample_geometric_params(sizes, rand).sizes
    order = np.random.default_rng(0).permutation(len(sizes))
    random = [order[i : i + batch] for i in range(0, len(sizes) - batch + 1, batch)]
    grouped = padding_fraction(sizes, batches_of(sizes, batch, 0, 0))
    assert grouped < padding_fraction(sizes, random) / 2


def make_sampler(count=50, batch=8, **changes):
    sizes = coco_sizes(count)
    return DistributedBatchSampler(lambda epoch: sizes + epoch, count, 3, batch, seed=5, **changes)


@pytest.mark.parametrize("pool", [None, extra_pool(17, 3, 50)])
@pytest.mark.parametrize(("world_size", "count"), [(2, 50), (3, 50), (4, 5)])
def test_processes_share_the_batches_of_one(world_size, count, pool):
    shares = [
        list(make_sampler(count, pool=pool, rank=rank, world_size=world_size))
        for rank in range(world_size)
    ]
    whole, sizes = list(make_sampler(count, pool=pool)), coco_sizes(count)
    for step, (keys, pad_size) in enumerate(whole):
        for rank, share in enumerate(shares):
            assert share[step] == (keys[rank::world_size], pad_size)
        if pool is None:
            # All processes pad to the same size, whichever has the largest image.
            assert pad_size == tuple((sizes[[index for _, index in keys]] + keys[0][0]).max(0))


def test_sampler_yields_the_batches_of_all_epochs():
    whole = make_sampler()
    expected = [
        batch
        for epoch in range(3)
        for batch in epoch_batches(coco_sizes(50) + epoch, 8, 5, epoch)[0]
    ]
    assert [keys for keys, _ in whole] == expected and len(whole) == len(expected) == 18
    assert {epoch for keys in expected[6:12] for epoch, _ in keys} == {1}


@pytest.mark.parametrize("options", [{"last_batch": "fill"}, {"pool": extra_pool(17, 3, 50)}])
@pytest.mark.parametrize("step", [0, 1, 6, 13, 18])
def test_sampler_resumes_at_any_step(step, options):
    whole, rest = make_sampler(**options), make_sampler(**options)
    rest.first_step = step
    assert list(rest) == list(whole)[step:] and len(rest) == len(whole) - step


@pytest.mark.parametrize(
    ("batch", "main", "extra", "ratio", "expected"),
    [
        (16, 300, 100, None, (12, 4)),
        (16, 100_000, 1, None, (15, 1)),
        (16, 1, 100_000, None, (1, 15)),
        (10, 300, 2000, 0.26, (7, 3)),
        (2, 5, 5, 0.01, (1, 1)),
        (2, 5, 5, 0.99, (1, 1)),
    ],
)
def test_split_batch_size(batch, main, extra, ratio, expected):
    assert split_batch_size(batch, main, extra, ratio) == expected
    with pytest.raises(InputError, match=r"batch_size: expected at least 2 .* found 1"):
        split_batch_size(1, main, extra, ratio)


@pytest.mark.parametrize("last_batch", LAST_BATCHES)
@pytest.mark.parametrize(
    ("num_main", "num_pool", "from_main", "from_pool"),
    [(50, 17, 8, 3), (5, 40, 8, 8), (900, 7, 4, 12)],
)
def test_batches_add_images_of_the_pool_pass_after_pass(
    num_main, num_pool, from_main, from_pool, last_batch
):
    sizes, pool = random_sizes(num_main, 1), extra_pool(num_pool, from_pool, num_main)
    seen = []
    for epoch in range(3):
        arguments = sizes + epoch, from_main, 3, epoch, last_batch
        batches, pad_sizes = epoch_batches(*arguments, pool)
        for batch, alone, pad_size in zip(
            batches, epoch_batches(*arguments)[0], pad_sizes, strict=True
        ):
            count = min(from_main, num_main)
            assert batch[:count] == alone and len(batch) == count + from_pool
            assert all(index >= num_main for _, index in batch[count:])
            sides = [
                (sizes + epoch)[index] if index < num_main else pool.sizes(number)[index - num_main]
                for number, index in batch
            ]
            assert pad_size == tuple(np.max(sides, 0))
            seen += batch[count:]
    # Every pass has every image once; only the last pass may be incomplete.
    passes = Counter(number for number, _ in seen)
    assert len(set(seen)) == len(seen) == sum(passes.values())
    assert all(passes[number] == num_pool for number in range(max(passes)))


def test_images_of_both_kinds_are_grouped_by_size():
    sizes, pool = random_sizes(2000, 1), extra_pool(2000, 8, 2000)
    batches, pad_sizes = epoch_batches(sizes, 8, 0, 0, "drop", pool)
    padded = sum(16 * height * width for height, width in pad_sizes)
    # Random batches are padded to almost 800 x 800.
    assert padded < 0.75 * 16 * len(batches) * 800 * 800


def test_images_of_a_small_dataset_meet_other_images_in_every_epoch():
    sizes = coco_sizes(20)
    found = [sorted(map(sorted, batches_of(sizes, 4, 0, epoch))) for epoch in range(20)]
    assert len({str(batches) for batches in found}) == 20
