import gzip
import json
import pickle
import re
import zipfile

import numpy as np
import pytest

from evaluation.vcoco import detections
from evaluation.vcoco.detections import (
    read_detections,
    to_vcoco_detections,
    write_detections,
)
from pipeline.annotations.vcoco import VcocoAction
from pipeline.types import Detections
from pipeline.utils.errors import InputError
from pipeline.vocabulary import load_vocabulary

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


@pytest.mark.parametrize("name", ["a.json", "a.npz"])
@pytest.mark.parametrize("entries", [[], [ENTRY, {**ENTRY, "hold_agent": 0.1}]])
def test_round_trip(save, tmp_path, name, entries):
    before = read_detections(save(entries), ACTIONS)
    write_detections(tmp_path / "new" / name, before)
    after = read_detections(tmp_path / "new" / name, ACTIONS)
    assert len(after) == len(entries) and after.columns.keys() == before.columns.keys()
    for one, other in (
        (before.image_ids, after.image_ids),
        (before.person_boxes, after.person_boxes),
        *zip(before.columns.values(), after.columns.values(), strict=True),
    ):
        np.testing.assert_array_equal(one, other, strict=True)


def test_reads_the_official_layout(save, monkeypatch):
    monkeypatch.setattr(detections, "ENTRIES_PER_CHUNK", 1)
    found = read_detections(save([ENTRY, {**ENTRY, "image_id": 9}]), ACTIONS)
    assert found.image_ids.tolist() == [7, 9]
    assert found.person_boxes[0].tolist() == [1, 2, 3.5, 4]
    boxes, scores = found.role_boxes(ACTIONS[0], "obj")
    assert boxes[1].tolist() == [0, 0, 9, 9] and scores.tolist() == [0.5, 0.5]
    assert np.isnan(found.agent_scores(ACTIONS[1])).all()
    assert set(found.columns) == {"hold_agent", "hold_obj", "run_agent"}


def without(key):
    return {name: value for name, value in ENTRY.items() if name != key}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("image_id", None),
        ("image_id", "7"),
        ("image_id", 2**63),
        ("person_box", [1, 2, 3, float("nan")]),
        ("person_box", [0, 0, 1e308, 1e308]),
        ("hold_obj", [0, 0, 9, 9]),
        ("hold_obj", [0, 0, 1e30, 1e30, 0.5]),
        ("run_agent", True),
        ("run_agent", None),
        ("run_agent", 1e308),
    ],
)
def test_wrong_entries_are_named(save, field, value):
    found = "nothing" if value is None else re.escape(repr(value))
    where = f"detections.json: entry 1: {field}: expected .*, found {found}"
    with pytest.raises(InputError, match=where):
        read_detections(save([ENTRY, {**ENTRY, field: value}]), ACTIONS)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ('{"image_id": 7}', "file: expected"),
        ([ENTRY, 3], "entry 1: expected.*found 3"),
        ([without("image_id")], "entry 0: image_id: expected .* found nothing"),
        ([without("person_box")], "entry 0: person_box: expected .* found nothing"),
        ([{"image_id": 7, "person_box": [1, 2, 3, 4], "Hold": 0.5}], "entries: .*hold_agent"),
    ],
)
def test_wrong_files(save, value, message):
    with pytest.raises(InputError, match=message):
        read_detections(save(value), ACTIONS)


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
    ("changes", "message"),
    [
        (
            {"hold_obj": np.zeros((2, 4))},
            r"hold_obj: expected 2 times five .*, found float64 \(2, 4",
        ),
        ({"run_agent": np.zeros(3)}, "run_agent: expected 2 times a score"),
        ({"image_id": None}, "image_id: expected .* found no such array"),
        ({"person_box": None}, "person_box: expected .* found no such array"),
        ({"person_box": np.full((2, 4), np.nan)}, "entry 0: person_box: expected four finite"),
        ({"image_id": np.int64(7)}, r"image_id: expected .* found int64 \(\)"),
        (
            {"image_id": np.array([7, 2**63], np.uint64)},
            "entry 1: image_id: .* 9223372036854775808",
        ),
        ({"run_agent": np.array([True, False])}, "run_agent: expected .* found bool"),
        (
            dict.fromkeys(("hold_agent", "hold_obj", "run_agent")),
            "expected scores such as hold_agent",
        ),
        ({"run_agent": np.array([{}, {}])}, r"a\.npz: expected"),
    ],
)
def test_wrong_arrays_are_named(tmp_path, changes, message):
    np.savez(tmp_path / "a.npz", **arrays(**changes))
    with pytest.raises(InputError, match=message):
        read_detections(tmp_path / "a.npz", ACTIONS)


PEOPLE = np.array([[10, 20, 50, 90], [300, 40, 360, 80], [200, 100, 220, 300]] * 4, np.float64)
SHARES = PEOPLE / [640, 480, 640, 480]
SIDES = np.column_stack([PEOPLE[:, :2], PEOPLE[:, 2:] - PEOPLE[:, :2]])


def saved(path, boxes, objects):
    """Detections with some (N, 4) boxes and objects, as NPZ."""
    values = {
        "image_id": np.arange(len(boxes)),
        "person_box": boxes,
        "hold_agent": np.linspace(0, 1, len(boxes)),
        "hold_obj": np.column_stack([objects, np.linspace(0, 1, len(boxes))]),
    }
    np.savez(path, **values)
    return path


@pytest.mark.parametrize("field", ["person_box", "boxes of roles"])
@pytest.mark.parametrize(
    ("other", "message"), [(SHARES, "numbers from 0 to 1 in 12 of 12"), (SIDES, "width, height")]
)
def test_boxes_of_another_form(tmp_path, field, other, message):
    boxes = (other, PEOPLE) if field == "person_box" else (PEOPLE, other)
    with pytest.raises(InputError, match=rf"a.npz: {field}: expected .* found .*{message}"):
        read_detections(saved(tmp_path / "a.npz", *boxes), ACTIONS)


@pytest.mark.parametrize(
    "filler",
    [[0, 0, 0, 0], [0, 0, 0.1, 0.1], [np.nan] * 4, [-1, -1, -1, -1], [0, 0, 1, 1], [0, 0, -1, -1]],
)
def test_boxes_of_no_object_are_not_checked(tmp_path, filler):
    objects = np.array([*[filler] * 11, [5, 5, 90, 90]])
    found = read_detections(saved(tmp_path / "a.npz", PEOPLE, objects), ACTIONS)
    np.testing.assert_array_equal(found.columns["hold_obj"][:, :4], objects.astype(np.float32))


def test_some_arbitrary_objects(tmp_path):
    """A quarter of the objects has an x2 below its x1."""
    objects = PEOPLE.copy()
    objects[::4] = objects[::4][:, [2, 1, 0, 3]]
    assert len(read_detections(saved(tmp_path / "a.npz", PEOPLE, objects), ACTIONS)) == 12


@pytest.mark.parametrize("name", ["a.json", "a.npz"])
def test_keys_that_resemble_scores_are_reported(save, tmp_path, name):
    """Other keys are ignored, such as those that real projects write."""
    free = ["obj_class", "instr_class", "hold_obj_class", "person_score", "walk", "part_box"]
    wrong = ["hold_agnet", "hold_object", "dance_agent", "Hold_obj", "run-agent"]
    if name == "a.json":
        entry = without("hold_agent")
        path = save([{**entry, **dict.fromkeys(free, 3)}, {**entry, **dict.fromkeys(wrong, 0.5)}])
    else:
        path = tmp_path / name
        np.savez(
            path,
            **arrays(hold_agent=None, hold_obj=None),
            **dict.fromkeys(free + wrong, np.zeros(2)),
        )
    found = read_detections(path, ACTIONS)
    assert found.unknown_keys == tuple(sorted(wrong))
    assert found.keep(np.array([1])).unknown_keys == found.unknown_keys
    assert found.columns["hold_agent"].tolist() == [0, 0]
    if name == "a.npz":
        missing = np.float32([[0, 0, 0.1, 0.1, 0]] * 2)
        np.testing.assert_array_equal(found.columns["hold_obj"], missing)


def test_any_damage_of_an_npz_file_is_named(tmp_path):
    """Whatever byte is wrong, the file is refused with one line, or reads."""
    whole, path = tmp_path / "whole.npz", tmp_path / "a.npz"
    with pytest.raises(InputError, match=r"a\.npz: no such"):
        read_detections(path, ACTIONS)
    np.savez_compressed(whole, **arrays())
    content = whole.read_bytes()
    refused = 0
    for place in range(0, len(content), 23):
        damaged = bytearray(content)
        damaged[place] ^= 0xFF
        path.write_bytes(damaged)
        try:
            read_detections(path, ACTIONS)
        except InputError as error:
            refused += 1
            assert "a.npz: " in str(error) and "\n" not in str(error)
    assert refused > len(content) / 23 / 4


def test_files_that_are_something_else(tmp_path):
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 4711\n"
    with zipfile.ZipFile(tmp_path / "text.npz", "w") as archive:
        archive.writestr("image_id.npy", "no array")
    with pytest.raises(InputError, match=r"text\.npz: image_id: expected"):
        read_detections(tmp_path / "text.npz", ACTIONS)
    np.save(tmp_path / "one.npy", np.zeros(3))
    array = (tmp_path / "one.npy").read_bytes()
    cases = [
        (array, "array", (".json", ".npz")),
        (b"\n<!DOCTYPE html><html></html>", "web page", (".json", ".pkl", ".npz")),
        (pointer, "Git LFS pointer.*4711 bytes", (".json", ".pkl", ".npz")),
        (gzip.compress(b"[]"), "compressed file", (".json", ".pkl", ".npz")),
        (json.dumps([ENTRY]).encode("utf-16"), "UTF-16", (".json",)),
        (json.dumps([ENTRY]).encode("utf-16-be"), "UTF-16", (".json",)),
        ((tmp_path / "text.npz").read_bytes(), "zip archive", (".json",)),
    ]
    for content, message, endings in cases:
        for ending in endings:
            path = tmp_path / f"other{ending}"
            path.write_bytes(content)
            with pytest.raises(InputError, match=rf"other{ending}: .*{message}") as refused:
                read_detections(path, ACTIONS)
            assert "\n" not in str(refused.value)


CONVERTED_ACTIONS = (
    VcocoAction("hold", ("obj",)),
    VcocoAction("stand", ()),
    VcocoAction("hit", ("instr", "obj")),
)
BALL, RACKET = 32, 38


@pytest.fixture(scope="module")
def vcoco():
    return load_vocabulary("vcoco")


@pytest.fixture
def detect(vcoco):
    """Detections of people 0 and 1, ball 2 and racket 3: `detect((person, object, verb, score))`"""

    def build(*rows, image_id="a.jpg"):
        return Detections(
            image_id,
            np.arange(16, dtype=np.float32).reshape(4, 4),
            np.array([vcoco.person, vcoco.person, BALL, RACKET]),
            np.array(
                [(person, thing, vcoco.verbs.index(verb)) for person, thing, verb, _ in rows],
                dtype=np.int64,
            ).reshape(-1, 3),
            np.array([row[3] for row in rows], dtype=np.float32),
        )

    return build


def to_entries(found):
    """The to_entries as dicts of what is not NaN."""
    table = []
    for row in range(len(found)):
        entry = {
            name: np.round(column[row], 6).tolist()
            for name, column in found.columns.items()
            if not np.isnan(column[row]).all() and not np.isnan(np.atleast_1d(column[row])[-1])
        }
        table.append((int(found.image_ids[row]), int(found.person_boxes[row, 0]), entry))
    return table


def test_a_person_with_one_object_a_role_is_one_entry(detect, vcoco):
    item = detect(
        (0, 2, "hit_obj", 0.5),
        (0, 3, "hit_instr", 0.75),
        (0, -1, "stand", 0.25),
        (1, 2, "run", 0.5),
    )
    first, second = to_entries(to_vcoco_detections([item], [5], vcoco, CONVERTED_ACTIONS))
    assert first == (
        5,
        0,
        {
            "stand_agent": 0.25,
            "hit_agent": 0.75,
            "hit_instr": [12, 13, 14, 15, 0.75],
            "hit_obj": [8, 9, 10, 11, 0.5],
        },
    )
    # The annotations know no running.
    assert second == (5, 4, {})


def test_further_objects_get_entries_without_agent_score(detect, vcoco):
    item = detect((0, 2, "hold_obj", 0.25), (0, 3, "hold_obj", 0.5), (0, -1, "hold_obj", 0.125))
    found = to_entries(to_vcoco_detections([item], [5], vcoco, CONVERTED_ACTIONS))
    assert found == [
        (5, 0, {"hold_agent": 0.5, "hold_obj": [12, 13, 14, 15, 0.5]}),
        (5, 0, {"hold_obj": [8, 9, 10, 11, 0.25]}),
        (5, 0, {"hold_obj": [0, 0, 0, 0, 0.125]}),
    ]


def test_images_have_separate_entries(detect, vcoco):
    """Subjects that are no person are left out."""
    assert len(to_vcoco_detections([], [], vcoco, CONVERTED_ACTIONS)) == 0
    items = [
        detect((1, 2, "hold_obj", 0.5), (2, 3, "hold_obj", 0.75)),
        detect(image_id="b.jpg"),
        detect((0, 3, "hold_obj", 0.5), (1, 3, "stand", 0.5), image_id="c.jpg"),
    ]
    found = to_entries(to_vcoco_detections(items, [5, 6, 7], vcoco, CONVERTED_ACTIONS))
    assert [(image, person) for image, person, _ in found] == [(5, 4), (7, 0), (7, 4)]
    assert found[2][2] == {"stand_agent": 0.5}
