import json

import numpy as np
import pytest
import torch

from student.data.samplers import epoch_batches, padding_fraction, steps_per_epoch
from student.data.transforms import NUM_RAND, sample_geometric_params


def made_up_sizes(count, seed=0):
    """Sizes as photographs have them: a side of 640, upright ones among them."""
    random = np.random.default_rng(seed)
    short = random.choice([360, 426, 427, 480, 500, 640], count)
    sizes = np.stack([short, np.full(count, 640)], 1)
    upright = random.random(count) < 0.3
    sizes[upright] = sizes[upright, ::-1]
    return sizes


@pytest.mark.parametrize(
    ("images", "batch", "steps"), [(0, 4, 1), (3, 4, 1), (4, 4, 1), (11, 4, 2)]
)
def test_steps_of_an_epoch(images, batch, steps):
    assert steps_per_epoch(images, batch) == steps


def test_fewer_images_than_a_batch_make_one_batch():
    (batch,) = epoch_batches(made_up_sizes(3), 4, seed=0, epoch=0)
    assert sorted(batch) == [0, 1, 2]


@pytest.mark.parametrize("count", [64, 67, 1000, 2100])
def test_every_image_comes_once_but_the_last_ones(count):
    sizes = made_up_sizes(count)
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
    sizes = made_up_sizes(100)
    first = epoch_batches(sizes, 8, 1, 0)
    torch.rand(3)
    assert epoch_batches(sizes, 8, 1, 0) == first
    assert epoch_batches(sizes, 8, 1, 1) != first != epoch_batches(sizes, 8, 2, 0)


def test_images_of_one_size_stay_in_the_order_of_the_permutation():
    sizes = np.full((1000, 2), 128)
    found = [index for batch in epoch_batches(sizes, 4, 7, 2) for index in batch]
    mixed = made_up_sizes(1000)
    others = [index for batch in epoch_batches(mixed, 4, 7, 2) for index in batch]
    assert found != others and sorted(found) == sorted(others)
    # Runs of 64 batches hold the same images, whatever their sizes are.
    assert [set(found[i : i + 256]) for i in range(0, 1000, 256)] == [
        set(others[i : i + 256]) for i in range(0, 1000, 256)
    ]


def test_large_and_small_batches_are_mixed_over_the_epoch():
    sizes = made_up_sizes(4096)
    areas = [sizes[batch].prod(1).mean() for batch in epoch_batches(sizes, 16, 0, 0)]
    quarters = np.array_split(np.array(areas), 16)
    means = np.array([quarter.mean() for quarter in quarters])
    assert means.std() < np.std(areas) / 2


def test_the_share_of_padding():
    sizes = np.array([[10, 20], [20, 10], [20, 20]])
    assert padding_fraction(sizes, [[0], [1], [2]]) == 0
    assert padding_fraction(sizes, [[0, 1]]) == pytest.approx(0.5)
    assert padding_fraction(sizes, [[0, 1], [2]]) == pytest.approx(1 - 800 / 1200)


def waste(sizes, batch):
    random = np.random.default_rng(0).permutation(len(sizes))
    unsorted = [random[i : i + batch] for i in range(0, len(sizes) - batch + 1, batch)]
    return padding_fraction(sizes, epoch_batches(sizes, batch, 0, 0)), padding_fraction(
        sizes, unsorted
    )


@pytest.mark.parametrize("batch", [2, 4, 16])
@pytest.mark.parametrize("augmented", [False, True])
def test_grouping_wastes_less_than_half_the_padding(batch, augmented):
    sizes = made_up_sizes(4000)
    if augmented:
        draws = np.random.default_rng(1).random((len(sizes), NUM_RAND))
        sizes = sample_geometric_params(sizes, draws).sizes
    grouped, random = waste(sizes, batch)
    assert grouped < random / 2


def test_grouping_of_hico_dets_images_wastes_less_than_half_the_padding(hico_det_files):
    images = json.loads((hico_det_files / "test_hico.json").read_text())
    sizes = np.array([(image["height"], image["width"]) for image in images])
    draws = np.random.default_rng(1).random((len(sizes), NUM_RAND))
    grouped, random = waste(sample_geometric_params(sizes, draws).sizes, 16)
    assert grouped < random / 2


@pytest.mark.parametrize(
    ("num_images", "batch_size", "steps"), [(50, 8, 7), (48, 8, 6), (5, 8, 1), (9, 8, 2), (8, 8, 1)]
)
def test_a_last_batch_is_filled_up_with_other_images(num_images, batch_size, steps):
    sizes = made_up_sizes(num_images)
    batches = epoch_batches(sizes, batch_size, 5, 1, last_batch="fill")
    assert len(batches) == steps == steps_per_epoch(num_images, batch_size, "fill")
    assert {len(batch) for batch in batches} == {min(batch_size, num_images)}
    counts = np.bincount(np.concatenate(batches), minlength=num_images)
    assert counts.min() == 1 and counts.sum() == steps * min(batch_size, num_images)
    assert counts.max() <= 2
