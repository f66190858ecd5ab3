"""Files of the HOIA format, and the issues that all formats share."""

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
BOX, LABEL = ("annotations", 1, "bbox"), ("hoi_annotation", 0)


@pytest.fixture
def read(save_json, hico):
    def run(*entries, vocabulary=hico, **options):
        return load_annotations(save_json(entries), vocabulary, "train", **options)

    return run


def test_verbs_become_0_based_and_order_is_kept(read):
    file = read(ENTRY, {**ENTRY, "file_name": "sub/b.jpg"}, strict=True)
    first, second = file.annotations
    assert (first.image_id, second.image_id) == ("a.jpg", "sub/b.jpg")
    np.testing.assert_array_equal(first.boxes, np.float32([[10, 20, 30, 60], [5, 40, 50, 70.5]]))
    assert first.labels.tolist() == [0, 1] and first.hois.tolist() == [[0, 1, 71]]
    assert file.format_issues() == "" and file.num_labels == 2 and file.part == "train"


def test_image_without_boxes_is_kept(read):
    (one,) = read({**ENTRY, "annotations": [], "hoi_annotation": []}).annotations
    assert (one.boxes.shape, one.boxes.dtype) == ((0, 4), np.float32)
    assert (one.labels.shape, one.labels.dtype) == ((0,), np.int64)
    assert (one.hois.shape, one.hois.dtype) == ((0, 3), np.int64)


def test_vcoco_files_count_verbs_from_0_and_have_verbs_without_object(read, changed, vcoco):
    alone = {"subject_id": 0, "object_id": -1, "category_id": 1}
    hold = {"subject_id": 0, "object_id": 1, "category_id": 0}
    entry = {**ENTRY, "hoi_annotation": [alone, hold]}
    (annotation,) = read(entry, vocabulary=vcoco).annotations
    assert annotation.hois.tolist() == [[0, -1, vcoco.verbs.index("stand")], [0, 1, 0]]
    assert len(read({**ENTRY, "hoi_annotation": [alone]}).annotations[0].hois) == 0


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (["file_name"], ..., "entry 0: file_name: expected"),
        (["file_name"], "../a.jpg", "entry 0: file_name: .* below the images folder"),
        (["file_name"], "/a.jpg", "entry 0: file_name: .* below the images folder"),
        (["annotations"], ..., "a.jpg: annotations: .*the key is missing"),
        (["annotations", 1], [1, 2], r"a.jpg: annotations\[1\]: expected"),
        (BOX, [1, 2, 3], r"annotations\[1\].bbox: expected .*found \[1, 2, 3\]"),
        (BOX, [1, 2, float("nan"), 4], r"\[1\].bbox: .* nan, 4"),
        (BOX, [1, 2, 10**400, 4], r"\[1\].bbox: expected"),
        (BOX, [True, 2, 3, 4], r"\[1\].bbox: .*True"),
        (["annotations", 1, "category_id"], 12, "category_id: .*from 1 to 90.*found 12"),
        ([*LABEL, "subject_id"], ..., r"\[0\].subject_id: expected"),
        ([*LABEL, "category_id"], 118, "from 1 to 117, found 118"),
        ([*LABEL, "category_id"], 0, "found 0; does this file count verbs from 0?"),
        (["width"], ..., "a.jpg: width and height: expected"),
        (["height"], 0, "a.jpg: width and height: expected"),
    ],
)
def test_structural_errors_name_file_image_and_field(read, changed, path, value, message):
    with pytest.raises(InputError, match=message) as error:
        read(changed(ENTRY, path, value))
    assert "annotations.json" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([], "annotations.json: file: expected"),
        ([ENTRY, ENTRY], "entry 1: file_name: expected"),
        ([ENTRY, 5], "entry 1: expected.*found 5"),
    ],
)
def test_wrong_lists_are_refused(read, entries, message):
    with pytest.raises(InputError, match=message):
        read(*entries)


def test_truncated_file_is_refused(tmp_path, hico):
    path = tmp_path / "half.json"
    path.write_text(json.dumps([ENTRY])[:60])
    with pytest.raises(InputError, match=r"half.json: line 1: expected JSON"):
        load_annotations(path, hico, "train")


EDGE, AREA, RANGE = "1 box over the image's edge", "1 box without area", "box index out of range"
# A change, the kind of the issue, and the numbers of boxes and labels that are left.
ISSUES = [
    (BOX, [-5, 40, 50, 70], EDGE, 2, 1),
    (BOX, [5, 40, 101, 70], EDGE, 2, 1),
    (BOX, [5, 40, 5, 70], AREA, 1, 0),
    (BOX, [50, 40, 5, 70], AREA, 1, 0),
    (BOX, [200, 40, 300, 70], AREA, 1, 0),
    ([*LABEL, "object_id"], 2, RANGE, 2, 0),
    ([*LABEL, "object_id"], -1, RANGE, 2, 0),
    ([*LABEL, "subject_id"], -2, RANGE, 2, 0),
    ([*LABEL, "category_id"], 1, "1 label of no interaction of the vocabulary", 2, 0),
    ([*LABEL, "subject_id"], 1, "1 label whose subject is not a person", 2, 0),
    (["hoi_annotation"], ENTRY["hoi_annotation"] * 2, "1 repeated label ", 2, 1),
]


@pytest.mark.parametrize(("path", "value", "kind", "boxes", "hois"), ISSUES)
def test_issues_are_repaired_and_counted_or_refused(read, changed, path, value, kind, boxes, hois):
    entry = changed(ENTRY, path, value)
    file = read(entry, {**ENTRY, "file_name": "b.jpg"})
    annotation = file.annotations[0]
    assert len(annotation.boxes) == len(annotation.labels) == boxes
    assert len(annotation.hois) == hois
    line = file.format_issues()
    assert line.startswith(str(file.path)) and kind in line and "\n" not in line
    assert (annotation.boxes >= 0).all() and (annotation.boxes <= [100, 80, 100, 80]).all()
    with pytest.raises(InputError, match=r"annotations.json: a.jpg: (annotations|hoi_ann.*)\[\d\]"):
        read(entry, strict=True)


def test_issues_are_counted_by_kind(read, changed):
    entries = [
        {**changed(ENTRY, path, value), "file_name": f"{index}.jpg"}
        for index, (path, value, *_) in enumerate(ISSUES)
    ]
    # The box beyond the image is clipped to nothing, so it counts as both.
    assert sorted(read(*entries).issues.values()) == [1, 1, 1, 3, 3, 3, 3]


def test_without_size_only_negative_coordinates_are_clipped(read):
    row = {"bbox": [-3, 20, 9000, 60], "category_id": 1}
    file = read({"file_name": "a.jpg", "annotations": [row], "hoi_annotation": []})
    assert file.annotations[0].boxes[0].tolist() == [0, 20, 9000, 60]
    assert sum(file.issues.values()) == 1


def test_equal_boxes_of_one_object_are_merged(read):
    person, bicycle = ENTRY["annotations"]
    labels = [{"subject_id": s, "object_id": o, "category_id": 72} for s, o in ((2, 3), (4, 1))]
    rows = [person, bicycle, person, bicycle, person]
    file = read({**ENTRY, "annotations": rows, "hoi_annotation": labels})
    assert len(file.annotations[0].boxes) == 2
    assert file.annotations[0].hois.tolist() == [[0, 1, 71]]
    assert list(file.issues.values()) == [1]
    both = [{"bbox": [1, 2, 3, 4], "category_id": category} for category in (1, 2)]
    (kept,) = read({**ENTRY, "annotations": both}).annotations
    assert len(kept.boxes) == 2


def shift_verbs(vocabulary, by, count):
    """Entries whose verb ids are `by` too high, each with a valid object of the actual verb."""
    inner = [pair for pair in vocabulary.interactions if 0 < pair[0] < vocabulary.num_verbs - 1]
    rng = np.random.default_rng(0)
    for index, row in enumerate(rng.integers(0, len(inner), count)):
        verb, label = inner[row]
        number = verb + vocabulary.first_verb_id + by
        yield {
            "file_name": f"{index}.jpg",
            "annotations": [
                {"bbox": [0, 0, 9, 9], "category_id": 1},
                {"bbox": [9, 9, 30, 30], "category_id": vocabulary.category_ids[label]},
            ],
            "hoi_annotation": [{"subject_id": 0, "object_id": 1, "category_id": number}],
        }


@pytest.mark.parametrize("name", ["hico-det", "vcoco"])
def test_verbs_counted_from_the_wrong_number_are_refused(read, name):
    vocabulary = load_vocabulary(name)
    assert read(*shift_verbs(vocabulary, 0, 60), vocabulary=vocabulary).num_labels == 60
    wrong = list(shift_verbs(vocabulary, -1 if vocabulary.first_verb_id else 1, 60))
    message = f"verbs counted from {vocabulary.first_verb_id}, found .* of"
    with pytest.raises(InputError, match=message):
        read(*wrong, vocabulary=vocabulary)
    file = read(*wrong, vocabulary=vocabulary, lenient=True)
    assert file.entry_errors and file.issues
    assert read(*wrong[:10], vocabulary=vocabulary).issues
