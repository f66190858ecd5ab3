import pytest
import torch
from torchvision.ops import roi_align

from student.models.proposal_queries import roi_align_unpadded

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
@pytest.mark.parametrize("more", [0, 3])
def test_equals_torchvision_on_each_images_own_part(height, width, more):
    generator = torch.Generator().manual_seed(0)
    ends = torch.tensor([[height, width], [max(1, height - 2), width], [height, max(1, width - 3)]])
    features = torch.randn(3, 5, height + more, width + more, generator=generator)
    boxes = regions(generator, 50)
    image = torch.randint(0, 3, (len(boxes), 1), generator=generator)
    found = roi_align_unpadded(features, torch.cat([image.float(), boxes], 1), 4, ends)
    for number, (rows, columns) in enumerate(ends.tolist()):
        own = image[:, 0] == number
        part = features[number, None, :, :rows, :columns]
        expected = roi_align(part, [boxes[own]], 4, sampling_ratio=1, aligned=True)
        torch.testing.assert_close(found[own], expected, atol=1e-5, rtol=0)


def test_no_regions():
    pooled = roi_align_unpadded(
        torch.zeros(1, 5, 4, 4), torch.zeros(0, 5), 3, torch.tensor([[4, 4]])
    )
    assert pooled.shape == (0, 5, 3, 3)
