import pytest
import torch
from torchvision.ops import roi_align

from student.region_pooling import pool_regions

BOXES = [
    [0.0, 0.0, 7.0, 9.0],
    [2.2, 3.1, 2.4, 6.0],
    [3.0, 4.0, 3.0, 4.0],
    # Beyond the edges, near and far.
    [-0.4, -0.6, 0.2, 0.2],
    [-4.0, -3.0, 12.0, 13.0],
    [6.0, 8.0, 9.0, 12.0],
    [20.0, 20.0, 30.0, 30.0],
    [5.0, 5.0, 1.0, 1.0],
]


def regions(generator, count):
    boxes = torch.rand(count, 4, generator=generator) * 14 - 3
    return torch.cat([torch.tensor(BOXES), boxes])


@pytest.mark.parametrize(("height", "width"), [(9, 7), (1, 1), (16, 20)])
def test_equals_torchvision(height, width):
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(3, 5, height, width, generator=generator)
    boxes = regions(generator, 50)
    image = torch.randint(0, 3, (len(boxes), 1), generator=generator).float()
    both = torch.cat([image, boxes], 1)
    expected = roi_align(features, both, 4, sampling_ratio=1, aligned=True)
    torch.testing.assert_close(
        pool_regions(features, both, 1.0, 4, 4, 1, True), expected, atol=1e-5, rtol=0
    )


def test_no_regions():
    pooled = pool_regions(torch.zeros(1, 5, 4, 4), torch.zeros(0, 5), 1.0, 4, 3, 1, True)
    assert pooled.shape == (0, 5, 4, 3)


def test_other_ways_of_pooling_are_not_its_business():
    with pytest.raises(AssertionError):
        pool_regions(torch.zeros(1, 1, 4, 4), torch.zeros(0, 5), 1.0, 4, 4, 2, True)
