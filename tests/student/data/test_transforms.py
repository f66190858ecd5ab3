import numpy as np
import pytest
import torch
from torchvision import tv_tensors

from student.data.transforms import (
    NUM_RAND,
    DETRAugmentation,
    SizePreservingAugmentation,
    build_augmentation,
    build_evaluation_resize,
    toy_augmentation,
)


def image(height, width):
    return tv_tensors.Image(torch.randint(0, 256, (3, height, width), dtype=torch.uint8))


def no_boxes(height, width):
    return tv_tensors.BoundingBoxes(torch.zeros(0, 4), format="XYXY", canvas_size=(height, width))


def draws(seed):
    return np.random.default_rng(seed).random(NUM_RAND)


@pytest.mark.parametrize("name", ["published", "toy"])
def test_images_without_boxes(name):
    values = {"image": image(90, 120), "boxes": no_boxes(90, 120)}
    changed = build_augmentation(name)(values, draws(0))
    assert changed["boxes"].shape == (0, 4) and changed["image"].dtype == torch.uint8
    assert values["image"].shape == (3, 90, 120)


@pytest.mark.parametrize(("height", "width"), [(375, 500), (640, 427), (100, 900)])
def test_published_sizes(height, width):
    augmentation = DETRAugmentation()
    for seed in range(8):
        out = augmentation({"image": image(height, width)}, draws(seed))["image"]
        short, long = sorted(out.shape[-2:])
        assert long <= 1333 and (480 <= short <= 800 or long >= 1325)
        told = augmentation.sizes(np.array([[height, width]]), draws(seed)[None])
        assert tuple(told[0]) == out.shape[-2:]


def test_published_colours_change_and_equal_draws_give_equal_places():
    augmentation, marked = DETRAugmentation(), image(300, 400)
    numbers = draws(1)
    first, second = (augmentation({"image": marked}, numbers)["image"] for _ in range(2))
    assert first.shape == second.shape and not torch.equal(first, second)


def test_toy_pictures_keep_their_size_and_flip_half_the_time():
    marked = tv_tensors.Image(torch.zeros(3, 128, 128, dtype=torch.uint8))
    marked[:, :, :4] = 255
    flipped = 0
    for seed in range(40):
        torch.manual_seed(seed)
        out = toy_augmentation()({"image": marked}, draws(0))["image"]
        assert out.shape == marked.shape
        flipped += int(out[0, 0, -1]) > int(out[0, 0, 0])
    assert 10 <= flipped <= 30


@pytest.mark.parametrize(
    ("name", "size", "expected"),
    [
        ("published", (480, 640), (800, 1066)),
        ("published", (300, 900), (444, 1333)),
        ("toy", (128, 128), (128, 128)),
        ("toy", (75, 1333), (75, 1333)),
        ("toy", (2000, 4000), (666, 1333)),
        ("toy", (4000, 1), (1333, 1)),
    ],
)
def test_sizes_for_evaluation(name, size, expected):
    assert tuple(build_evaluation_resize(name)(image(*size)).shape[-2:]) == expected


def test_names_are_the_presets():
    assert isinstance(build_augmentation("published"), DETRAugmentation)
    assert isinstance(build_augmentation("toy"), SizePreservingAugmentation)
    with pytest.raises(KeyError):
        build_augmentation("other")
