import copy
import json
from collections import Counter

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


def changed(path, value):
    whole = copy.deepcopy(FILE)
    place = whole
    for key in path[:-1]:
        place = place[key]
    if value is ...:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return whole


def read(save_json, value, vocabulary, strict=False):
    return load_annotations(save_json(value, "instances.json"), vocabulary, "test", strict)


def test_images_without_pairs_are_left_out_and_categories_are_mapped_by_name(save_json, hico):
    file = read(save_json, FILE, hico)
    assert [annotation.image_id for annotation in file.annotations] == ["a.jpg", "c.jpg"]
    first = file.annotations[0]
    assert [hico.objects[label] for label in first.labels] == ["person", "bicycle", "bench"]
    ride, sit_on = hico.verbs.index("ride"), hico.verbs.index("sit_on")
    assert first.hois.tolist() == [[0, 1, ride], [0, 2, sit_on]]
    assert file.format_issues() == ""


def test_a_file_without_annotated_images_is_refused(save_json, hico):
    empty = {**FILE, "annotation": [FILE["annotation"][1]] * 3}
    with pytest.raises(InputError, match="file: expected"):
        read(save_json, empty, hico)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (["filenames"], [], "filenames: expected"),
        (["filenames"], ["a.jpg", "b.jpg"], "annotation: expected 2 entries, as in filenames"),
        (["filenames", 1], "a.jpg", r"filenames\[1\]: expected"),
        (["filenames", 1], None, r"filenames\[1\]: expected"),
        (["size"], [[1, 1]], "size: expected 3 entries"),
        (["size", 0], [100], r"a.jpg: size: expected"),
        (["objects", 0], "bicicle", r"objects\[0\]: expected"),
        (["objects", 0], [1], r"objects\[0\]: expected"),
        (["verbs"], ..., "verbs: expected"),
        (["verbs", 1], 5, r"verbs\[1\]: expected"),
        (["correspondence"], ..., "correspondence: expected"),
        (["correspondence", 1], [1, 2, 0], r"correspondence\[1\]: expected \[hoi, object below 2"),
        (["correspondence", 1], [1, 1], r"correspondence\[1\]: expected \[hoi, object below 2"),
        (["annotation", 0], 3, r"a.jpg: annotation: expected"),
        (["annotation", 0, "hoi"], ..., "a.jpg: hoi: .*the key is missing"),
        (["annotation", 0, "boxes_h"], 4, r"a.jpg: boxes_h: expected"),
        (["annotation", 0, "boxes_h"], [[1, 2, 30, 40]], "boxes_h: expected 2 entries"),
        (["annotation", 0, "boxes_o", 1], [1, 2, 3], r"a.jpg: boxes_o\[1\]: expected"),
        (["annotation", 0, "boxes_h", 0, 2], float("nan"), r"a.jpg: boxes_h\[0\]: expected"),
        (["annotation", 0, "object", 0], 1, r"hoi\[0\]: expected the interaction of object 1 and"),
        (["annotation", 0, "object", 0], 0.0, r"a.jpg: object\[0\]: expected"),
        (["annotation", 0, "verb", 0], "ride", r"a.jpg: verb\[0\]: expected"),
        (["annotation", 0, "hoi", 0], 3, r"a.jpg: hoi\[0\]: expected"),
        (["annotation", 0, "hoi", 0], [3], r"a.jpg: hoi\[0\]: expected"),
    ],
)
def test_structural_errors_name_file_image_and_field(save_json, hico, path, value, message):
    with pytest.raises(InputError, match=message) as error:
        read(save_json, changed(path, value), hico)
    assert "instances.json" in str(error.value) and "\n" not in str(error.value)


def test_sizes_are_optional(save_json, hico):
    unsized = changed(["size"], ...)
    unsized["annotation"][0]["boxes_o"][0] = [5, 6, 5000, 60]
    assert read(save_json, unsized, hico).annotations[0].boxes.max() == 5000


@pytest.mark.parametrize(
    ("path", "value", "field"),
    [
        (["annotation", 0, "boxes_o", 1], [7, 8, 170, 75], r"boxes_o\[1\]"),
        (["annotation", 0, "boxes_h", 1], [7, 8, 7, 75], r"boxes_h\[1\]"),
    ],
)
def test_issues_are_counted_or_refused(save_json, hico, path, value, field):
    assert sum(read(save_json, changed(path, value), hico).issues.values()) >= 1
    with pytest.raises(InputError, match=f"instances.json: a.jpg: {field}"):
        read(save_json, changed(path, value), hico, strict=True)


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
BOXES = {"human": [[1, 2, 30, 40]], "object": [[5, 6, 50, 60]]}


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
    image("a.jpg", [hoi(1), hoi(2), invisible(3)]),
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
    assert (train.part, test.part) == ("train", "test")


def test_mat_boxes_have_the_coordinates_of_the_json_files(write_mat, hico):
    (annotation,) = load_annotations(write_mat(), hico, "test").annotations
    assert annotation.boxes.tolist() == [[1, 2, 30, 40], [5, 6, 50, 60]]


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
        ({"train": [image("a.jpg", [hoi(1.5)])]}, r"a.jpg: hoi\(1\).id: expected"),
        ({"train": [image("a.jpg", [invisible(1)])]}, "file: expected"),
        ({"train": [*MAT_TRAIN, MAT_TRAIN[0]]}, r"bbox_train\(4\).filename: expected"),
        ({"train": [image(3.0, [hoi(1)])]}, r"bbox_train\(1\).filename: expected"),
        ({"train": bad_box()}, r"a.jpg: hoi\(1\).bboxhuman\(1\): expected"),
        ({"train": [image("a.jpg", [hoi(1)], (0.0, 5.0))]}, r"a.jpg: size: expected"),
        (
            {"train": [image("a.jpg", [hoi(1, connection=[1, 1, 1])])]},
            r"\(1\).connection: expected",
        ),
        ({"train": [{"filename": "a.jpg", "hoi": EMPTY_ARRAY}]}, r"a.jpg: size: expected"),
        ({"train": [{**MAT_TRAIN[0], "hoi": 5.0}]}, r"a.jpg: hoi\(1\): expected"),
        ({"train": [image("a.jpg", [hoi(1, connection=[(np.nan, 1)])])]}, r"connection: expected"),
        ({"train": [image("a.jpg", [{**hoi(1), "bboxhuman": 3.0}])]}, r"bboxhuman\(1\): expected"),
        ({"actions": [(3.0, np.arange(3.0))]}, r"list_action\(1\): expected"),
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


def test_mat_missing_file_and_unknown_part(tmp_path, write_mat, hico):
    with pytest.raises(InputError, match=r"none.mat: no such"):
        load_annotations(tmp_path / "none.mat", hico, "train")
    with pytest.raises(InputError, match=r"part: expected.*found val"):
        load_annotations(write_mat(), hico, "val")


def rows_to_hoi(action, rows):
    """One `hoi` of an action from rows of (human box, object box)."""
    humans, targets = zip(*rows, strict=True)
    return hoi(action, humans, targets, [(row + 1, row + 1) for row in range(len(rows))])


def count_hois(annotation):
    return Counter(
        (*annotation.boxes[h].tolist(), *annotation.boxes[o].tolist(), annotation.labels[o], v)
        for h, o, v in annotation.hois
    )


def test_mat_real_annotations_rewritten_as_structs_are_equal(
    write_mat, hico_det_files, save_json, hico
):
    real = json.loads((hico_det_files / "instances_test2015.json").read_text())
    some = {
        key: value[:200] if key in ("filenames", "size", "annotation") else value
        for key, value in real.items()
    }
    images = []
    for name, size, entry in zip(some["filenames"], some["size"], some["annotation"], strict=True):
        actions = sorted(set(entry["hoi"]))
        hois = [
            rows_to_hoi(
                action + 1,
                [
                    (human, target)
                    for human, target, number in zip(
                        entry["boxes_h"], entry["boxes_o"], entry["hoi"], strict=True
                    )
                    if number == action
                ],
            )
            for action in actions
        ]
        images.append(image(name, hois or [invisible(1)], tuple(map(float, size))))
    table = [(hico.verbs[verb], hico.objects[label]) for verb, label in hico.interactions]
    structs = load_annotations(write_mat(test=images, actions=table), hico, "test", strict=True)
    pairs = load_annotations(save_json(some), hico, "test", strict=True)
    assert len(structs.annotations) == len(pairs.annotations) > 190
    for one, other in zip(structs.annotations, pairs.annotations, strict=True):
        assert one.image_id == other.image_id and count_hois(one) == count_hois(other)
