import numpy as np
import pytest

from pipeline.boxes import box_area, box_iou, clip_boxes, union_boxes

NONE = np.zeros((0, 4), dtype=np.float32)
BOX = np.float32([[0, 0, 10, 10]])


def test_functions_accept_no_boxes():
    assert box_area(NONE).shape == (0,)
    assert clip_boxes(NONE, (10, 10)).shape == (0, 4)
    assert union_boxes(NONE, NONE).shape == (0, 4)
    assert box_iou(NONE, BOX).shape == (0, 1)
    assert box_iou(BOX, NONE).shape == (1, 0)


@pytest.mark.parametrize(
    ("other", "iou"),
    [
        ([0, 0, 10, 10], 1),
        ([0, 0, 5, 10], 0.5),
        ([5, 0, 15, 10], 1 / 3),
        ([5, 5, 15, 15], 25 / 175),
        ([10, 0, 20, 10], 0),
        ([50, 50, 60, 60], 0),
        ([3, 3, 3, 8], 0),
        ([8, 8, 2, 2], 0),
    ],
)
def test_box_iou(other, iou):
    assert box_iou(BOX, np.float32([other])) == pytest.approx(iou)
    assert box_iou(np.float32([other]), BOX) == pytest.approx(iou)


def test_iou_of_boxes_without_area_is_0():
    point = np.zeros((1, 4))
    assert box_iou(point, point).tolist() == [[0]]


def test_iou_of_all_pairs():
    first = np.float32([[0, 0, 2, 2], [0, 0, 4, 4], [9, 9, 10, 10]])
    second = np.float32([[0, 0, 2, 2], [2, 2, 4, 4]])
    np.testing.assert_allclose(box_iou(first, second), [[1, 0], [0.25, 0.25], [0, 0]])


@pytest.mark.parametrize(
    ("box", "area"), [([1, 2, 4, 8], 18), ([1, 2, 1, 8], 0), ([4, 8, 1, 2], 0)]
)
def test_box_area(box, area):
    assert box_area(np.float32([box])).tolist() == [area]


def test_clipping_keeps_dtype_and_input():
    boxes = np.float32([[-5, 3, 50, 200], [1, 2, 3, 4]])
    clipped = clip_boxes(boxes, (40, 30))
    assert clipped.tolist() == [[0, 3, 40, 30], [1, 2, 3, 4]]
    assert clipped.dtype == np.float32 and boxes[0, 0] == -5


def test_union_boxes_contain_both():
    first = np.float32([[0, 5, 2, 6], [1, 1, 9, 9]])
    second = np.float32([[1, 0, 8, 2], [2, 2, 3, 3]])
    assert union_boxes(first, second).tolist() == [[0, 0, 8, 6], [1, 1, 9, 9]]
