import json
import pickle
from collections import defaultdict

import numpy as np
import pytest

from evaluation.swig.predictions import is_published_form, read_published, write_published
from pipeline.annotations.swig import SwigImage
from pipeline.utils.errors import InputError
from pipeline.vocabulary import load_vocabulary

ROW = [0, 0.75, 10, 20.5, 30, 60, 5, 40, 50, 70]
NEXT = [2, 0.5, 1, 2, 3, 4, 5, 6, 7, 8]


@pytest.fixture(scope="module")
def swig():
    return load_vocabulary("swig-hoi")


@pytest.fixture(scope="module")
def images():
    nothing = np.zeros((0, 4)), np.zeros((0, 2), int), np.zeros(0, int)
    return [SwigImage(number, f"{number}.jpg", (100, 80), *nothing) for number in (7, 9)]


@pytest.fixture
def read(tmp_path, images, swig):
    def run(value, name="preds.json"):
        path = tmp_path / name
        is_pickled = path.suffix == ".pkl"
        path.write_bytes(pickle.dumps(value) if is_pickled else json.dumps(value).encode())
        return read_published(path, images, swig)

    return run


def test_rows_become_detections(read, swig):
    first, second, other = read({"9": [ROW, NEXT], "7": [], "123": [NEXT]})
    assert (first.image_id, second.image_id, other.image_id) == ("9.jpg", "7.jpg", "123")
    assert first.boxes.dtype == np.float64
    assert first.boxes.tolist() == [ROW[2:6], ROW[6:], NEXT[2:6], NEXT[6:]]
    verbs, objects = np.array(swig.interactions)[[0, 2]].T
    assert first.hois.tolist() == [[0, 1, verbs[0]], [2, 3, verbs[1]]]
    assert first.labels.tolist() == [0, objects[0], 0, objects[1]]
    assert first.scores.tolist() == [0.75, 0.5]
    assert len(second.hois) == 0 and second.boxes.shape == (0, 4)


def test_pickles_of_the_public_projects(read):
    """By image, and by interaction as `SWiGEvaluator.save_preds` writes them."""
    wanted = read({"9": [ROW, NEXT], "7": [NEXT]})
    lists = defaultdict(list, {9: [ROW, NEXT], 7: [NEXT]})
    columns = {
        "scores": {0: [ROW[1]], 1: [], 2: [NEXT[1]] * 2},
        "boxes": {0: [ROW[2:]], 1: [], 2: [NEXT[2:]] * 2},
        "keys": {0: [9], 1: [], 2: [9, 7]},
    }
    with_truth = {**columns, "gts": {0: defaultdict(list, {9: np.zeros((1, 8))})}}
    arrays = {9: np.array([ROW, NEXT]), np.int64(7): [np.array(NEXT)]}
    for value in (lists, columns, with_truth, arrays):
        found = read(value, "preds.pkl")
        if "keys" in value:
            # In the order of the annotations.
            found = found[::-1]
        for one, other in zip(found, wanted, strict=True):
            assert one.image_id == other.image_id
            for name in ("boxes", "labels", "hois", "scores"):
                assert getattr(one, name).tolist() == getattr(other, name).tolist()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"9": 5}, "image 9: expected a list, found 5"),
        ({"9": [ROW[:9]]}, r"image 9\[0\]: expected \[interaction, score, person x1, .*"),
        ({"9": [ROW, {}]}, r"image 9\[1\]: expected \[interaction, score"),
        ({"9": [[0.5, *ROW[1:]]]}, r"image 9\[0\]: expected an interaction of swig-hoi.*found 0.5"),
        ({"9": [[10**30, *ROW[1:]]]}, r"image 9\[0\]: expected \[interaction"),
        ({"9": [[0, "0.5", *ROW[2:]]]}, r"image 9\[0\]: expected .*'?0.5"),
        ({"9": [[0, float("nan"), *ROW[2:]]]}, r"image 9\[0\]: expected .*nan"),
        ({"9": [[0, 0.5, 10**400, *ROW[3:]]]}, r"image 9\[0\]: expected"),
        ({"9": [ROW, [14130, *ROW[1:]]]}, r"image 9\[1\]: .*swig-hoi, 0 to 14129, found 14130"),
        ({"a.jpg": [ROW]}, "keys: expected ids of images, .*found 'a.jpg'"),
        ({"9": [ROW], "09": [ROW]}, "image 9: expected every image once"),
        ({"\u0669": [ROW]}, "keys: expected ids of images"),
        ({"scores": {"0": []}, "boxes": {}, "keys": {}}, "keys: .*found 'scores'"),
        ([], "file: expected image ids with lists of detections"),
        ({"9": [[0, 0.5, 0.1, 0.2, 0.3, 0.9, 0, 0, 0.5, 0.6]] * 9}, "boxes: .*numbers from 0 to 1"),
    ],
)
def test_wrong_files_name_file_and_field(read, value, message):
    with pytest.raises(InputError, match=f"preds.json: {message}") as error:
        read(value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scores": {0: []}}, "scores.0: expected 1 entries, as in keys, found 0"),
        ({"scores": {0: [0.5], 1: [0.5]}}, "scores.1: expected 0 entries, as in keys, found 1"),
        ({"keys": {0: ["a"]}}, r"keys.0\[0\]: expected a whole number, found a"),
        ({"boxes": 5}, "boxes: expected"),
        ({"boxes": ...}, "boxes: .*missing"),
        ({"keys": ...}, "keys: expected ids of images, .*found 'scores'"),
    ],
)
def test_wrong_pickles(read, change, message):
    columns = {"scores": {0: [0.5]}, "boxes": {0: [ROW[2:]]}, "keys": {0: [9]}, **change}
    columns = {name: column for name, column in columns.items() if column is not ...}
    with pytest.raises(InputError, match=f"preds.pkl: {message}"):
        read(columns, "preds.pkl")


@pytest.mark.parametrize("score", ["0.5", "NaN"])
def test_an_image_with_two_lists(tmp_path, images, swig, score):
    path = tmp_path / "twice.json"
    path.write_text(f'{{"9": [], "7": [[0, {score}{", 1" * 8}]], "9" : []}}')
    with pytest.raises(InputError, match=r"twice\.json: 9: expected one value, found 2 values"):
        read_published(path, images, swig)


def test_truncated_and_missing_files(tmp_path, images, swig):
    path = tmp_path / "half.json"
    path.write_text(json.dumps({"9": [ROW]})[:30])
    with pytest.raises(InputError, match=r"half\.json: line 1: expected JSON"):
        read_published(path, images, swig)
    with pytest.raises(InputError, match=r"none\.json: no such file"):
        read_published(tmp_path / "none.json", images, swig)
    assert is_published_form(path) and not is_published_form(tmp_path / "none.json")
    path.write_text('{"a":' * 5000)
    with pytest.raises(InputError, match=r"half\.json: expected JSON, found"):
        read_published(path, images, swig)
    path.write_text("\ufeff [1]")
    assert not is_published_form(path)


def test_written_files_are_read_again(tmp_path, read, images, swig):
    found = read({"9": [ROW, NEXT], "7": [NEXT], "123": [NEXT]})
    # A pair that is no interaction, and a subject that is no person.
    found[1].hois[0, 2] = int(np.flatnonzero(~swig.valid[:, found[1].labels[1]])[0])
    found[0].labels[2] = 1
    path = tmp_path / "out.json"
    write_published(path, found, images, swig)
    assert json.loads(path.read_text()) == {"9": [ROW], "7": []}
    write_published(path, [], images, swig)
    assert json.loads(path.read_text()) == {}
