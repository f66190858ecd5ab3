import dataclasses
import json
import pickle

import numpy as np
import pytest

from evaluation.predictions import (
    MIN_PAIRS,
    check_numbering,
    read_predictions,
    write_predictions,
)
from pipeline.types import Detections
from pipeline.utils.errors import InputError
from pipeline.vocabulary import load_vocabulary


@pytest.fixture
def entry():
    return {
        "file_name": "a.jpg",
        "predictions": [
            {"bbox": [0, 0, 9, 19], "category_id": 1},
            {"bbox": [20.5, 0, 29, 9], "category_id": 5},
        ],
        "hoi_prediction": [
            {"subject_id": 0, "object_id": 1, "category_id": 5, "score": 0.25},
            {"subject_id": 0, "object_id": 1, "category_id": 1, "score": 0},
        ],
    }


@pytest.fixture
def write(tmp_path):
    """Writes a text, or entries as JSON or a pickle, by the name."""

    def write(value, name="predictions.json"):
        path = tmp_path / name
        is_pickle = name.endswith(".pkl")
        text = value if isinstance(value, str) else json.dumps("" if is_pickle else value)
        path.write_bytes(pickle.dumps(value) if is_pickle else text.encode())
        return path

    return write


@pytest.mark.parametrize("name", ["a.json", "a.pkl"])
def test_reads_other_projects_files(write, entry, toy, name):
    if name == "a.pkl":
        entry["predictions"][0]["bbox"] = np.array(entry["predictions"][0]["bbox"], np.float32)
        entry["hoi_prediction"][0]["score"] = np.float32(0.25)
    (found,) = read_predictions(write([entry], name), toy)
    assert found.image_id == "a.jpg"
    assert found.boxes.tolist() == [[0, 0, 9, 19], [20.5, 0, 29, 9]]
    assert found.labels.tolist() == [toy.person, toy.objects.index("ball")]
    assert found.hois.tolist() == [[0, 1, 4], [0, 1, 0]]
    assert found.scores.tolist() == [0.25, 0]


def test_round_trip_is_exact(tmp_path, toy, detect):
    rng = np.random.default_rng(0)
    found = [
        detect(f"{i} ä.jpg", *[("kick", "ball", rng.random(), rng.normal()) for _ in range(i)])
        for i in range(4)
    ]
    path = tmp_path / "predictions.json"
    write_predictions(path, found, toy)
    for before, after in zip(found, read_predictions(path, toy), strict=True):
        assert before.image_id == after.image_id
        for name in ("boxes", "labels", "hois"):
            np.testing.assert_array_equal(getattr(before, name), getattr(after, name))
        np.testing.assert_array_equal(before.scores, after.scores.astype(np.float32))
    write_predictions(path, [detect("a.jpg", ("kick", "ball", 0.1))], toy)
    assert '"score":0.1}' in path.read_text()


def put(field, row, key, value):
    def change(entry):
        entry[field][row][key] = value

    return change


def drop(field, row, key):
    def change(entry):
        del entry[field][row][key]

    return change


BOX = "four finite numbers"
EMPTY = {"file_name": "a.jpg", "predictions": [], "hoi_prediction": []}


@pytest.mark.parametrize(
    ("change", "where", "expected"),
    [
        (put("predictions", 1, "bbox", [0, 1, 2]), "predictions[1].bbox", BOX),
        (put("predictions", 1, "bbox", [0, 1, 2, float("nan")]), "predictions[1].bbox", BOX),
        (put("predictions", 0, "bbox", [30, 1, 20, 9]), "predictions[0].bbox", "x1 <= x2"),
        (drop("predictions", 0, "bbox"), "predictions[0].bbox", BOX),
        (put("predictions", 1, "category_id", 0), "predictions[1].category_id", "not its position"),
        (put("hoi_prediction", 0, "subject_id", 2), "hoi_prediction[0].subject_id", "0 to 1"),
        (put("hoi_prediction", 1, "object_id", -1), "hoi_prediction[1].object_id", "0 to 1"),
        (
            put("hoi_prediction", 1, "category_id", 0),
            "hoi_prediction[1].category_id",
            "counted from 1",
        ),
        (put("hoi_prediction", 1, "category_id", 12), "hoi_prediction[1].category_id", "1 to 11"),
        (put("hoi_prediction", 0, "score", float("nan")), "hoi_prediction[0].score", "finite"),
        (put("hoi_prediction", 0, "score", True), "hoi_prediction[0].score", "finite"),
        (put("predictions", 1, "bbox", [0, 0, 1e308, 1e308]), "predictions[1].bbox", BOX),
        (lambda entry: entry.update(hoi_prediction=None), "hoi_prediction", "a list"),
    ],
)
def test_wrong_entries_are_named(write, entry, toy, change, where, expected):
    change(entry)
    path = write([entry])
    with pytest.raises(InputError) as error:
        read_predictions(path, toy)
    message = str(error.value)
    assert message.startswith(f"{path}: a.jpg: {where}: expected ")
    assert expected in message and "\n" not in message


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("[]", "file: expected a list with an entry for each image"),
        ('{"a": 1}', "file: expected a list, found {'a': 1}"),
        ([3], "entry 0: expected an object with file_name, found 3"),
        ([{"file_name": 3}], "entry 0: expected an object with file_name"),
        ([EMPTY, EMPTY], "a.jpg: file_name: expected each image once"),
        ([{**EMPTY, "vocabulary": {"name": "mine"}}], "predictions of vocabulary toy, found mine"),
    ],
)
def test_wrong_files(write, toy, value, expected):
    path = write(value)
    with pytest.raises(InputError) as error:
        read_predictions(path, toy)
    assert str(error.value).startswith(f"{path}: ") and expected in str(error.value)
    with pytest.raises(InputError, match=r"none\.json: no such"):
        read_predictions(path.with_name("none.json"), toy)


def test_verbs_counted_from_0_without_a_0(write, entry, toy):
    """If the first verb does not occur, the pairs show the numbering."""
    jump = toy.verbs.index("jump")
    entry["hoi_prediction"] = [{**entry["hoi_prediction"][0], "category_id": jump}] * MIN_PAIRS
    with pytest.raises(InputError, match="toy counted from 1, found verbs counted from 0"):
        read_predictions(write([entry]), toy)


@pytest.fixture(params=["hico-det", "vcoco", "toy"])
def vocabulary(request):
    return load_vocabulary(request.param)


@pytest.fixture
def valid_detections(vocabulary):
    """Detections of interactions of the vocabulary, whose verbs are not at the numbers' ends."""
    rng = np.random.default_rng(0)
    inner = [pair for pair in vocabulary.interactions if 0 < pair[0] < vocabulary.num_verbs - 1]
    items = []
    for index in range(10):
        pairs = [inner[row] for row in rng.integers(0, len(inner), 20)]
        labels = np.array([vocabulary.person, *(label for _, label in pairs)])
        hois = np.array([(0, row + 1, verb) for row, (verb, _) in enumerate(pairs)])
        boxes, scores = np.zeros((len(labels), 4), np.float32), np.ones(len(hois))
        items.append(Detections(f"{index}.jpg", boxes, labels, hois, scores))
    return items


def shifted(items, by):
    return [dataclasses.replace(item, hois=item.hois + np.array([0, 0, by])) for item in items]


def test_valid_numbers_pass(tmp_path, vocabulary, valid_detections):
    check_numbering(tmp_path, valid_detections, vocabulary)
    check_numbering(tmp_path, [Detections.empty("a.jpg")], vocabulary)
    # Half of the pairs are invalid, which does not show another numbering.
    mixed = [*valid_detections[:5], *shifted(valid_detections[5:], -1)]
    check_numbering(tmp_path, mixed, vocabulary)


def test_verbs_one_off_are_named(tmp_path, vocabulary, valid_detections):
    """A 0-based file was read one too low where 1 was expected, a 1-based one too high."""
    first = vocabulary.first_verb_id
    wrong = shifted(valid_detections, -1 if first else 1)
    expected = f"counted from {first}, found verbs counted from {1 - first}: so counted 100 %"
    with pytest.raises(InputError, match=expected):
        check_numbering(tmp_path, wrong, vocabulary)
