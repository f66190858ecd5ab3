import pytest
import torch

from student.models.padding import get_valid_ratios, pad_images, resize_mask


def test_images_are_placed_at_the_top_left():
    pixels, padding = pad_images([torch.ones(3, 2, 6), torch.ones(3, 4, 3)])
    assert pixels.shape == (2, 3, 4, 6)
    assert torch.equal(pixels[:, 0] == 0, padding)
    assert (~padding).sum((1, 2)).tolist() == [12, 12]
    assert not padding[0, :2].any() and not padding[1, :, :3].any()


def test_resize_mask():
    _, padding = pad_images([torch.ones(3, 64, 64), torch.ones(3, 32, 33)])
    assert resize_mask(padding, (2, 2)).tolist() == [
        [[False, False], [False, False]],
        [[False, False], [True, True]],
    ]


@pytest.mark.parametrize(
    ("min_size", "multiple", "expected"),
    [
        ((0, 0), 1, (6, 9)),
        ((0, 0), 3, (6, 9)),
        ((0, 0), 8, (8, 16)),
        ((8, 4), 1, (8, 9)),
        ((5, 10), 4, (8, 12)),
    ],
)
def test_minimum_size_and_multiples(min_size, multiple, expected):
    images = [torch.ones(3, 6, 9)] * 2
    pixels, padding = pad_images(images, multiple, min_size)
    assert tuple(pixels.shape[-2:]) == expected
    assert (padding is None) == (expected == (6, 9))
    assert pixels.sum() == 2 * 3 * 6 * 9


def test_valid_ratios():
    pixels, padding = pad_images([torch.ones(3, 2, 6), torch.ones(3, 4, 3)])
    assert get_valid_ratios(padding, pixels).tolist() == [[1, 0.5], [0.5, 1]]
    assert get_valid_ratios(None, pixels).tolist() == [[1, 1], [1, 1]]
