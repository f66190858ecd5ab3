import dataclasses
import json

import numpy as np
import pytest

from evaluation.hico.average_precision import evaluate
from evaluation.predictions import (
    MIN_PAIRS,
    check_numbering,
    read_predictions,
    verb_object_pairs,
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
            {"bbox": [20.5, 0, 29, 9], "category_id": 37},
        ],
        "hoi_prediction": [
            {"subject_id": 0, "object_id": 1, "category_id": 5, "score": 0.25},
            {"subject_id": 0, "object_id": 1, "category_id": 1, "score": 0},
        ],
    }


def ids(toy):
    return toy.category_ids[toy.person], toy.category_ids[toy.objects.index("ball")]


@pytest.fixture
def written(tmp_path, toy, entry):
    """Writes `entry` with the toy dataset's ids after changing it."""

    def write(change=lambda entry: entry):
        for box, category in zip(entry["predictions"], ids(toy), strict=True):
            box["category_id"] = category
        path = tmp_path / "predictions.json"
        path.write_text(json.dumps([change(entry) or entry]))
        return path

    return write


def test_reads_other_projects_files(written, toy):
    (found,) = read_predictions(written(), toy)
    assert found.image_id == "a.jpg"
    assert found.boxes.tolist() == [[0, 0, 9, 19], [20.5, 0, 29, 9]]
    assert found.labels.tolist() == [toy.person, toy.objects.index("ball")]
    assert found.hois.tolist() == [[0, 1, 4], [0, 1, 0]]
    assert found.scores.tolist() == [0.25, 0]


def test_image_without_detections(tmp_path, toy, detect):
    path = tmp_path / "predictions.json"
    write_predictions(path, [detect("a.jpg")], toy)
    (found,) = read_predictions(path, toy)
    assert found.boxes.shape == (0, 4)
    assert found.hois.shape == (0, 3)
    assert len(found.scores) == len(found.labels) == 0


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


def test_file_scores_like_the_detections(tmp_path, toy, annotate, detect):
    rng = np.random.default_rng(1)
    truth = [annotate(f"{i}.jpg", ("kick", "ball")) for i in range(30)]
    found = [
        detect(f"{i}.jpg", *[("kick", "ball", rng.random(), 3 * rng.normal(), 0)] * 3)
        for i in range(30)
    ]
    write_predictions(tmp_path / "predictions.json", found, toy)
    read = read_predictions(tmp_path / "predictions.json", toy)
    expected = evaluate(truth, found, toy).average_precision
    np.testing.assert_array_equal(evaluate(truth, read, toy).average_precision, expected)


def test_numbers_are_short(tmp_path, toy, detect):
    path = tmp_path / "predictions.json"
    write_predictions(path, [detect("a.jpg", ("kick", "ball", 0.1))], toy)
    assert '"score":0.1}' in path.read_text()


def test_nothing_half_written(tmp_path, toy, detect):
    path = tmp_path / "predictions.json"
    path.write_text("old")
    broken = detect("b.jpg", ("kick", "ball", 0.1))
    broken.labels[:] = 1000
    with pytest.raises(IndexError):
        write_predictions(path, [detect("a.jpg"), broken], toy)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def put(field, row, key, value):
    def change(entry):
        entry[field][row][key] = value

    return change


def drop(field, row, key):
    def change(entry):
        del entry[field][row][key]

    return change


BOX = "four finite numbers"


@pytest.mark.parametrize(
    ("change", "where", "expected"),
    [
        (put("predictions", 1, "bbox", [0, 1, 2]), "predictions[1].bbox", BOX),
        (put("predictions", 1, "bbox", [0, 1, 2, float("nan")]), "predictions[1].bbox", BOX),
        (put("predictions", 0, "bbox", [0, 1, 2, float("inf")]), "predictions[0].bbox", BOX),
        (put("predictions", 0, "bbox", [30, 1, 20, 9]), "predictions[0].bbox", "x1 <= x2"),
        (put("predictions", 0, "bbox", ["0", "0", "9", "9"]), "predictions[0].bbox", BOX),
        (put("predictions", 0, "bbox", None), "predictions[0].bbox", BOX),
        (drop("predictions", 0, "bbox"), "predictions[0].bbox", BOX),
        (put("predictions", 1, "category_id", 0), "predictions[1].category_id", "toy"),
        (put("predictions", 1, "category_id", 1.5), "predictions[1].category_id", "whole number"),
        (put("hoi_prediction", 0, "subject_id", 2), "hoi_prediction[0].subject_id", "0 to 1"),
        (put("hoi_prediction", 1, "object_id", -1), "hoi_prediction[1].object_id", "0 to 1"),
        (
            put("hoi_prediction", 1, "category_id", 0),
            "hoi_prediction[1].category_id",
            "counts verbs from 0, not from 1",
        ),
        (put("hoi_prediction", 1, "category_id", 12), "hoi_prediction[1].category_id", "1 to 11"),
        (put("hoi_prediction", 0, "score", float("nan")), "hoi_prediction[0].score", "finite"),
        (put("hoi_prediction", 0, "score", "high"), "hoi_prediction[0].score", "finite"),
        (drop("hoi_prediction", 1, "score"), "hoi_prediction[1].score", "finite"),
        (lambda entry: entry.update(hoi_prediction=None), "hoi_prediction", "a list"),
        (lambda entry: entry.update(predictions=[1]), "predictions[0]", "an object"),
    ],
)
def test_wrong_entries_are_named(written, toy, change, where, expected):
    path = written(change)
    with pytest.raises(InputError) as error:
        read_predictions(path, toy)
    message = str(error.value)
    assert message.startswith(f"{path}: a.jpg: {where}: expected ")
    assert expected in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "expected JSON"),
        ("[]", "a list with an entry for each image"),
        ('{"a": 1}', r"file: expected.*found {'a': 1}"),
        ('[{"file_name": "a.jpg", "predi', "expected JSON"),
        ("[3]", "entry 0: expected"),
        ('[{"file_name": 3}]', "entry 0: expected"),
    ],
)
def test_wrong_files(tmp_path, toy, text, expected):
    path = tmp_path / "predictions.json"
    path.write_text(text)
    with pytest.raises(InputError, match=expected):
        read_predictions(path, toy)


def test_missing_file(tmp_path, toy):
    with pytest.raises(InputError, match=r"none\.json: no such"):
        read_predictions(tmp_path / "none.json", toy)


def test_an_image_twice(written, toy):
    path = written()
    path.write_text(json.dumps(json.loads(path.read_text()) * 2))
    with pytest.raises(InputError, match="each image once"):
        read_predictions(path, toy)


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


def test_numbering_of_nothing(tmp_path, vocabulary):
    empty = Detections(
        "a.jpg", np.zeros((0, 4)), np.zeros(0, int), np.zeros((0, 3), int), np.zeros(0)
    )
    check_numbering(tmp_path, [empty], vocabulary)


def test_valid_numbers_pass(tmp_path, vocabulary, valid_detections):
    check_numbering(tmp_path, valid_detections, vocabulary)


def test_verbs_one_off_are_named(tmp_path, vocabulary, valid_detections):
    """A 0-based file was read one too low where 1 was expected, a 1-based one too high."""
    first = vocabulary.first_verb_id
    wrong = shifted(valid_detections, -1 if first else 1)
    expected = f"counted from {first}, found verbs counted from {1 - first}: so counted 100 %"
    with pytest.raises(InputError, match=expected):
        check_numbering(tmp_path, wrong, vocabulary)


def test_some_invalid_pairs_pass(tmp_path, vocabulary, valid_detections):
    """Half of the pairs are invalid, which does not show another numbering."""
    mixed = [*valid_detections[:5], *shifted(valid_detections[5:], -1)]
    check_numbering(tmp_path, mixed, vocabulary)


def test_only_invalid_pairs_pass(tmp_path):
    toy = load_vocabulary("toy")
    verb, label = np.argwhere(~toy.valid & ~np.roll(toy.valid, -1, axis=0))[0]
    count = MIN_PAIRS
    item = Detections(
        "a.jpg",
        np.zeros((2, 4)),
        np.array([toy.person, label]),
        np.tile([0, 1, verb], (count, 1)),
        np.ones(count),
    )
    check_numbering(tmp_path, [item], toy)
    verbs, objects = verb_object_pairs([item])
    assert len(verbs) == count and not toy.valid[verbs, objects].any()
