import copy
import json

import numpy as np
import pytest

from pipeline.annotations.load import load_annotations
from pipeline.utils.errors import InputError
from pipeline.vocabulary import load_vocabulary

# ride bicycle: verb 71 and object 1 of HICO-DET, COCO id 2.
ENTRY = {
    "file_name": "a.jpg",
    "width": 100,
    "height": 80,
    "annotations": [
        {"bbox": [10, 20, 30, 60], "category_id": 1},
        {"bbox": [5, 40, 50, 70.5], "category_id": 2},
    ],
    "hoi_annotation": [
        {"subject_id": 0, "object_id": 1, "category_id": 72, "hoi_category_id": 17},
    ],
}


def entry(**changes):
    return {**copy.deepcopy(ENTRY), **changes}


def changed(path, value):
    """A copy of ENTRY in which one nested value is replaced, or removed for `...`."""
    whole = copy.deepcopy(ENTRY)
    place = whole
    for key in path[:-1]:
        place = place[key]
    if value is ...:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return whole


def read(save_json, entries, vocabulary, strict=False):
    return load_annotations(save_json(entries), vocabulary, "train", strict)


def read_one(save_json, entry, vocabulary):
    (annotation,) = read(save_json, [entry], vocabulary).annotations
    return annotation


def test_empty_list_is_refused(save_json, hico):
    with pytest.raises(InputError, match=r"annotations.json: file: expected"):
        read(save_json, [], hico)


def test_image_without_boxes_is_kept(save_json, hico):
    annotation = read_one(save_json, entry(annotations=[], hoi_annotation=[]), hico)
    assert annotation.boxes.shape == (0, 4) and annotation.boxes.dtype == np.float32
    assert annotation.labels.shape == (0,) and annotation.labels.dtype == np.int64
    assert annotation.hois.shape == (0, 3) and annotation.hois.dtype == np.int64


def test_verbs_become_0_based_and_order_is_kept(save_json, hico):
    file = read(save_json, [ENTRY, entry(file_name="sub/b.jpg")], hico)
    first, second = file.annotations
    assert (first.image_id, second.image_id) == ("a.jpg", "sub/b.jpg")
    np.testing.assert_array_equal(first.boxes, np.float32([[10, 20, 30, 60], [5, 40, 50, 70.5]]))
    assert first.labels.tolist() == [0, 1]
    assert first.hois.tolist() == [[0, 1, 71]]
    assert file.format_issues() == "" and file.num_labels == 2 and file.part == "train"


def test_a_verb_without_object_needs_a_vocabulary_with_roles(save_json, hico, vcoco):
    alone = {"subject_id": 0, "object_id": -1, "category_id": 1}
    stand = read_one(save_json, entry(hoi_annotation=[alone]), vcoco)
    assert stand.hois.tolist() == [[0, -1, vcoco.verbs.index("stand")]]
    assert len(read_one(save_json, entry(hoi_annotation=[alone]), hico).hois) == 0


def test_published_vcoco_files_count_verbs_from_0(save_json, vcoco):
    hold = {"subject_id": 0, "object_id": 1, "category_id": 0}
    assert read_one(save_json, entry(hoi_annotation=[hold]), vcoco).hois.tolist() == [[0, 1, 0]]


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (["file_name"], ..., "entry 0: file_name: expected"),
        (["file_name"], 7, r"entry 0: file_name: expected.*found 7"),
        (["file_name"], "../a.jpg", "entry 0: file_name: .* below the images folder"),
        (["file_name"], "/a.jpg", "entry 0: file_name: .* below the images folder"),
        (["annotations"], ..., "a.jpg: annotations: .*the key is missing"),
        (["annotations"], {}, r"a.jpg: annotations: expected"),
        (["annotations", 1], [1, 2], r"a.jpg: annotations\[1\]: expected"),
        (["annotations", 1, "bbox"], ..., r"annotations\[1\].bbox: expected"),
        (["annotations", 1, "bbox"], [1, 2, 3], r"annotations\[1\].bbox: expected"),
        (["annotations", 1, "bbox"], [1, 2, float("nan"), 4], r"\[1\].bbox: .* nan, 4"),
        (["annotations", 1, "bbox"], [1, 2, float("inf"), 4], r"\[1\].bbox: .* inf"),
        (["annotations", 1, "bbox"], [1, 2, 10**400, 4], r"\[1\].bbox: expected"),
        (["annotations", 1, "bbox"], [1, "2", 3, 4], r"\[1\].bbox: .*'2'"),
        (["annotations", 1, "bbox"], [True, 2, 3, 4], r"\[1\].bbox: .*True"),
        (["annotations", 1, "bbox"], "1 2 3 4", r"\[1\].bbox: expected"),
        (["annotations", 1, "category_id"], ..., r"\[1\].category_id: expected"),
        (["annotations", 1, "category_id"], 12, r"category_id: .*from 1 to 90.*found 12"),
        (["annotations", 1, "category_id"], 0, r"category_id: .*from 1 to 90.*found 0"),
        (["annotations", 1, "category_id"], 2.0, "category_id: expected"),
        (["annotations", 1, "category_id"], [2], "category_id: expected"),
        (["hoi_annotation"], ..., "a.jpg: hoi_annotation: .*the key is missing"),
        (["hoi_annotation"], None, r"a.jpg: hoi_annotation: expected"),
        (["hoi_annotation", 0], 3, r"hoi_annotation\[0\]: expected"),
        (["hoi_annotation", 0, "subject_id"], ..., r"\[0\].subject_id: expected"),
        (["hoi_annotation", 0, "object_id"], "1", r"\[0\].object_id: expected"),
        (["hoi_annotation", 0, "category_id"], "ride", r"\[0\].category_id: expected"),
        (["hoi_annotation", 0, "category_id"], True, r"\[0\].category_id: expected"),
        (["hoi_annotation", 0, "category_id"], 118, "from 1 to 117, found 118"),
        (["hoi_annotation", 0, "category_id"], -1, "from 1 to 117, found -1"),
        (["hoi_annotation", 0, "category_id"], 0, "found 0; does this file count verbs from 0?"),
        (["width"], "100", r"a.jpg: width and height: expected"),
        (["width"], ..., r"a.jpg: width and height: expected"),
        (["height"], 0, r"a.jpg: width and height: expected"),
    ],
)
def test_structural_errors_name_file_image_and_field(save_json, hico, path, value, message):
    with pytest.raises(InputError, match=message) as error:
        read(save_json, [changed(path, value)], hico)
    assert "annotations.json" in str(error.value) and "\n" not in str(error.value)


def test_error_names_the_image(save_json, hico):
    good, bad = ENTRY, changed(["annotations", 0, "bbox"], [1, 2])
    with pytest.raises(InputError, match=r"b.jpg: annotations\[0\].bbox"):
        read(save_json, [good, {**bad, "file_name": "b.jpg"}], hico)


def test_repeated_image_is_refused(save_json, hico):
    with pytest.raises(InputError, match="entry 1: file_name: expected"):
        read(save_json, [ENTRY, ENTRY], hico)


def test_entry_that_is_not_an_object_is_refused(save_json, hico):
    with pytest.raises(InputError, match=r"entry 1: expected.*found 5"):
        read(save_json, [ENTRY, 5], hico)


def test_truncated_file_is_refused(tmp_path, hico):
    path = tmp_path / "half.json"
    path.write_text(json.dumps([ENTRY])[:60])
    with pytest.raises(InputError, match=r"half.json: line 1: expected JSON"):
        load_annotations(path, hico, "train")


def duplicated(field):
    return entry(**{field: ENTRY[field] * 2})


ISSUES = [
    (changed(["annotations", 1, "bbox"], [-5, 40, 50, 70]), "boxes over the image's edge", 2, 1),
    (changed(["annotations", 1, "bbox"], [5, 40, 101, 70]), "boxes over the image's edge", 2, 1),
    (changed(["annotations", 1, "bbox"], [5, 40, 5, 70]), "boxes without area", 1, 0),
    (changed(["annotations", 1, "bbox"], [50, 40, 5, 70]), "boxes without area", 1, 0),
    (changed(["annotations", 1, "bbox"], [200, 40, 300, 70]), "boxes without area", 1, 0),
    (changed(["hoi_annotation", 0, "object_id"], 2), "with a box index out of range", 2, 0),
    (changed(["hoi_annotation", 0, "object_id"], -1), "with a box index out of range", 2, 0),
    (changed(["hoi_annotation", 0, "subject_id"], -2), "with a box index out of range", 2, 0),
    (
        changed(["hoi_annotation", 0, "category_id"], 1),
        "not an interaction of the vocabulary",
        2,
        0,
    ),
    (changed(["hoi_annotation", 0, "subject_id"], 1), "subject is not a person", 2, 0),
    (duplicated("hoi_annotation"), "repeated labels", 2, 1),
]


@pytest.mark.parametrize(("changed_entry", "kind", "boxes", "hois"), ISSUES)
def test_issues_are_repaired_and_counted(save_json, hico, changed_entry, kind, boxes, hois):
    file = read(save_json, [changed_entry, entry(file_name="b.jpg")], hico)
    annotation = file.annotations[0]
    assert len(annotation.boxes) == len(annotation.labels) == boxes
    assert len(annotation.hois) == hois
    line = file.format_issues()
    assert line.startswith(str(file.path)) and kind in line and "\n" not in line
    assert (annotation.boxes >= 0).all() and (annotation.boxes <= [100, 80, 100, 80]).all()


@pytest.mark.parametrize("changed_entry", [row[0] for row in ISSUES])
def test_strict_refuses_issues(save_json, hico, changed_entry):
    with pytest.raises(InputError, match=r"annotations.json: a.jpg: (annotations|hoi_ann.*)\[\d\]"):
        read(save_json, [changed_entry], hico, strict=True)


def test_strict_accepts_a_valid_file(save_json, hico):
    assert len(read(save_json, [ENTRY], hico, strict=True).annotations) == 1


def test_issues_are_counted_by_kind(save_json, hico):
    file = read(
        save_json, [row[0] | {"file_name": f"{i}.jpg"} for i, row in enumerate(ISSUES)], hico
    )
    # The box beyond the image is clipped to nothing, so it counts as both.
    assert sorted(file.issues.values()) == [1, 1, 1, 3, 3, 3, 3]
    assert file.format_issues().count(", ") == 6


def test_without_size_only_negative_coordinates_are_clipped(save_json, hico):
    unsized = changed(["annotations", 0, "bbox"], [-3, 20, 9000, 60])
    del unsized["width"], unsized["height"]
    file = read(save_json, [unsized], hico)
    assert file.annotations[0].boxes[0].tolist() == [0, 20, 9000, 60]
    assert sum(file.issues.values()) == 1


def test_equal_boxes_are_merged(save_json, hico):
    twice = entry(
        annotations=[*ENTRY["annotations"], *ENTRY["annotations"], {**ENTRY["annotations"][0]}],
        hoi_annotation=[
            {"subject_id": 2, "object_id": 3, "category_id": 72},
            {"subject_id": 4, "object_id": 1, "category_id": 72},
        ],
    )
    file = read(save_json, [twice], hico)
    assert len(file.annotations[0].boxes) == 2
    assert file.annotations[0].hois.tolist() == [[0, 1, 71]]
    assert list(file.issues.values()) == [1]


def test_equal_boxes_of_different_objects_are_kept(save_json, hico):
    both = entry(annotations=[{"bbox": [1, 2, 3, 4], "category_id": c} for c in (1, 2)])
    assert len(read_one(save_json, both, hico).boxes) == 2


def shift_verbs(vocabulary, by, count):
    """A file whose verb ids are `by` too high, each with a valid object of the actual verb."""
    inner = [pair for pair in vocabulary.interactions if 0 < pair[0] < vocabulary.num_verbs - 1]
    rng = np.random.default_rng(0)
    entries = []
    for index, row in enumerate(rng.integers(0, len(inner), count)):
        verb, label = inner[row]
        entries.append(
            {
                "file_name": f"{index}.jpg",
                "annotations": [
                    {"bbox": [0, 0, 9, 9], "category_id": 1},
                    {"bbox": [9, 9, 30, 30], "category_id": vocabulary.category_ids[label]},
                ],
                "hoi_annotation": [
                    {
                        "subject_id": 0,
                        "object_id": 1,
                        "category_id": verb + vocabulary.first_verb_id + by,
                    }
                ],
            }
        )
    return entries


@pytest.mark.parametrize("name", ["hico-det", "vcoco"])
def test_verbs_counted_from_the_wrong_number_are_refused(save_json, name):
    vocabulary = load_vocabulary(name)
    assert (
        load_annotations(save_json(shift_verbs(vocabulary, 0, 60)), vocabulary, "train").num_labels
        == 60
    )
    by = -1 if vocabulary.first_verb_id else 1
    with pytest.raises(
        InputError, match=f"verbs counted from {vocabulary.first_verb_id}, found .* of"
    ):
        load_annotations(save_json(shift_verbs(vocabulary, by, 60)), vocabulary, "train")
    file = load_annotations(
        save_json(shift_verbs(vocabulary, by, 60)), vocabulary, "train", lenient=True
    )
    assert file.entry_errors and file.issues
    few = load_annotations(save_json(shift_verbs(vocabulary, by, 10)), vocabulary, "train")
    assert few.issues
