import json
import pickle
import sys
import types
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from evaluation.predictions import write_predictions
from evaluation.report.write import write_report
from evaluation.score_vcoco import score_detections, score_vcoco_file
from evaluation.vcoco.detections import read_detections
from pipeline.annotations.base import ParseContext
from pipeline.annotations.vcoco import find_vcoco_files, read_vcoco, vcoco_annotations
from pipeline.types import Detections
from pipeline.utils.errors import InputError
from pipeline.vocabulary import load_vocabulary

PERSON, BALL, RACKET = 1, 37, 43
IMAGE = {
    "boxes": [
        (PERSON, [0, 0, 40, 80]),
        (PERSON, [100, 0, 40, 80]),
        (BALL, [60, 60, 30, 30]),
        (RACKET, [20, 100, 30, 30]),
    ],
    "does": {
        (0, "kick"): (2,),
        (0, "stand"): (),
        (1, "hit"): (3, None),
        (1, "hold"): (3,),
    },
}


@pytest.fixture(scope="module")
def vcoco():
    return load_vocabulary("vcoco")


@pytest.fixture
def actions(tmp_path, write_vcoco):
    return write_vcoco(tmp_path, [IMAGE] * 4)


@pytest.fixture
def perfect(actions, vcoco):
    """(truth, detections that repeat the annotations)."""
    reading = ParseContext(actions, vcoco)
    truth = read_vcoco(find_vcoco_files(actions), reading)
    found = [
        Detections(a.image_id, a.boxes, a.labels, a.hois, np.full(len(a.hois), 0.5, np.float32))
        for a in vcoco_annotations(truth, reading)
    ]
    return truth, found


def averages(lines):
    (line,) = [line for line in lines if line.startswith("average")]
    return [float(value) for value in line.split()[1:]]


def test_repeating_the_annotations_is_perfect(perfect, vcoco):
    truth, found = perfect
    assert set(score_detections(found, truth, vcoco).metrics.values()) == {1.0}
    nothing = score_detections([], truth, vcoco)
    assert set(nothing.metrics.values()) == {0.0}


def test_images_without_detections_and_outside_the_part_are_reported(
    perfect, vcoco, actions, tmp_path, messages
):
    _, found = perfect
    write_predictions(tmp_path / "p.json", found[:2], vcoco)
    ids = tmp_path / "mine.ids"
    ids.write_text("10\n30\n40\n")
    lines = score_vcoco_file(tmp_path / "p.json", actions, ids=ids)
    assert averages(lines) == pytest.approx([33.33] * 3)
    assert messages == [
        "left out 2 detections on images outside the part",
        "2 of 3 images have no detections",
    ]


def test_images_outside_the_part_alone_and_unknown_ones(perfect, vcoco, actions, tmp_path):
    _, (first, *_) = perfect
    file, ids, official = (tmp_path / name for name in ("p.json", "mine.ids", "o.json"))
    write_predictions(file, [first], vcoco)
    score_vcoco_file(file, actions, official=official)
    ids.write_text("20\n")
    with pytest.raises(InputError, match="on the images of the id list, found none, but 10"):
        score_vcoco_file(file, actions, ids=ids)
    write_predictions(file, [replace(first, image_id="x.jpg")], vcoco)
    official.write_text(official.read_text().replace('"image_id":10', '"image_id":99'))
    for path, name in ((file, "x.jpg"), (official, "99")):
        with pytest.raises(InputError, match=f"image: .* found 1 others, the first being {name}"):
            score_vcoco_file(path, actions)


@pytest.mark.parametrize("name", ["mine.json", "mine.pkl", "mine.npz"])
def test_a_file_without_detections(tmp_path, actions, name):
    np.savez(tmp_path / "mine.npz", image_id=np.zeros(0, int), person_box=np.zeros((0, 4)))
    (tmp_path / "mine.pkl").write_bytes(pickle.dumps([]))
    (tmp_path / "mine.json").write_text("[]")
    with pytest.raises(InputError, match=f"{name}: file: expected a list of detections"):
        score_vcoco_file(tmp_path / name, actions)


@pytest.mark.parametrize("name", ["official.json", "official.npz"])
def test_the_official_layout_can_be_had(perfect, vcoco, actions, tmp_path, name):
    truth, found = perfect
    write_predictions(tmp_path / "p.json", found, vcoco)
    official, results = tmp_path / name, tmp_path / "scores.json"
    lines = score_vcoco_file(tmp_path / "p.json", actions, official=official, json=results)
    assert len(read_detections(official, truth.actions)) == 8
    assert score_vcoco_file(official, actions) == lines
    value = json.loads(results.read_text())
    assert value["metrics"]["average_agent_ap"] == 1
    assert value["per_action"]["hit"] == {
        "positives": 4,
        "agent_ap": 1.0,
        "roles": {
            "instr": {"scenario_1": 1.0, "scenario_2": 1.0},
            "obj": {"scenario_1": 1.0, "scenario_2": 1.0},
        },
    }
    assert value["per_action"]["read"]["agent_ap"] is None
    with pytest.raises(InputError, match="exists"):
        score_vcoco_file(official, actions, json=results)


LEFT_OUT = Path(__file__).parents[1] / "data" / "vcoco_left_out"
# The class of the entries in the pickles of a two-stage project.
CACHE_CLASS = """
from collections import defaultdict


class CacheTemplate(defaultdict):
    def __init__(self, **kwargs):
        super().__init__()
        for key, value in kwargs.items():
            self[key] = value

    def __missing__(self, key):
        return 0.0 if key.split("_")[-1] == "agent" else [0.0, 0.0, 0.1, 0.1, 0.0]
"""


def write_cache(path, entries):
    """A pickle of the SCG/UPT family: protocol 2, of a class that cannot be imported."""
    module = types.ModuleType("utils")
    exec(CACHE_CLASS, module.__dict__)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "utils", module)
        path.write_bytes(pickle.dumps([module.CacheTemplate(**entry) for entry in entries], 2))


@pytest.mark.parametrize("form", ["json", "cache.pkl"])
def test_keys_that_are_left_out(tmp_path, form):
    actions = LEFT_OUT / "data/vcoco/vcoco_test.json"
    path = LEFT_OUT / "upt-missing-keys.json"
    if form != "json":
        entries, path = json.loads(path.read_text()), tmp_path / form
        write_cache(path, entries)
        assert b"CacheTemplate" in path.read_bytes()
    official, scores = tmp_path / "official.json", tmp_path / "scores.json"
    lines = score_vcoco_file(path, actions, official=official, json=scores)
    assert lines == score_vcoco_file(LEFT_OUT / "upt-all-keys.json", actions)
    assert lines == score_vcoco_file(official, actions)
    assert averages(lines) == [63.70, 40, 50]
    # Of the five roles with positives, only that of point is left out.
    (papers,) = [line.split() for line in lines if line.startswith("without point")]
    assert papers == ["without", "point", "50.00", "62.50"]
    metrics = json.loads(scores.read_text())["metrics"]
    assert metrics["average_role_ap_scenario_1"] == pytest.approx(0.4)
    assert metrics["average_role_ap_scenario_1_without_point"] == pytest.approx(0.5)


def test_a_misspelled_key_is_reported(tmp_path, messages):
    entries = json.loads((LEFT_OUT / "upt-missing-keys.json").read_text())
    (tmp_path / "mine.json").write_text(json.dumps([{**entries[0], "kick_agnet": 0.5}]))
    score_vcoco_file(tmp_path / "mine.json", LEFT_OUT / "data/vcoco/vcoco_test.json")
    (line,) = [line for line in messages if "kick_agnet" in line]
    assert line.startswith("left out 1 key ")


def test_a_dataset_without_official_actions(runs):
    with pytest.raises(InputError, match="found annotations of another form"):
        score_vcoco_file(runs / "distilled", None, data=runs / "toy")


def test_scores_become_a_report(perfect, vcoco, actions, tmp_path):
    """A file in the official layout, and a run whose images exist."""
    pytest.importorskip("matplotlib", reason="the extra report is not installed")
    truth, found = perfect
    folder = tmp_path / "images/val2014"
    folder.mkdir(parents=True)
    for image in truth.images:
        Image.new("RGB", (200, 150)).save(folder / image.name)
    write_predictions(tmp_path / "run/predictions.json", found, vcoco)
    half, whole = tmp_path / "half.json", tmp_path / "whole.json"
    official = tmp_path / "official.json"
    score_vcoco_file(tmp_path / "run", actions, json=whole, official=official)
    official.write_text(json.dumps(json.loads(official.read_text())[:4]))
    score_vcoco_file(official, None, data=tmp_path, json=half)
    out = tmp_path / "report.html"
    write_report([half, whole], out)
    text = out.read_text()
    assert "<h1>Role AP 50.0 in scenario 1 and 50.0 in scenario 2: official.</h1>" in text
    assert "Role AP of the others in scenario 1: run 100.0." in text
    assert "Without point, scenario 1" in text
    assert text.count("<img") == 4 * 2 and "mAP of every result" not in text
    described = (tmp_path / "report-pictures/pictures.json").read_text()
    assert all(f'"{name}.png"' in described for name in ("roles", "agents", "picture-01"))
    assert "classes.png" not in described
