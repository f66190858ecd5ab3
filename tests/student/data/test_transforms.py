import numpy as np
import pytest
import torch
from torchvision import tv_tensors

from student.data.transforms import (
    NUM_RAND,
    build_augmentation,
    build_evaluation_resize,
    sample_geometric_params,
)


def image(height, width):
    return tv_tensors.Image(torch.randint(0, 256, (3, height, width), dtype=torch.uint8))


def random_numbers(seed):
    return np.random.default_rng(seed).random(NUM_RAND)


def test_colour_jitter_does_not_depend_on_the_geometric_random_numbers():
    augmentation, source = build_augmentation("published"), image(300, 400)
    numbers = random_numbers(1)
    first, second = (augmentation({"image": source}, numbers)["image"] for _ in range(2))
    assert first.shape == second.shape and not torch.equal(first, second)


def test_toy_augmentation_keeps_the_size_and_flips_half_of_the_images():
    source = tv_tensors.Image(torch.zeros(3, 128, 128, dtype=torch.uint8))
    source[:, :, :4] = 255
    augmentation, flipped = build_augmentation("toy"), 0
    for seed in range(40):
        torch.manual_seed(seed)
        out = augmentation({"image": source}, random_numbers(0))["image"]
        assert out.shape == source.shape
        flipped += int(out[0, 0, -1]) > int(out[0, 0, 0])
    assert 10 <= flipped <= 30
    assert augmentation.sizes(np.array([[128, 64]]), random_numbers(0)[None]).tolist() == [
        [128, 64]
    ]


@pytest.mark.parametrize("size", [(1400, 1000), (30, 4000), (1333, 20)])
def test_toy_augmentation_shrinks_photographs_as_the_evaluation_does(size):
    height, width = size
    corner = torch.tensor([[0.0, 0.0, width, height]])
    boxes = tv_tensors.BoundingBoxes(corner, format="XYXY", canvas_size=size)
    augmentation, numbers = build_augmentation("toy"), random_numbers(0)
    out = augmentation({"image": image(*size), "boxes": boxes}, numbers)
    new = list(out["image"].shape[-2:])
    assert new == list(build_evaluation_resize("toy")(image(*size)).shape[-2:])
    assert augmentation.sizes(np.array([size]), numbers[None]).tolist() == [new]
    assert out["boxes"].tolist() == [pytest.approx([0, 0, new[1], new[0]])]


@pytest.mark.parametrize(
    ("name", "size", "expected"),
    [
        ("published", (480, 640), (800, 1066)),
        ("published", (640, 480), (1066, 800)),
        ("published", (300, 300), (800, 800)),
        ("published", (300, 900), (444, 1333)),
        ("toy", (75, 1333), (75, 1333)),
        ("toy", (2000, 4000), (666, 1333)),
        ("toy", (4000, 1), (1333, 1)),
    ],
)
def test_sizes_for_evaluation(name, size, expected):
    assert tuple(build_evaluation_resize(name)(image(*size)).shape[-2:]) == expected


def sample_params(height, width, count=400):
    sizes = np.tile([[height, width]], (count, 1))
    return sample_geometric_params(sizes, np.random.default_rng(0).random((count, NUM_RAND)))


@pytest.mark.parametrize("size", [(300, 400), (1000, 1000), (100, 2000)])
def test_crops_are_inside_the_image_and_have_all_sizes(size):
    params = sample_params(*size)
    assert 0.4 < params.flips.mean() < 0.6 and 0.4 < params.crops.mean() < 0.6
    assert 0.2 < (params.flips & params.crops).mean() < 0.3
    assert set(params.sizes_before_crop.min(1)) == {400, 500, 600}
    top, left, height, width = params.crop_boxes.T
    assert (top >= 0).all() and (top + height <= params.sizes_before_crop[:, 0]).all()
    assert (left >= 0).all() and (left + width <= params.sizes_before_crop[:, 1]).all()
    assert top.max() > 0 and left.max() > 0
    for sides in (height, width):
        assert sides.min() >= 384 and sides.max() <= 600 and len(set(sides)) > 20


def test_final_sizes_keep_the_aspect_ratio():
    params = sample_params(300, 400)
    whole, cropped = params.sizes[~params.crops], params.sizes[params.crops]
    assert set(whole[:, 0]) == set(range(480, 801, 32))
    assert (np.abs(whole[:, 1] / whole[:, 0] - 4 / 3) < 0.01).all()
    crops = params.crop_boxes[params.crops, 2:]
    assert (np.abs(cropped[:, 1] / cropped[:, 0] - crops[:, 1] / crops[:, 0]) < 0.01).all()
    assert sample_params(100, 900).sizes.max() == 1333


def test_params_of_an_image_do_not_depend_on_the_others():
    sizes = np.array([[300, 400], [500, 333], [640, 480]])
    rand = np.random.default_rng(0).random((3, NUM_RAND))
    together = sample_geometric_params(sizes, rand)
    for row in range(3):
        alone = sample_geometric_params(sizes[row : row + 1], rand[row : row + 1])
        for name, values in vars(together).items():
            assert np.array_equal(getattr(alone, name)[0], values[row])
