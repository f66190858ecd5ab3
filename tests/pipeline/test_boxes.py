import numpy as np

from pipeline.boxes import box_area, box_iou, clip_boxes, union_boxes

NONE = np.zeros((0, 4), dtype=np.float32)
BOX = np.float32([[0, 0, 10, 10]])


def test_functions_accept_no_boxes():
    assert box_area(NONE).shape == (0,)
    assert clip_boxes(NONE, (10, 10)).shape == union_boxes(NONE, NONE).shape == (0, 4)
    assert (box_iou(NONE, BOX).shape, box_iou(BOX, NONE).shape) == ((0, 1), (1, 0))


def test_iou_of_all_pairs():
    first = np.float32([[0, 0, 2, 2], [0, 0, 4, 4], [9, 9, 10, 10]])
    # The last two boxes have no area.
    second = np.float32([[0, 0, 2, 2], [2, 2, 4, 4], [1, 0, 5, 4], [1, 1, 1, 3], [3, 3, 2, 2]])
    expected = [[1, 0, 2 / 18, 0, 0], [0.25, 0.25, 12 / 20, 0, 0], [0, 0, 0, 0, 0]]
    np.testing.assert_allclose(box_iou(first, second), expected, rtol=1e-6)
    np.testing.assert_allclose(box_iou(second, first).T, expected, rtol=1e-6)
    assert box_iou(second[3:4], second[3:4]).tolist() == [[0]]


def test_areas_unions_and_clipping():
    boxes = np.float32([[1, 2, 4, 8], [1, 2, 1, 8], [4, 8, 1, 2]])
    assert box_area(boxes).tolist() == [18, 0, 0]
    first, second = np.float32([[0, 5, 2, 6], [1, 1, 9, 9]]), np.float32([[1, 0, 8, 2], [2] * 4])
    assert union_boxes(first, second).tolist() == [[0, 0, 8, 6], [1, 1, 9, 9]]
    boxes = np.float32([[-5, 3, 50, 200], [1, 2, 3, 4]])
    clipped = clip_boxes(boxes, (40, 30))
    assert clipped.tolist() == [[0, 3, 40, 30], [1, 2, 3, 4]]
    assert clipped.dtype == np.float32 and boxes[0, 0] == -5
