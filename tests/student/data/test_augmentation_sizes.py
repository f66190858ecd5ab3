import numpy as np
import pytest
import torch
from torchvision import tv_tensors

from student.data.transforms import NUM_RAND, resize_short_side, sample_geometric_params


def geometries(height, width, count=400, seed=0):
    sizes = np.tile([[height, width]], (count, 1))
    return sample_geometric_params(sizes, np.random.default_rng(seed).random((count, NUM_RAND)))


def test_no_images():
    empty = sample_geometric_params(np.zeros((0, 2), dtype=np.int64), np.zeros((0, NUM_RAND)))
    assert empty.sizes.shape == (0, 2) and empty.crop_boxes.shape == (0, 4)


@pytest.mark.parametrize(
    ("size", "short", "longest", "expected"),
    [
        ((300, 400), 600, None, (600, 800)),
        ((400, 300), 600, None, (800, 600)),
        ((300, 300), 480, 1333, (480, 480)),
        ((427, 640), 800, 1333, (800, 1199)),
        ((300, 900), 800, 1333, (444, 1333)),
        ((900, 300), 800, 1333, (1333, 444)),
        ((1, 5000), 800, 1333, (1, 1333)),
    ],
)
def test_short_sides(size, short, longest, expected):
    found = resize_short_side(np.array([size]), np.array([short]), longest)
    assert tuple(found[0]) == expected


def test_half_the_images_flip_and_half_are_cropped():
    drawn = geometries(300, 400)
    assert 0.4 < drawn.flips.mean() < 0.6 and 0.4 < drawn.crops.mean() < 0.6
    assert 0.2 < (drawn.flips & drawn.crops).mean() < 0.3


@pytest.mark.parametrize(
    ("size", "heights", "widths"),
    [
        ((300, 400), (384, 600), (384, 600)),
        ((1000, 1000), (384, 600), (384, 600)),
        ((100, 2000), (384, 600), (384, 600)),
    ],
)
def test_windows_lie_inside_and_take_all_sizes(size, heights, widths):
    drawn = geometries(*size)
    assert set(drawn.sizes_before_crop.min(1)) == {400, 500, 600}
    top, left, height, width = drawn.crop_boxes.T
    assert (top >= 0).all() and (top + height <= drawn.sizes_before_crop[:, 0]).all()
    assert (left >= 0).all() and (left + width <= drawn.sizes_before_crop[:, 1]).all()
    assert heights[0] <= height.min() and height.max() <= heights[1] and len(set(height)) > 20
    assert widths[0] <= width.min() and width.max() <= widths[1] and len(set(width)) > 20
    assert top.max() > 0 and left.max() > 0


def test_whole_images_keep_their_shape_and_take_every_size():
    drawn = geometries(300, 400)
    whole = drawn.sizes[~drawn.crops]
    assert set(whole[:, 0]) == set(range(480, 801, 32))
    assert (np.abs(whole[:, 1] / whole[:, 0] - 4 / 3) < 0.01).all()
    windows = drawn.crop_boxes[drawn.crops, 2:]
    cropped = drawn.sizes[drawn.crops]
    assert (np.abs(cropped[:, 1] / cropped[:, 0] - windows[:, 1] / windows[:, 0]) < 0.01).all()


def test_a_row_does_not_depend_on_the_others():
    sizes = np.array([[300, 400], [500, 333], [640, 480]])
    draws = np.random.default_rng(0).random((3, NUM_RAND))
    together = sample_geometric_params(sizes, draws)
    for row in range(3):
        alone = sample_geometric_params(sizes[row : row + 1], draws[row : row + 1])
        for name in ("flips", "crops", "sizes_before_crop", "crop_boxes", "sizes"):
            assert np.array_equal(getattr(alone, name)[0], getattr(together, name)[row])


def test_an_image_and_its_boxes_end_with_the_drawn_size():
    drawn = geometries(90, 120, count=6)
    image = tv_tensors.Image(torch.zeros(3, 90, 120, dtype=torch.uint8))
    boxes = tv_tensors.BoundingBoxes([[10.0, 10, 50, 50]], format="XYXY", canvas_size=(90, 120))
    for row in range(6):
        assert tuple(drawn.apply(row, image).shape[-2:]) == tuple(drawn.sizes[row])
        assert drawn.apply(row, boxes).canvas_size == tuple(drawn.sizes[row])
