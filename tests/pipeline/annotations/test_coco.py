import pytest

from pipeline.annotations.load import load_annotations
from pipeline.utils.errors import InputError

FILE = {
    "images": [
        {"id": 7, "file_name": "a.jpg", "width": 100, "height": 80},
        {"id": 5, "file_name": "b.jpg", "width": 100, "height": 80},
    ],
    "annotations": [
        {"id": 1, "image_id": 7, "category_id": 2, "bbox": [10, 20, 30, 40], "iscrowd": 0},
        {"id": 2, "image_id": 7, "category_id": 1, "bbox": [0, 0, 99, 79], "iscrowd": 1},
        {"id": 3, "image_id": 7, "category_id": 1, "bbox": [1.5, 2, 3, 4]},
    ],
    "categories": [{"id": 1, "name": "person"}, {"id": 2, "name": "bicycle"}],
}


def read(save_json, value, vocabulary, strict=False):
    return load_annotations(save_json(value, "coco.json"), vocabulary, "train", strict)


def test_boxes_become_corners_and_crowds_are_left_out(save_json, hico):
    first, second = read(save_json, FILE, hico, strict=True).annotations
    assert first.boxes.tolist() == [[10, 20, 40, 60], [1.5, 2, 4.5, 6]]
    assert first.labels.tolist() == [1, 0]
    assert first.hois.shape == (0, 3)
    assert second.image_id == "b.jpg" and second.boxes.shape == (0, 4)


@pytest.mark.parametrize("bbox", [[10, 20, 95, 40], [10, 20, 0, 40]])
def test_issues_are_counted_or_refused(save_json, hico, changed, bbox):
    value = changed(FILE, ["annotations", 2, "bbox"], bbox)
    assert sum(read(save_json, value, hico).issues.values()) == 1
    with pytest.raises(InputError, match=r"coco.json: a.jpg: annotations\[2\].bbox"):
        read(save_json, value, hico, strict=True)


@pytest.mark.parametrize(
    ("table", "row", "key", "value", "message"),
    [
        ("images", 0, "id", "7", r"images\[0\].id: expected"),
        ("images", 1, "id", 7, r"images\[1\].id: expected"),
        ("images", 1, "file_name", "a.jpg", r"images\[1\].file_name: expected"),
        ("images", 1, "width", None, r"images\[1\].width: expected"),
        ("annotations", 1, "image_id", 8, r"annotations\[1\].image_id: expected"),
        ("annotations", 2, "bbox", [1, 2, 3], r"a.jpg: annotations\[2\].bbox: expected"),
        ("images", 1, "height", 10**400, r"images\[1\].height: expected"),
        ("annotations", 1, "image_id", [7], r"annotations\[1\].image_id: expected"),
        ("annotations", 2, "category_id", 10**20, r"annotations\[2\].category_id: expected"),
        ("annotations", 2, "category_id", 12, r"annotations\[2\].category_id: expected"),
    ],
)
def test_structural_errors(save_json, hico, changed, table, row, key, value, message):
    with pytest.raises(InputError, match=message):
        read(save_json, changed(FILE, [table, row, key], value), hico)


def test_file_without_images_is_refused(save_json, hico):
    with pytest.raises(InputError, match="file: expected"):
        read(save_json, {**FILE, "images": [], "annotations": []}, hico)
