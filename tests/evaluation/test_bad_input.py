"""Invalid predictions files give one line on stderr, through the commands."""

import json
import os
import pickle
from functools import partial

import numpy as np
import pytest
from commands import run_command

from evaluation.cli import main
from evaluation.vcoco.detections import read_detections, write_detections
from pipeline.annotations.vcoco import read_actions

VCOCO = [
    {
        "boxes": [(1, [0, 0, 40, 80]), (37, [60, 60, 30, 30])],
        "does": {(0, "kick"): (1,), (0, "stand"): ()},
    }
] * 3


# HICO-DET's form: a person rides a bicycle.
RIDE = [
    {
        "file_name": "a.jpg",
        "annotations": [
            {"bbox": [10, 20, 30, 60], "category_id": 1},
            {"bbox": [5, 40, 50, 70], "category_id": 2},
        ],
        "hoi_annotation": [{"subject_id": 0, "object_id": 1, "category_id": 72}],
    }
]
eoid_eval = partial(run_command, main, "eoid-eval")


def average(done):
    """V-COCO's averages of agents and of roles in both scenarios, as printed."""
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("average")]
    return line.split()[1:]


def one_line(done, *expected):
    assert done.returncode == 2, done.stdout + done.stderr
    assert done.stdout == "" and done.stderr.count("\n") == 1
    for part in expected:
        assert part in done.stderr


@pytest.fixture
def score(runs, tmp_path):
    """Scores the distilled run's predictions after a change of the file's text or entries."""

    def run(change, *options):
        text = (runs / "distilled" / "predictions.json").read_text()
        entries = json.loads(text)
        changed = change(entries)
        path = tmp_path / "mine.json"
        path.write_text(changed if isinstance(changed, str) else json.dumps(entries))
        annotations = runs / "toy" / "annotations" / "test_hico.json"
        options = options or ("--vocabulary", "toy")
        return eoid_eval("hico", path, "--annotations", annotations, *options)

    return run


def crowded(entries):
    """An entry with some detections."""
    return next(entry for entry in entries if len(entry["hoi_prediction"]) > 1)


def every(entries, field, key, change):
    for entry in entries:
        entry.pop("vocabulary", None)
        for row in entry[field]:
            row[key] = change(row[key])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda entries: "", "mine.json: line 1: expected JSON, found an empty file"),
        (lambda entries: "[]", "mine.json: file: expected a list with an entry for each image"),
        (lambda entries: json.dumps(entries)[:-40], "(the file ends too early; is it whole?)"),
        (lambda entries: json.dumps({"a": entries}), "mine.json: file: expected a list"),
        (
            lambda entries: (
                [entry.update(file_name=f"x{row}.jpg") for row, entry in enumerate(entries)]
                and None
            ),
            "test_hico.json, found 24 others, the first being x0.jpg",
        ),
        (
            lambda entries: entries[3].update(file_name=entries[1]["file_name"]),
            "file_name: expected each image once, found a second entry",
        ),
        (
            lambda entries: crowded(entries)["hoi_prediction"][1].update(score=float("nan")),
            "hoi_prediction[1].score: expected a finite number, found nan",
        ),
        (
            lambda entries: crowded(entries)["hoi_prediction"][1].update(score=True),
            "hoi_prediction[1].score: expected a finite number, found True",
        ),
        (
            lambda entries: crowded(entries)["predictions"][1].update(bbox=[0, 0, 1e308, 1e308]),
            "predictions[1].bbox: expected four finite numbers x1, y1, x2, y2",
        ),
        (
            lambda entries: crowded(entries)["hoi_prediction"][1].update(object_id=99),
            "hoi_prediction[1].object_id: expected the number of a box, 0 to",
        ),
        (
            lambda entries: crowded(entries)["hoi_prediction"][0].update(subject_id=-1),
            "hoi_prediction[0].subject_id: expected the number of a box, 0 to",
        ),
        (
            lambda entries: every(entries, "hoi_prediction", "category_id", lambda verb: verb - 1),
            "this file counts verbs from 0, not from 1",
        ),
        (
            lambda entries: every(entries, "hoi_prediction", "category_id", lambda verb: verb + 60),
            "; is this file of another vocabulary?",
        ),
        (
            lambda entries: every(entries, "predictions", "category_id", lambda category: 800),
            "found 800; is this file of another vocabulary?",
        ),
    ],
)
def test_hico(score, change, message):
    one_line(score(change), message)


def test_zero_based_verbs_without_a_zero(score, toy):
    """If the first verb does not occur, the pairs show the numbering."""

    def change(entries):
        every(entries, "hoi_prediction", "category_id", lambda verb: verb - 1)
        for entry in entries:
            entry["hoi_prediction"] = [r for r in entry["hoi_prediction"] if r["category_id"]]

    one_line(score(change), "expected verbs of vocabulary toy counted from 1, found verbs counted")


def test_objects_by_position_instead_of_id(tmp_path, runs):
    """HICO-DET's objects 0 to 79 instead of COCO's ids: a person is 0, which is no id."""
    entry = {
        "file_name": "a.jpg",
        "predictions": [{"bbox": [0, 0, 9, 9], "category_id": 0}],
        "hoi_prediction": [],
    }
    (tmp_path / "mine.json").write_text(json.dumps([entry]))
    (tmp_path / "truth.json").write_text(json.dumps(RIDE))
    done = eoid_eval("hico", tmp_path / "mine.json", "--annotations", tmp_path / "truth.json")
    one_line(done, "does this file number objects 0 to 79 instead of by their ids?")


def test_own_files_name_their_vocabulary(runs, tmp_path):
    (tmp_path / "truth.json").write_text(json.dumps(RIDE))
    path = runs / "distilled" / "predictions.json"
    done = eoid_eval("hico", path, "--annotations", tmp_path / "truth.json")
    one_line(done, "vocabulary: expected predictions of vocabulary hico-det, found toy")


def test_a_pickle(tmp_path, runs):
    path = tmp_path / "mine.pkl"
    path.write_bytes(pickle.dumps([]))
    annotations = runs / "toy" / "annotations" / "test_hico.json"
    done = eoid_eval("hico", path, "--annotations", annotations, "--vocabulary", "toy")
    one_line(done, "mine.pkl: file: expected a list with an entry for each image")


@pytest.fixture
def score_vcoco(tmp_path, write_vcoco):
    """Scores perfect detections on three images after a change of the file's text or entries."""
    actions = write_vcoco(tmp_path, VCOCO)

    def run(change, name="mine.json"):
        names = {"kick_agent": 0.5, "kick_obj": [60, 60, 89, 89, 0.5], "stand_agent": 0.5}
        empty = {
            f"{action.name}_{role}": float("nan") if role == "agent" else [0, 0, 0, 0, float("nan")]
            for action in read_actions(actions).actions
            for role in ("agent", *action.roles)
        }
        entries = [
            {"image_id": image, "person_box": [0, 0, 39, 79], **empty, **names}
            for image in (10, 20, 30)
        ]
        changed = change(entries)
        path = tmp_path / name
        path.write_text(changed if isinstance(changed, str) else json.dumps(entries))
        return eoid_eval("vcoco", path, "--actions", actions)

    return run


def test_vcoco_scores_the_official_layout(score_vcoco, tmp_path):
    done = score_vcoco(lambda entries: None)
    assert average(done) == ["100.00", "100.00", "100.00"]
    entries = read_detections(
        tmp_path / "mine.json", read_actions(tmp_path / "data/vcoco/vcoco_test.json").actions
    )
    write_detections(tmp_path / "mine.npz", entries)
    actions = tmp_path / "data/vcoco/vcoco_test.json"
    again = eoid_eval("vcoco", tmp_path / "mine.npz", "--annotations", actions)
    assert again.stdout == done.stdout


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda entries: "", "mine.json: line 1: expected JSON, found an empty file"),
        (lambda entries: "[]", "mine.json: file: expected a list of detections, found an empty"),
        (lambda entries: json.dumps(entries)[:-9], "(the file ends too early; is it whole?)"),
        (
            lambda entries: entries[1].update(image_id=99),
            "expected images that the COCO file names, found 1 others, the first being 99",
        ),
        (
            lambda entries: entries[1].update(kick_obj=None),
            "entry 1: kick_obj: expected five numbers",
        ),
    ],
)
def test_vcoco(score_vcoco, change, message):
    one_line(score_vcoco(change), message)


class RunsCode:
    """Its pickle names a function that a plain unpickler would call."""

    def __reduce__(self):
        return os.mkdir, ("ran",)


def test_a_pickle_that_would_run_code(tmp_path, write_vcoco, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.pkl").write_bytes(pickle.dumps([{"image_id": RunsCode()}], 2))
    done = eoid_eval("vcoco", "mine.pkl", "--actions", write_vcoco(tmp_path, VCOCO))
    one_line(done, "mine.pkl: ", f"a call of {os.mkdir.__module__}.mkdir")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["mine.pkl", "mine.npz"])
def test_a_file_without_detections(tmp_path, write_vcoco, name):
    """A pickle and an NPZ file like JSON's empty list."""
    if name == "mine.pkl":
        (tmp_path / name).write_bytes(pickle.dumps([]))
    else:
        np.savez(tmp_path / name, image_id=np.zeros(0, int), person_box=np.zeros((0, 4)))
    done = eoid_eval("vcoco", tmp_path / name, "--actions", write_vcoco(tmp_path, VCOCO))
    one_line(done, f"{name}: file: expected a list of detections, found an empty list")


def test_a_misspelled_key_is_reported(score_vcoco):
    done = score_vcoco(lambda entries: [entry.update(kick_agnet=0.5) for entry in entries] and None)
    assert average(done) == ["100.00", "100.00", "100.00"]
    (line,) = [line for line in done.stderr.splitlines() if "kick_agnet" in line]
    assert line.startswith("1 ")


def test_pickles_become_json(score_vcoco, tmp_path):
    """Another project's pickle with numpy's arrays and numbers scores, and is written as JSON."""
    assert score_vcoco(lambda entries: None).returncode == 0
    entries = json.loads((tmp_path / "mine.json").read_text())
    for entry in entries:
        entry["person_box"] = np.array(entry["person_box"])
        entry["stand_agent"] = np.float32(entry["stand_agent"])
    (tmp_path / "other.pkl").write_bytes(pickle.dumps(entries, 2))
    options = ("--actions", tmp_path / "data/vcoco/vcoco_test.json")
    done = eoid_eval(
        "vcoco", tmp_path / "other.pkl", *options, "--official", tmp_path / "other.json"
    )
    assert average(done) == ["100.00", "100.00", "100.00"]
    assert average(eoid_eval("vcoco", tmp_path / "other.json", *options)) == average(done)
