"""HICO-DET's `instances_*.json` and `anno_bbox.mat`."""

import copy

import numpy as np
import pytest
from scipy.io import savemat

from pipeline.annotations.load import load_annotations
from pipeline.utils.errors import InputError

# The file has category indices of its own, other than the vocabulary's.
FILE = {
    "filenames": ["a.jpg", "b.jpg", "c.jpg"],
    "size": [[100, 80], [50, 50], [60, 60]],
    "empty": [1],
    "objects": ["bicycle", "bench"],
    "verbs": ["sit_on", "ride", "no_interaction"],
    "correspondence": [[0, 0, 1], [1, 1, 0], [2, 0, 2]],
    "rare": [],
    "non_rare": [0, 1, 2],
    "annotation": [
        {
            "boxes_h": [[1, 2, 30, 40], [1, 2, 30, 40]],
            "boxes_o": [[5, 6, 50, 60], [7, 8, 70, 75]],
            "hoi": [0, 1],
            "object": [0, 1],
            "verb": [1, 0],
        },
        {"boxes_h": [], "boxes_o": [], "hoi": [], "object": [], "verb": []},
        {
            "boxes_h": [[1, 2, 30, 40]],
            "boxes_o": [[5, 6, 50, 60]],
            "hoi": [2],
            "object": [0],
            "verb": [2],
        },
    ],
}


@pytest.fixture
def read(save_json, hico):
    def run(value, strict=False):
        return load_annotations(save_json(value, "instances.json"), hico, "test", strict)

    return run


def test_images_without_pairs_are_left_out_and_categories_are_mapped_by_name(read, hico):
    file = read(FILE)
    assert [annotation.image_id for annotation in file.annotations] == ["a.jpg", "c.jpg"]
    first = file.annotations[0]
    assert [hico.objects[label] for label in first.labels] == ["person", "bicycle", "bench"]
    ride, sit_on = hico.verbs.index("ride"), hico.verbs.index("sit_on")
    assert first.hois.tolist() == [[0, 1, ride], [0, 2, sit_on]]
    assert file.format_issues() == "" and file.unlabelled == {"b.jpg"}


ENTRY = ("annotation", 0)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (["annotation"], [FILE["annotation"][1]] * 3, "file: expected"),
        (["filenames"], [], "filenames: expected"),
        (["filenames"], ["a.jpg", "b.jpg"], "annotation: expected 2 entries, as in filenames"),
        (["filenames", 1], "a.jpg", r"filenames\[1\]: expected"),
        (["size"], [[1, 1]], "size: expected 3 entries"),
        (["objects", 0], "bicicle", r"objects\[0\]: expected"),
        (["verbs", 1], 5, r"verbs\[1\]: expected"),
        (["correspondence", 1], [1, 2, 0], r"correspondence\[1\]: expected \[hoi, object below 2"),
        ([*ENTRY, "hoi"], ..., "a.jpg: hoi: .*the key is missing"),
        ([*ENTRY, "boxes_h"], [[1, 2, 30, 40]], "boxes_h: expected 2 entries"),
        ([*ENTRY, "boxes_o", 1], [1, 2, 3], r"a.jpg: boxes_o\[1\]: expected"),
        ([*ENTRY, "hoi", 0], 3, r"a.jpg: hoi\[0\]: expected"),
        ([*ENTRY, "object", 0], 1, r"hoi\[0\]: expected the interaction of object 1 and"),
    ],
)
def test_structural_errors_name_file_image_and_field(read, changed, path, value, message):
    with pytest.raises(InputError, match=message) as error:
        read(changed(FILE, path, value))
    assert "instances.json" in str(error.value) and "\n" not in str(error.value)


def test_sizes_are_optional(read, changed):
    unsized = changed(FILE, ["size"], ...)
    wide = changed(unsized, [*ENTRY, "boxes_o", 0], [5, 6, 5000, 60])
    assert read(wide).annotations[0].boxes.max() == 5000


@pytest.mark.parametrize(("key", "box"), [("boxes_o", [7, 8, 170, 75]), ("boxes_h", [7, 8, 7, 75])])
def test_issues_are_counted_or_refused(read, changed, key, box):
    value = changed(FILE, [*ENTRY, key, 1], box)
    assert sum(read(value).issues.values()) >= 1
    with pytest.raises(InputError, match=rf"instances.json: a.jpg: {key}\[1\]"):
        read(value, strict=True)


def hoi_table(file):
    """(N, 11): image, both boxes, object and verb of every labelled interaction, sorted."""
    rows = []
    for number, annotation in enumerate(file.annotations):
        humans, objects, verbs = annotation.hois.T
        row = (annotation.boxes[humans], annotation.boxes[objects], annotation.labels[objects])
        rows.append(np.column_stack([np.full(len(verbs), number), *row, verbs]))
    table = np.concatenate(rows)
    return table[np.lexsort(table.T)]


def test_both_json_forms_of_the_real_annotations_are_equal(hico_det_files, hico):
    pairs = load_annotations(hico_det_files / "instances_test2015.json", hico, "test", strict=True)
    boxes = load_annotations(hico_det_files / "test_hico.json", hico, "test", strict=True)
    assert len(pairs.annotations) == len(boxes.annotations) == 9546
    assert pairs.num_labels == boxes.num_labels == 33405
    assert [one.image_id for one in pairs.annotations] == [
        two.image_id for two in boxes.annotations
    ]
    table = hoi_table(boxes)
    np.testing.assert_array_equal(hoi_table(pairs), table)
    labels, verbs = table[:, 9:].astype(int).T
    assert len(np.unique(hico.interaction_ids[verbs, labels])) == hico.num_interactions


EMPTY_ARRAY = np.zeros((0, 0))
ACTIONS = [("ride", "bicycle"), ("hold", "bicycle"), ("sit_on", "bench")]


def struct(rows):
    """A struct array of shape 1 x n, as MATLAB writes it."""
    array = np.zeros((1, len(rows)), dtype=[(name, object) for name in rows[0]])
    for index, row in enumerate(rows):
        for name, value in row.items():
            array[0, index][name] = value
    return array


def boxes(rows):
    if not rows:
        return EMPTY_ARRAY
    return struct([dict(zip(("x1", "y1", "x2", "y2"), row, strict=True)) for row in rows])


def hoi(action, humans=((1, 2, 30, 40),), targets=((5, 6, 50, 60),), connection=((1, 1),), invis=0):
    return {
        "id": float(action),
        "bboxhuman": boxes(humans),
        "bboxobject": boxes(targets),
        "connection": np.array(connection, dtype=float) if len(connection) else EMPTY_ARRAY,
        "invis": float(invis),
    }


def invisible(action):
    return hoi(action, (), (), (), invis=1)


def image(name, hois, size=(100.0, 80.0)):
    return {
        "filename": name,
        "size": struct([{"width": size[0], "height": size[1], "depth": 3.0}]),
        "hoi": struct(hois) if hois else EMPTY_ARRAY,
    }


MAT_TRAIN = [
    image("a.jpg", [hoi(1), hoi(2), invisible(3), hoi(3, invis=1)]),
    image("b.jpg", [invisible(1)]),
    image("c.jpg", [hoi(3, [(1, 2, 9, 9)] * 2, [(3, 3, 8, 8), (4, 4, 20, 20)], [(1, 1), (2, 2)])]),
]
MAT_TEST = [image("d.jpg", [hoi(1)])]


@pytest.fixture
def write_mat(tmp_path):
    def write(train=MAT_TRAIN, test=MAT_TEST, actions=ACTIONS):
        path = tmp_path / "anno_bbox.mat"
        table = [{"nname": noun, "vname": verb, "vname_ing": "x"} for verb, noun in actions]
        content = {"bbox_train": struct(train), "bbox_test": struct(test)}
        if table:
            content["list_action"] = struct(table).T
        savemat(path, content)
        return path

    return write


def test_mat_has_both_parts_and_only_visible_pairs(write_mat, hico):
    path = write_mat()
    train = load_annotations(path, hico, "train", strict=True)
    test = load_annotations(path, hico, "test", strict=True)
    assert [a.image_id for a in train.annotations] == ["a.jpg", "c.jpg"]
    assert [a.image_id for a in test.annotations] == ["d.jpg"]
    first, second = train.annotations
    ride, hold, sit_on = (hico.verbs.index(verb) for verb, _ in ACTIONS)
    assert first.hois.tolist() == [[0, 1, ride], [0, 1, hold]]
    assert [hico.objects[label] for label in first.labels] == ["person", "bicycle"]
    assert second.hois.tolist() == [[0, 1, sit_on], [0, 2, sit_on]]
    assert test.annotations[0].boxes.tolist() == [[1, 2, 30, 40], [5, 6, 50, 60]]
    assert (train.part, test.part) == ("train", "test")


def test_mat_single_elements_are_read_as_lists(write_mat, hico):
    path = write_mat(train=[image("a.jpg", [hoi(1)])], actions=ACTIONS[:1])
    (annotation,) = load_annotations(path, hico, "train").annotations
    assert annotation.hois.tolist() == [[0, 1, hico.verbs.index("ride")]]


def test_mat_connections_refer_to_boxes_of_their_interaction(write_mat, hico):
    path = write_mat(train=[image("a.jpg", [hoi(1, connection=[(1, 2)]), hoi(2)])])
    file = load_annotations(path, hico, "train")
    assert file.annotations[0].hois[:, 2].tolist() == [hico.verbs.index("hold")]
    assert "with a box index out of range" in file.format_issues()
    with pytest.raises(InputError, match=r"a.jpg: hoi\(1\).connection\(1\): .*found \[1, 2\]"):
        load_annotations(path, hico, "train", strict=True)


def test_mat_issues_are_counted_or_refused(write_mat, hico):
    repeated = image("a.jpg", [hoi(1), hoi(1)])
    outside = image("b.jpg", [hoi(1, targets=[(5, 6, 500, 60)])])
    flat = image("c.jpg", [hoi(1, targets=[(5, 6, 5, 60)])])
    file = load_annotations(write_mat(train=[repeated, outside, flat]), hico, "train")
    assert [len(a.hois) for a in file.annotations] == [1, 1, 0]
    assert sorted(file.issues.values()) == [1, 1, 1, 1]
    for number, field in enumerate((r"hoi\(2\).connection", "hoi.*bboxobject", "hoi.*bboxobject")):
        path = write_mat(train=[[repeated, outside, flat][number]])
        with pytest.raises(InputError, match=field):
            load_annotations(path, hico, "train", strict=True)


def bad_box():
    whole = copy.deepcopy(MAT_TRAIN)
    whole[0]["hoi"][0, 0]["bboxhuman"][0, 0]["x1"] = float("nan")
    return whole


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"actions": [("ride", "bicicle")]}, r"list_action\(1\): expected"),
        ({"actions": []}, "list_action: expected"),
        ({"train": [image("a.jpg", [hoi(4)])]}, r"a.jpg: hoi\(1\).id: .*1 to 3, found 4"),
        ({"train": [image("a.jpg", [hoi(1.5)])]}, "a.jpg: hoi.*id: expected"),
        ({"train": [image("a.jpg", [hoi(1, connection=[1, 1, 1])])]}, "connection.*: expected"),
        ({"train": [image("a.jpg", [invisible(1)])]}, "file: expected"),
        ({"train": [*MAT_TRAIN, MAT_TRAIN[0]]}, r"bbox_train\(4\).filename: expected"),
        ({"train": bad_box()}, "a.jpg: hoi.*bboxhuman.*x1: expected .*found nan"),
        ({"train": [image("a.jpg", [hoi(1)], (0.0, 5.0))]}, "a.jpg: size.width: expected"),
        ({"train": [image("a.jpg", [hoi(1, connection=[(np.nan, 1)])])]}, "connection.*: expected"),
        ({"train": [{**MAT_TRAIN[0], "hoi": 5.0}]}, "a.jpg: hoi: expected"),
    ],
)
def test_mat_structural_errors_name_file_image_and_field(write_mat, hico, change, message):
    with pytest.raises(InputError, match=message) as error:
        load_annotations(write_mat(**change), hico, "train")
    assert "anno_bbox.mat" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("content", [b"", b"no MATLAB file" * 30, "truncated"])
def test_mat_damaged_files_are_refused(write_mat, hico, content):
    path = write_mat()
    path.write_bytes(path.read_bytes()[:700] if content == "truncated" else content)
    with pytest.raises(InputError, match=r"anno_bbox.mat: expected"):
        load_annotations(path, hico, "train")


def test_mat_without_the_part_is_refused(write_mat, hico):
    with pytest.raises(InputError, match=r"part: expected.*found val"):
        load_annotations(write_mat(), hico, "val")
