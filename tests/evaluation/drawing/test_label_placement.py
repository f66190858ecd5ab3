import numpy as np
import pytest

from evaluation.drawing.label_placement import face_boxes, place_labels

IMAGE_SIZE = (400, 300)
NO_BOXES = np.zeros((0, 4))


def place(anchors, sizes, obstacles=NO_BOXES, cost=1.0, placed=NO_BOXES):
    anchors = [anchor.reshape(-1, 4) for anchor in anchors]
    costs = np.full(len(obstacles), cost)
    return place_labels(anchors, np.array(sizes), IMAGE_SIZE, obstacles, costs, 2, placed)


def test_one_label_sits_on_its_box():
    anchor = np.array([[100.0, 100, 180, 200]])
    (corner,) = place(anchor, [[60.0, 20]], anchor)
    assert corner[1] + 20 == pytest.approx(100, abs=4)
    assert 100 <= corner[0] <= 120


def test_label_beside_the_second_box_if_the_first_has_no_room():
    anchors = np.array([[[0.0, 0, 300, 300], [320, 100, 400, 200]]])
    (corner,) = place(anchors, [[60.0, 20]], anchors[0])
    assert corner[0] >= 300 and corner[1] + 20 == pytest.approx(100, abs=4)


def test_label_beside_a_face():
    person = np.array([[100.0, 0, 300, 300]])
    (face,) = face_boxes(person)
    (corner,) = place(person, [[60.0, 20]], face[None], cost=6.0)
    end = corner + np.array([60, 20])
    assert (np.minimum(end, face[2:]) <= np.maximum(corner, face[:2])).any()


def test_label_wider_than_the_image():
    anchor = np.array([[10.0, 10, 20, 20]])
    (corner,) = place(anchor, [[900.0, 20]])
    assert corner[0] == 0


def test_label_beside_one_that_has_its_position():
    anchor = np.array([[100.0, 100, 180, 200]])
    above = np.array([[90.0, 60, 200, 98]])
    (corner,) = place(anchor, [[60.0, 20]], placed=above)
    assert corner[1] >= 100


@pytest.mark.parametrize("seed", range(4))
def test_crowds_do_not_overlap(seed, assert_apart):
    rng = np.random.default_rng(seed)
    # The first crowd has one box.
    corner = rng.uniform(0, 300, (10, 2)) * [1, 0.7] * min(seed, 1)
    anchors = np.hstack([corner, corner + rng.uniform(20, 90, (10, 2))])
    sizes = np.column_stack([rng.uniform(60, 120, 10), rng.choice([18.0, 36.0], 10)])
    places = place(anchors, sizes, anchors)
    assert_apart(places, sizes, IMAGE_SIZE)
