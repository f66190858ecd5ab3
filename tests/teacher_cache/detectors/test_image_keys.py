import numpy as np
import pytest

from pipeline.types import Annotation
from teacher_cache.detectors.proposals import AMBIGUOUS_NUMBER, NOT_ANNOTATED, image_index_by_key


def annotation(name, number=None):
    nothing = np.zeros((0, 4), np.float32), np.zeros(0, int), np.zeros((0, 3), int)
    return Annotation(name, *nothing, coco_image_id=number)


def test_no_images():
    assert image_index_by_key([], []) == {}


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("HICO_train2015_00000015.jpg", 15),
        ("COCO_val2014_000000581929.jpg", 581929),
        ("000000000139.jpg", 139),
        ("part_2/12.png", 12),
        ("0.jpg", 0),
    ],
)
def test_an_images_number_ends_its_name(name, number):
    assert image_index_by_key([annotation(name)], []) == {name: 0, number: 0}


def test_names_without_a_number():
    assert image_index_by_key([annotation("cat.jpg"), annotation("7cat.jpg")], []) == {
        "cat.jpg": 0,
        "7cat.jpg": 1,
    }


def test_images_beside_the_annotated_ones():
    keys = image_index_by_key([annotation("a_2.jpg")], ["a_2.jpg", "a_3.jpg"])
    assert keys == {"a_2.jpg": 0, 2: 0, "a_3.jpg": NOT_ANNOTATED, 3: NOT_ANNOTATED}


def test_a_number_of_several_images():
    keys = image_index_by_key([annotation("a_2.jpg"), annotation("b_2.jpg")], [])
    assert keys == {"a_2.jpg": 0, "b_2.jpg": 1, 2: AMBIGUOUS_NUMBER}


def test_the_files_own_numbers_go_first():
    keys = image_index_by_key([annotation("a_2.jpg", 9), annotation("a_9.jpg", 2)], ["a_4.jpg"])
    assert keys == {"a_2.jpg": 0, "a_9.jpg": 1, 9: 0, 2: 1, "a_4.jpg": NOT_ANNOTATED}
