import pytest
import torch
from torchvision.ops import box_convert, box_iou, generalized_box_iou

from student.losses.box_ops import iou_and_giou


def test_no_boxes():
    iou, giou = iou_and_giou(torch.zeros(3, 1, 4), torch.zeros(0, 4))
    assert iou.shape == giou.shape == (3, 0)


def test_pairwise_values_equal_torchvision():
    random = torch.Generator().manual_seed(0)
    a, b = (torch.rand(n, 4, generator=random) / 2 + 0.1 for n in (5, 7))
    iou, giou = iou_and_giou(a[:, None], b)
    corners = [box_convert(boxes, "cxcywh", "xyxy") for boxes in (a, b)]
    torch.testing.assert_close(iou, box_iou(*corners))
    torch.testing.assert_close(giou, generalized_box_iou(*corners))


@pytest.mark.parametrize("other", [[0.0] * 4, [0.5, 0.5, 0.0, 0.0], [0.5, 0.5, 0.2, 0.2]])
def test_boxes_without_area_have_finite_values_and_gradients(other):
    box = torch.zeros(1, 4, requires_grad=True)
    iou, giou = iou_and_giou(box, torch.tensor([other]))
    (iou + giou).sum().backward()
    assert iou.item() == 0 and torch.isfinite(giou).all() and torch.isfinite(box.grad).all()
