import json

import pytest

from pipeline.annotations.vcoco import VcocoAction, read_actions
from pipeline.utils.errors import InputError

HOLD = {
    "action_name": "hold",
    "role_name": ["agent", "obj"],
    "image_id": [7, 7, 9],
    "ann_id": [1, 2, 3],
    "label": [1, 0, 1],
    "role_object_id": [1, 2, 3, 55, 0, 0],
}
STAND = {**HOLD, "action_name": "stand", "role_name": ["agent"], "role_object_id": [1, 2, 3]}


def test_reads_people_actions_and_objects(save_json):
    table = read_actions(save_json([HOLD, {**STAND, "label": [0, 1, 0]}]))
    assert table.actions == (VcocoAction("hold", ("obj",)), VcocoAction("stand", ()))
    assert table.image_ids == {7, 9} and table.people_by_image[7] == [1, 2]
    assert list(table.actions_of(1)) == [(0, (55,))]
    assert list(table.actions_of(2)) == [(1, ())]
    assert list(table.actions_of(3)) == [(0, (0,))]
    assert list(table.actions_of(4)) == []


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ([], "file: expected"),
        ({}, "file: expected"),
        ([3], "entry 0: action_name: expected"),
        ([{**HOLD, "action_name": ""}], "entry 0: action_name: expected"),
        ([{**HOLD, "role_name": ["obj"]}], "hold: role_name: expected"),
        ([{**HOLD, "role_name": ["agent", "obj", "obj"]}], "hold: role_name: expected"),
        ([{**HOLD, "role_name": None}], "hold: role_name: expected"),
        ([{**HOLD, "image_id": [7, 9]}], "hold: ann_id and label: expected 2 entries each"),
        ([{**HOLD, "label": [1, 0]}], "hold: ann_id and label: expected 3 entries each"),
        ([{**HOLD, "label": [1, 0, 2]}], "hold: label: expected 0 or 1, found 2"),
        ([{**HOLD, "label": [1, 0, 0.5]}], "hold: label: expected"),
        ([{**HOLD, "label": [1, [0], 1]}], "hold: label: expected"),
        ([{**HOLD, "ann_id": None}], "hold: ann_id: expected"),
        ([{**HOLD, "ann_id": [1, 2, 1]}], "hold: ann_id: expected"),
        ([{**HOLD, "role_object_id": [1, 2, 3]}], "hold: role_object_id: expected 6 entries"),
        ([HOLD, {**STAND, "ann_id": [1, 2, 4]}], "stand: ann_id: expected"),
        (
            [{**HOLD, "image_id": [], "ann_id": [], "label": [], "role_object_id": []}],
            "hold: ann_id: expected",
        ),
    ],
)
def test_wrong_entries_are_named(save_json, value, says):
    with pytest.raises(InputError, match=f"annotations.json: {says}"):
        read_actions(save_json(value))


def test_real_and_damaged_files(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps([HOLD])[:-9])
    with pytest.raises(InputError, match="expected JSON"):
        read_actions(tmp_path / "a.json")
    with pytest.raises(InputError, match=r"b\.json: no such"):
        read_actions(tmp_path / "b.json")
