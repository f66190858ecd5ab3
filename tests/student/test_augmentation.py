import pytest
import torch
from torchvision import tv_tensors
from torchvision.transforms import v2

from student.augmentation import (
    RandomSizeCrop,
    evaluation_resize,
    published_augmentation,
    training_augmentation,
    world_augmentation,
)


def image(height, width):
    return tv_tensors.Image(torch.randint(0, 256, (3, height, width), dtype=torch.uint8))


def no_boxes(height, width):
    return tv_tensors.BoundingBoxes(torch.zeros(0, 4), format="XYXY", canvas_size=(height, width))


@pytest.mark.parametrize("name", ["published", "world"])
def test_images_without_boxes(name):
    changed = training_augmentation(name)({"image": image(90, 120), "boxes": no_boxes(90, 120)})
    assert changed["boxes"].shape == (0, 4) and changed["image"].dtype == torch.uint8


@pytest.mark.parametrize(("height", "width"), [(375, 500), (640, 427), (100, 900)])
def test_published_sizes(height, width):
    augmentation = published_augmentation()
    for seed in range(8):
        torch.manual_seed(seed)
        out = augmentation({"image": image(height, width)})["image"]
        short, long = sorted(out.shape[-2:])
        assert long <= 1333 and (480 <= short <= 800 or long >= 1325)


def test_the_published_choice_takes_both_branches():
    whole = 0
    for seed in range(30):
        torch.manual_seed(seed)
        out = published_augmentation()({"image": image(300, 400)})["image"]
        height, width = out.shape[-2:]
        whole += abs(width / height - 4 / 3) < 0.01
    assert 5 <= whole <= 25


def test_world_pictures_keep_their_size_and_flip_half_the_time():
    marked = tv_tensors.Image(torch.zeros(3, 128, 128, dtype=torch.uint8))
    marked[:, :, :4] = 255
    flipped = 0
    for seed in range(40):
        torch.manual_seed(seed)
        out = world_augmentation()({"image": marked})["image"]
        assert out.shape == marked.shape
        flipped += int(out[0, 0, -1]) > int(out[0, 0, 0])
    assert 10 <= flipped <= 30


@pytest.mark.parametrize(
    ("height", "width", "heights", "widths"),
    [(700, 500, (384, 600), (384, 500)), (200, 390, (200, 200), (384, 390))],
)
def test_windows_fit_the_image(height, width, heights, widths):
    crop, sizes = RandomSizeCrop(), set()
    for seed in range(20):
        torch.manual_seed(seed)
        sizes.add(tuple(crop(image(height, width)).shape[-2:]))
    assert all(heights[0] <= h <= heights[1] for h, _ in sizes)
    assert all(widths[0] <= w <= widths[1] for _, w in sizes)
    assert len(sizes) > 3


@pytest.mark.parametrize(
    ("name", "size", "expected"),
    [
        ("published", (480, 640), (800, 1066)),
        ("published", (300, 900), (444, 1333)),
        ("world", (128, 128), (128, 128)),
    ],
)
def test_sizes_for_evaluation(name, size, expected):
    assert tuple(evaluation_resize(name)(image(*size)).shape[-2:]) == expected


def test_names_are_the_presets():
    assert isinstance(training_augmentation("published"), v2.Transform)
    with pytest.raises(KeyError):
        training_augmentation("other")
