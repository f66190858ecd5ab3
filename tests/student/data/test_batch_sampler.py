import numpy as np
import pytest

from student.config import LAST_BATCHES
from student.data.samplers import DistributedBatchSampler, ExtraPool, epoch_batches


def made_up_sizes(count, seed=0):
    """Sizes as photographs have them: a side of 640, upright ones among them."""
    random = np.random.default_rng(seed)
    short = random.choice([360, 426, 427, 480, 500, 640], count)
    sizes = np.stack([short, np.full(count, 640)], 1)
    return np.where(random.random((count, 1)) < 0.3, sizes[:, ::-1], sizes)


def pool(per_step=3, count=17, first=50):
    sizes = made_up_sizes(count, seed=9)
    return ExtraPool(lambda number: sizes + 2 * number, count, first, per_step)


@pytest.mark.parametrize("world_size", [2, 3, 4])
@pytest.mark.parametrize(("count", "batch"), [(100, 8), (5, 8)])
def test_processes_share_the_batches_of_one(world_size, count, batch):
    sizes = made_up_sizes(count)
    samplers = [
        DistributedBatchSampler(lambda epoch: sizes + epoch, count, 2, batch, 3, rank, world_size)
        for rank in range(world_size)
    ]
    whole = list(DistributedBatchSampler(lambda epoch: sizes + epoch, count, 2, batch, 3))
    shares = [list(one) for one in samplers]
    for step, (keys, frame) in enumerate(whole):
        parts = [share[step][0] for share in shares]
        assert sorted(key for part in parts for key in part) == sorted(keys)
        lengths = [len(part) for part in parts]
        assert max(lengths) - min(lengths) <= 1
        # All processes pad as far as one would, whoever has the largest image.
        images = [index for _, index in keys]
        assert frame == tuple((sizes[images] + keys[0][0]).max(0))
        assert [share[step][1] for share in shares] == [frame] * world_size


def sampler(**changes):
    sizes = made_up_sizes(50)
    return DistributedBatchSampler(lambda epoch: sizes + epoch, 50, 3, 8, seed=5, **changes)


def test_a_loader_gets_the_batches_of_all_epochs():
    one = sampler(rank=1, world_size=2)
    expected = [
        [(epoch, index) for index in batch[1::2]]
        for epoch in range(3)
        for batch in epoch_batches(made_up_sizes(50) + epoch, 8, 5, epoch)
    ]
    assert [keys for keys, _ in one] == expected and len(one) == len(expected) == 18


@pytest.mark.parametrize("last_batch", LAST_BATCHES)
@pytest.mark.parametrize("step", [0, 1, 5, 6, 7, 13, 17, 18])
def test_a_resumed_run_goes_on_in_its_order(step, last_batch):
    whole, rest = sampler(last_batch=last_batch), sampler(last_batch=last_batch)
    rest.first_step = step
    assert list(rest) == list(whole)[step:] and len(rest) == len(whole) - step


@pytest.mark.parametrize("step", [0, 1, 6, 8, 17])
def test_with_a_pool_too(step):
    whole, rest = sampler(pool=pool()), sampler(pool=pool())
    rest.first_step = step
    assert list(rest) == list(whole)[step:]


def test_processes_share_batches_with_a_pool():
    whole = sampler(pool=pool())
    parts = [sampler(pool=pool(), rank=rank, world_size=2) for rank in range(2)]
    for (keys, frame), *shares in zip(whole, *parts, strict=True):
        assert [own for _, own in shares] == [frame] * 2
        mine, theirs = (own for own, _ in shares)
        assert keys[::2] == mine and keys[1::2] == theirs
        # Both have images of the pool.
        assert all(any(index >= 50 for _, index in part) for part in (mine, theirs))
