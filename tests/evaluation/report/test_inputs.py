import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

from evaluation.analysis.comparison import compare
from evaluation.hico.matching import match_detections
from evaluation.predictions import read_predictions
from evaluation.report.inputs import find_dataset, load_report_inputs
from evaluation.results import read_results
from pipeline.datasets.dataset import open_dataset
from pipeline.utils.errors import InputError


@pytest.fixture
def load(toy):
    def load_inputs(*files, data=None):
        results = [read_results(file) for file in files]
        return load_report_inputs(compare(results, toy), find_dataset(results, data))

    return load_inputs


@pytest.fixture
def moved(runs, tmp_path):
    """A copy of the dataset."""
    return shutil.copytree(runs / "toy", tmp_path / "moved")


def roles(found):
    return [view.entry.role for view in found.predictions]


def test_all_inputs_exist(runs, load, change):
    found = load(*(change(name) for name in ("control", "distilled", "teacher")))
    test, train = (open_dataset(runs / "toy").load(part) for part in ("test", "train"))
    assert roles(found) == ["distilled", "control", "teacher"]
    assert len(found.test_annotations) == len(found.image_files) == len(test.annotations) == 24
    assert found.test_counts.sum() == test.num_labels
    assert found.training_counts.sum() == train.num_labels
    assert found.notes == []
    for view in found.predictions:
        assert 0 < view.matched.tp_mask.sum() <= found.test_counts.sum()


@pytest.mark.parametrize(
    ("fields", "notes"),
    [
        ({"dataset_path": "gone"}, ["There is no dataset at *--data DATASET."]),
        ({"dataset_path": None}, ["The results name no dataset;*"]),
        ({"predictions": None}, ["The predictions files of these results were not found."]),
        ({"num_images": 9000}, ["* has 24 annotated test images, the results are on 9,000."]),
    ],
)
def test_missing_files_are_named(load, change, fields, notes):
    found = load(change("control", **fields))
    assert roles(found) == []
    for note, pattern in zip(found.notes, notes, strict=True):
        start, _, end = pattern.partition("*")
        assert note.startswith(start) and note.endswith(end)
    # The training part does not depend on the test set.
    assert (found.training_counts is None) == ("dataset_path" in fields)


def test_annotations_suffice_for_all_but_images(runs, load, change):
    folder = runs / "toy" / "annotations"
    for name, expected in (("test_hico.json", 1), ("trainval_hico.json", 0), ("gone.json", 0)):
        found = load(change("control", dataset_path=None, annotations=str(folder / name)))
        assert len(found.predictions) == expected
        assert not found.image_files and found.training_counts is None
        assert "--data DATASET" in found.notes[0]


def test_missing_images_and_training_part(moved, load, change):
    min((moved / "images/test2015").iterdir()).unlink()
    (moved / "annotations/trainval_hico.json").unlink()
    found = load(change("control", dataset_path=str(moved)))
    assert len(found.image_files) == 23 and len(found.predictions) == 1
    assert found.training_counts is None
    assert found.notes[0].startswith("23 of the 24 test images are in ")
    shutil.rmtree(moved / "images")
    found = load(change("teacher", dataset_path=str(moved)))
    assert found.image_files == {} and found.notes[0].startswith("None of the 24 test images")


def test_results_of_other_datasets_are_not_mixed(runs, moved, load, change):
    files = [change("distilled", dataset_path=str(moved)), change("control"), change("teacher")]
    assert roles(load(*files)) == ["distilled"]
    assert roles(load(*files, data=runs / "toy")) == ["control", "teacher"]


def test_matched_in_the_setting_of_the_results_after_its_nms(load, change):
    nms = {"threshold": 0.5, "human_power": 1, "object_power": 1}
    matched = []
    for setting, config in (("default", None), ("known_object", None), ("default", nms)):
        (view,) = load(change("control", setting=setting, nms=config)).predictions
        assert np.all(np.diff(view.matched.detections.scores) <= 0)
        matched.append(len(view.matched.detections))
    assert matched[0] >= max(matched[1:])


def test_predictions_of_something_else(runs, tmp_path, load, change):
    predictions = json.loads((runs / "control" / "predictions.json").read_text())
    for row, entry in enumerate(predictions):
        entry["file_name"] = f"holiday-{row}.jpg"
    file = tmp_path / "predictions.json"
    file.write_text(json.dumps(predictions))
    with pytest.raises(InputError, match=r"predictions\.json: file_name: .*holiday-0\.jpg"):
        load(change("control", predictions=str(file)))


@pytest.mark.parametrize("setting", ["default", "known_object"])
def test_matches_are_handed_on(toy, runs, change, load, setting):
    """Matches in memory are those of the predictions file."""
    result = read_results(change("control", setting=setting))
    test = open_dataset(runs / "toy").load("test").annotations
    found = read_predictions(result.predictions, toy)
    known = replace(result, matches=match_detections(test, found, toy))
    dataset = open_dataset(runs / "toy")
    (first,) = load_report_inputs(compare([known], toy), dataset).predictions
    (second,) = load_report_inputs(compare([result], toy), dataset).predictions
    assert np.array_equal(first.matched.tp_mask, second.matched.tp_mask)
    assert np.array_equal(first.matched.detections.scores, second.matched.detections.scores)
