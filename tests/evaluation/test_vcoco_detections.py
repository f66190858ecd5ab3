import json
import pickle

import numpy as np
import pytest

from evaluation.vcoco_detections import CHUNK, read_detections, write_detections
from pipeline.annotations.vcoco_actions import VcocoAction
from pipeline.errors import InputError

ACTIONS = (VcocoAction("hold", ("obj",)), VcocoAction("run", ()))
ENTRY = {
    "image_id": 7,
    "person_box": [1, 2, 3.5, 4],
    "hold_agent": 0.25,
    "hold_obj": [0, 0, 9, 9, 0.5],
    "run_agent": float("nan"),
    "another_project": "ignored",
}


@pytest.fixture
def save(tmp_path):
    def write(value, name="detections.json"):
        path = tmp_path / name
        path.write_text(value if isinstance(value, str) else json.dumps(value))
        return path

    return write


def test_nothing(save, tmp_path):
    found = read_detections(save([]), ACTIONS)
    assert len(found) == 0 and found.columns["hold_obj"].shape == (0, 5)
    for name in ("a.json", "a.npz"):
        write_detections(tmp_path / name, found)
        assert len(read_detections(tmp_path / name, ACTIONS)) == 0


def test_reads_the_official_layout(save):
    found = read_detections(save([ENTRY, {**ENTRY, "image_id": 9}]), ACTIONS)
    assert found.image_ids.tolist() == [7, 9]
    assert found.person_boxes[0].tolist() == [1, 2, 3.5, 4]
    boxes, scores = found.role(ACTIONS[0], "obj")
    assert boxes[1].tolist() == [0, 0, 9, 9] and scores.tolist() == [0.5, 0.5]
    assert np.isnan(found.agent(ACTIONS[1])).all()
    assert set(found.columns) == {"hold_agent", "hold_obj", "run_agent"}


def test_long_files_are_read_in_pieces(save):
    entries = [{**ENTRY, "image_id": row} for row in range(2 * CHUNK + 3)]
    found = read_detections(save(entries), ACTIONS)
    np.testing.assert_array_equal(found.image_ids, np.arange(2 * CHUNK + 3))


@pytest.mark.parametrize("name", ["a.json", "a.npz"])
def test_round_trip(save, tmp_path, name):
    before = read_detections(save([ENTRY, {**ENTRY, "hold_agent": 0.1}]), ACTIONS)
    write_detections(tmp_path / "new" / name, before)
    after = read_detections(tmp_path / "new" / name, ACTIONS)
    np.testing.assert_array_equal(before.image_ids, after.image_ids)
    np.testing.assert_array_equal(before.person_boxes, after.person_boxes)
    for column in before.columns:
        np.testing.assert_array_equal(before.columns[column], after.columns[column])


def without(key):
    return {name: value for name, value in ENTRY.items() if name != key}


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        (3, r"entry 1: expected.*found 3"),
        (
            without("image_id"),
            "entry 1: image_id: expected",
        ),
        ({**ENTRY, "image_id": "7"}, "entry 1: image_id: expected"),
        ({**ENTRY, "image_id": 7.5}, "entry 1: image_id: expected"),
        ({**ENTRY, "person_box": [1, 2, 3]}, "entry 1: person_box: expected"),
        ({**ENTRY, "person_box": [1, 2, 3, float("nan")]}, "entry 1: person_box: expected"),
        (without("person_box"), "entry 1: person_box: expected"),
        ({**ENTRY, "hold_obj": [0, 0, 9, 9]}, "entry 1: hold_obj: expected"),
        ({**ENTRY, "hold_obj": "x"}, "entry 1: hold_obj: expected"),
        ({**ENTRY, "run_agent": [0.5]}, "entry 1: run_agent: expected"),
        ({**ENTRY, "run_agent": None}, "entry 1: run_agent: expected"),
    ],
)
def test_wrong_entries_are_named(save, entry, says):
    with pytest.raises(InputError, match=f"detections.json: {says}"):
        read_detections(save([ENTRY, entry]), ACTIONS)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "found an empty file"),
        ('[{"image_id": 7, "person_', "the file ends too early"),
        ('{"image_id": 7}', "file: expected"),
    ],
)
def test_wrong_files(save, text, says):
    with pytest.raises(InputError, match=says):
        read_detections(save(text), ACTIONS)


def test_what_an_entry_leaves_out_was_not_found(save):
    found = read_detections(save([without("hold_obj"), without("run_agent")]), ACTIONS)
    boxes, scores = found.role(ACTIONS[0], "obj")
    np.testing.assert_array_equal(boxes, np.float32([[0, 0, 0.1, 0.1], [0, 0, 9, 9]]))
    assert scores.tolist() == [0, 0.5]
    np.testing.assert_array_equal(found.agent(ACTIONS[1]), np.float32([np.nan, 0]))


def test_entries_of_another_layout(save):
    entry = {"image_id": 7, "person_box": [1, 2, 3, 4], "Hold": 0.5}
    with pytest.raises(InputError, match=r"detections.json: entries: .*hold_agent"):
        read_detections(save([entry]), ACTIONS)


@pytest.mark.parametrize("name", ["a.pkl", "a.json"])
def test_pickles_are_read_by_name_or_content(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(pickle.dumps([ENTRY], protocol=2))
    assert read_detections(path, ACTIONS).image_ids.tolist() == [7]


def arrays(**changes):
    value = {
        "image_id": np.array([7, 8]),
        "person_box": np.zeros((2, 4)),
        "hold_agent": np.zeros(2),
        "hold_obj": np.zeros((2, 5)),
        "run_agent": np.zeros(2),
    }
    return {name: array for name, array in {**value, **changes}.items() if array is not None}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"hold_obj": None}, "hold_obj: expected 2 times five numbers .*, found no such array"),
        (
            {"hold_obj": np.zeros((2, 4))},
            r"hold_obj: expected 2 times five .*, found float64 \(2, 4",
        ),
        ({"run_agent": np.zeros(3)}, "run_agent: expected 2 times a score"),
        ({"image_id": np.zeros(2)}, "image_id: expected 2 times the whole number"),
        ({"image_id": None}, "image_id: expected .* found no such array"),
        ({"person_box": np.full((2, 4), np.nan)}, "person_box: expected 2 times four finite"),
        ({"run_agent": np.array([{}, {}])}, r"a\.npz: expected"),
    ],
)
def test_wrong_arrays_are_named(tmp_path, changes, says):
    np.savez(tmp_path / "a.npz", **arrays(**changes))
    with pytest.raises(InputError, match=says):
        read_detections(tmp_path / "a.npz", ACTIONS)


def test_damaged_and_missing_npz(tmp_path):
    path = tmp_path / "a.npz"
    with pytest.raises(InputError, match=r"a\.npz: no such"):
        read_detections(path, ACTIONS)
    np.savez(path, **arrays())
    assert len(read_detections(path, ACTIONS)) == 2
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(InputError, match=r"a\.npz: expected"):
        read_detections(path, ACTIONS)
