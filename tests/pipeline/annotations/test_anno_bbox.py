import copy
import json
from collections import Counter

import numpy as np
import pytest
from scipy.io import savemat

from pipeline.annotations.load import load_annotations
from pipeline.utils.errors import InputError

NOTHING = np.zeros((0, 0))
ACTIONS = [("ride", "bicycle"), ("hold", "bicycle"), ("sit_on", "bench")]
BOXES = {"human": [[1, 2, 30, 40]], "object": [[5, 6, 50, 60]]}


def struct(rows):
    """A struct array as MATLAB writes it: 1 x n, every field a value of its own."""
    array = np.zeros((1, len(rows)), dtype=[(name, object) for name in rows[0]])
    for index, row in enumerate(rows):
        for name, value in row.items():
            array[0, index][name] = value
    return array


def boxes(rows):
    if not rows:
        return NOTHING
    return struct([dict(zip(("x1", "y1", "x2", "y2"), row, strict=True)) for row in rows])


def hoi(action, humans=((1, 2, 30, 40),), targets=((5, 6, 50, 60),), connection=((1, 1),), invis=0):
    return {
        "id": float(action),
        "bboxhuman": boxes(humans),
        "bboxobject": boxes(targets),
        "connection": np.array(connection, dtype=float) if len(connection) else NOTHING,
        "invis": float(invis),
    }


def invisible(action):
    return hoi(action, (), (), (), invis=1)


def image(name, hois, size=(100.0, 80.0)):
    return {
        "filename": name,
        "size": struct([{"width": size[0], "height": size[1], "depth": 3.0}]),
        "hoi": struct(hois) if hois else NOTHING,
    }


TRAIN = [
    image("a.jpg", [hoi(1), hoi(2), invisible(3)]),
    image("b.jpg", [invisible(1)]),
    image("c.jpg", [hoi(3, [(1, 2, 9, 9)] * 2, [(3, 3, 8, 8), (4, 4, 20, 20)], [(1, 1), (2, 2)])]),
]
TEST = [image("d.jpg", [hoi(1)])]


@pytest.fixture
def write(tmp_path):
    def save_json(train=TRAIN, test=TEST, actions=ACTIONS):
        path = tmp_path / "anno_bbox.mat"
        table = [{"nname": noun, "vname": verb, "vname_ing": "x"} for verb, noun in actions]
        content = {"bbox_train": struct(train), "bbox_test": struct(test)}
        if table:
            content["list_action"] = struct(table).T
        savemat(path, content)
        return path

    return save_json


def test_both_parts_with_names_and_visible_pairs_only(write, hico):
    path = write()
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


def test_boxes_keep_the_numbers_that_the_json_forms_have(write, hico):
    (annotation,) = load_annotations(write(), hico, "test").annotations
    assert annotation.boxes.tolist() == [[1, 2, 30, 40], [5, 6, 50, 60]]


def test_single_images_interactions_and_connections_are_lists_too(write, hico):
    path = write(train=[image("a.jpg", [hoi(1)])], actions=ACTIONS[:1])
    (annotation,) = load_annotations(path, hico, "train").annotations
    assert annotation.hois.tolist() == [[0, 1, hico.verbs.index("ride")]]


def test_boxes_of_one_interaction_are_never_anothers(write, hico):
    path = write(train=[image("a.jpg", [hoi(1, connection=[(1, 2)]), hoi(2)])])
    file = load_annotations(path, hico, "train")
    assert file.annotations[0].hois[:, 2].tolist() == [hico.verbs.index("hold")]
    assert "pointing past the box list" in file.format_issues()
    with pytest.raises(InputError, match=r"a.jpg: hoi\(1\).connection\(1\): .*found \[1, 2\]"):
        load_annotations(path, hico, "train", strict=True)


def test_blemishes(write, hico):
    repeated = image("a.jpg", [hoi(1), hoi(1)])
    outside = image("b.jpg", [hoi(1, targets=[(5, 6, 500, 60)])])
    flat = image("c.jpg", [hoi(1, targets=[(5, 6, 5, 60)])])
    file = load_annotations(write(train=[repeated, outside, flat]), hico, "train")
    assert [len(a.hois) for a in file.annotations] == [1, 1, 0]
    assert sorted(file.issues.values()) == [1, 1, 1, 1]
    for number, field in enumerate((r"hoi\(2\).connection", "hoi.*bboxobject", "hoi.*bboxobject")):
        path = write(train=[[repeated, outside, flat][number]])
        with pytest.raises(InputError, match=field):
            load_annotations(path, hico, "train", strict=True)


def bad_box():
    whole = copy.deepcopy(TRAIN)
    whole[0]["hoi"][0, 0]["bboxhuman"][0, 0]["x1"] = float("nan")
    return whole


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"actions": [("ride", "bicicle")]}, r"list_action\(1\): expected"),
        ({"actions": []}, "list_action: expected"),
        ({"train": [image("a.jpg", [hoi(4)])]}, r"a.jpg: hoi\(1\).id: .*1 to 3, found 4"),
        ({"train": [image("a.jpg", [hoi(1.5)])]}, r"a.jpg: hoi\(1\).id: expected"),
        ({"train": [image("a.jpg", [invisible(1)])]}, "file: expected"),
        ({"train": [*TRAIN, TRAIN[0]]}, r"bbox_train\(4\).filename: expected"),
        ({"train": [image(3.0, [hoi(1)])]}, r"bbox_train\(1\).filename: expected"),
        ({"train": bad_box()}, r"a.jpg: hoi\(1\).bboxhuman\(1\): expected"),
        ({"train": [image("a.jpg", [hoi(1)], (0.0, 5.0))]}, r"a.jpg: size: expected"),
        (
            {"train": [image("a.jpg", [hoi(1, connection=[1, 1, 1])])]},
            r"\(1\).connection: expected",
        ),
        ({"train": [{"filename": "a.jpg", "hoi": NOTHING}]}, r"a.jpg: size: expected"),
        ({"train": [{**TRAIN[0], "hoi": 5.0}]}, r"a.jpg: hoi\(1\): expected"),
        ({"train": [image("a.jpg", [hoi(1, connection=[(np.nan, 1)])])]}, r"connection: expected"),
        ({"train": [image("a.jpg", [{**hoi(1), "bboxhuman": 3.0}])]}, r"bboxhuman\(1\): expected"),
        ({"actions": [(3.0, np.arange(3.0))]}, r"list_action\(1\): expected"),
    ],
)
def test_structural_errors_name_file_image_and_field(write, hico, change, says):
    with pytest.raises(InputError, match=says) as error:
        load_annotations(write(**change), hico, "train")
    assert "anno_bbox.mat" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("content", [b"", b"no MATLAB file" * 30, "truncated"])
def test_broken_files(write, hico, content):
    path = write()
    path.write_bytes(path.read_bytes()[:700] if content == "truncated" else content)
    with pytest.raises(InputError, match=r"anno_bbox.mat: expected"):
        load_annotations(path, hico, "train")


def test_no_such_file_and_no_such_part(tmp_path, write, hico):
    with pytest.raises(InputError, match=r"none.mat: no such"):
        load_annotations(tmp_path / "none.mat", hico, "train")
    with pytest.raises(InputError, match=r"part: expected.*found val"):
        load_annotations(write(), hico, "val")


def rows_to_hoi(action, rows):
    """One `hoi` of an action, from the pair form's (human box, object box) rows."""
    humans, targets = zip(*rows, strict=True)
    return hoi(action, humans, targets, [(row + 1, row + 1) for row in range(len(rows))])


def count_hois(annotation):
    return Counter(
        (*annotation.boxes[h].tolist(), *annotation.boxes[o].tolist(), annotation.labels[o], v)
        for h, o, v in annotation.hois
    )


def test_real_annotations_rewritten_as_structs_say_the_same(write, hico_det_files, save_json, hico):
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
    structs = load_annotations(write(test=images, actions=table), hico, "test", strict=True)
    pairs = load_annotations(save_json(some), hico, "test", strict=True)
    assert len(structs.annotations) == len(pairs.annotations) > 190
    for one, other in zip(structs.annotations, pairs.annotations, strict=True):
        assert one.image_id == other.image_id and count_hois(one) == count_hois(other)
