import hashlib

import pytest

from pipeline.annotations.load import load_annotations
from pipeline.utils.errors import InputError


@pytest.mark.parametrize(
    "value",
    [{}, {"images": []}, {"filenames": []}, 3, "text", None],
)
def test_unknown_format_error_lists_known_formats(save_json, hico, value):
    with pytest.raises(InputError, match=r"annotations.json: file: expected"):
        load_annotations(save_json(value), hico, "train")


@pytest.mark.parametrize("name", ["none.json", "none.mat"])
def test_missing_file_is_refused(tmp_path, hico, name):
    with pytest.raises(InputError, match=f"{name}: no such file"):
        load_annotations(tmp_path / name, hico, "train")


def test_digest_is_that_of_the_file(save_json, hico):
    path = save_json([{"file_name": "a.jpg", "annotations": [], "hoi_annotation": []}])
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert load_annotations(path, hico, "train").digest == digest


@pytest.mark.golden("hico_annotations_*.json")
def test_golden_annotations_have_no_issues(golden_file, hico):
    file = load_annotations(golden_file, hico, "test", strict=True)
    assert file.annotations and file.num_labels


def test_limited_images_are_at_equal_distances(save_json, hico):
    entries = [
        {"file_name": f"{n}.jpg", "annotations": [], "hoi_annotation": []} for n in range(10)
    ]
    file = load_annotations(save_json(entries), hico, "train")
    few = file.limited(4)
    assert [one.image_id for one in few.annotations] == ["0.jpg", "2.jpg", "5.jpg", "7.jpg"]
    assert (few.limit, few.digest) == (4, f"limit 4 {file.digest}")
    assert file.limited(None) is file.limited(10) is file and file.limit is None
    assert few.limited(4) is few


def test_clipped_boxes_are_no_reason_for_missing_labels(save_json, hico):
    entry = {"file_name": "a.jpg", "width": 10, "height": 10, "hoi_annotation": []}
    entry["annotations"] = [{"bbox": [1, 1, 20, 9], "category_id": 1}]
    file = load_annotations(save_json([entry]), hico, "train")
    assert file.issues
    with pytest.raises(InputError, match=r"expected labelled interactions, found none$"):
        file.require_labels()
