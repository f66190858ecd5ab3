import json
import shutil

import numpy as np
import pytest

from evaluation.analysis.comparison import compare
from evaluation.report.inputs import load_report_inputs
from evaluation.results import read_results
from pipeline.datasets.dataset import open_dataset
from pipeline.utils.errors import InputError


@pytest.fixture
def copy(runs, tmp_path):
    """`copy("control", field=value)`: a run's folder with other fields in its results."""

    def make(name, **fields):
        folder = tmp_path / f"copy of {name}"
        shutil.copytree(runs / name, folder)
        value = json.loads((folder / "results.json").read_text())
        value["dataset_path"] = str(runs / "toy")
        (folder / "results.json").write_text(json.dumps({**value, **fields}))
        return folder

    return make


def inputs(toy, *folders, data=None):
    results = [read_results(folder / "results.json") for folder in folders]
    return load_report_inputs(compare(results, toy), data)


def test_all_inputs_exist(toy, runs):
    found = inputs(toy, runs / "control", runs / "distilled", runs / "teacher")
    test = open_dataset(runs / "toy").load("test")
    assert [view.entry.role for view in found.predictions] == ["distilled", "control", "teacher"]
    assert len(found.test_annotations) == len(found.image_files) == len(test.annotations) == 24
    assert found.test_counts.sum() == test.num_labels
    train = open_dataset(runs / "toy").load("train")
    assert found.training_counts.sum() == train.num_labels
    assert found.notes == ()
    for view in found.predictions:
        average_precision = view.result.per_class
        assert 0 < view.matched.tp_mask.sum() <= found.test_counts.sum()
        assert average_precision


def test_no_dataset(toy, copy, tmp_path):
    (gone,) = inputs(toy, copy("control", dataset_path="gone")).notes
    assert gone.startswith("There is no dataset at ") and "--data DATASET" in gone
    (note,) = inputs(toy, copy("teacher", dataset_path=None)).notes
    assert note.startswith("The results name no dataset;")


def test_annotations_suffice_for_all_but_images(toy, runs, copy):
    file = runs / "toy" / "annotations" / "test_hico.json"
    folder = copy("control", dataset_path=None, annotations=str(file))
    found = inputs(toy, folder)
    assert len(found.predictions) == 1 and found.test_counts.sum() > 0
    assert found.image_files is None and found.training_counts is None
    assert len(found.notes) == 1 and "--data DATASET" in found.notes[0]
    assert not inputs(toy, copy("teacher", annotations="gone", dataset_path=None)).predictions


def test_annotations_of_other_images(toy, runs, copy):
    file = runs / "toy" / "annotations" / "trainval_hico.json"
    assert not inputs(toy, copy("control", dataset_path=None, annotations=str(file))).predictions


def test_data_replaces_the_folder_of_the_results(toy, runs, copy):
    folder = copy("control", dataset_path="gone")
    found = inputs(toy, folder, data=runs / "toy")
    assert len(found.predictions) == 1 and found.notes == ()


def test_no_predictions(toy, runs, copy):
    folder = copy("control", predictions=None)
    found = inputs(toy, folder)
    assert found.predictions == () and len(found.test_annotations) == 24
    assert found.notes == ("The predictions files of these results were not found.",)
    found = inputs(toy, folder, runs / "distilled")
    assert [view.entry.role for view in found.predictions] == ["distilled"]
    assert found.notes == ("No predictions on this test set were found for No distillation.",)


def test_another_test_set(toy, copy):
    found = inputs(toy, copy("control", num_images=9000))
    assert found.predictions == found.test_annotations == ()
    assert found.notes[0].endswith("has 24 annotated test images, the results are on 9,000.")
    # The training part does not depend on the test set.
    assert found.training_counts is not None


def test_missing_images(toy, runs, tmp_path, copy):
    moved = shutil.copytree(runs / "toy", tmp_path / "moved")
    images = sorted((moved / "images/test2015").iterdir())
    images[0].unlink()
    found = inputs(toy, copy("control", dataset_path=str(moved)))
    assert len(found.image_files) == 23 and len(found.predictions) == 1
    assert found.notes[0].startswith("23 of the 24 test images are in ")
    shutil.rmtree(moved / "images")
    found = inputs(toy, copy("teacher", dataset_path=str(moved)))
    assert found.image_files == {} and found.notes[0].startswith("None of the 24 test images")


def test_no_training_part(toy, runs, tmp_path, copy):
    moved = shutil.copytree(runs / "toy", tmp_path / "moved")
    (moved / "annotations/trainval_hico.json").unlink()
    found = inputs(toy, copy("control", dataset_path=str(moved)))
    assert found.training_counts is None and len(found.predictions) == 1


def test_results_of_other_datasets_are_not_mixed(toy, runs, tmp_path, copy):
    other = shutil.copytree(runs / "toy", tmp_path / "other toy")
    folders = [copy("distilled", dataset_path=str(other)), runs / "control", runs / "teacher"]
    found = inputs(toy, *folders)
    assert [view.entry.role for view in found.predictions] == ["distilled"]
    found = inputs(toy, *folders, data=runs / "toy")
    assert [view.entry.role for view in found.predictions] == ["control", "teacher"]


@pytest.mark.parametrize("setting", ["default", "known_object"])
@pytest.mark.parametrize("nms", [None, {"threshold": 0.5, "human_power": 1, "object_power": 1}])
def test_matched_in_the_setting_of_the_results(toy, copy, setting, nms):
    (view,) = inputs(toy, copy("teacher", setting=setting, nms=nms)).predictions
    found = view.matched.detections
    assert len(found) <= sum(len(item.hois) for item in view.detections)
    assert np.all(np.diff(found.scores) <= 0)


def test_predictions_of_something_else(toy, copy):
    folder = copy("control")
    predictions = json.loads((folder / "predictions.json").read_text())
    for row, entry in enumerate(predictions):
        entry["file_name"] = f"holiday-{row}.jpg"
    (folder / "predictions.json").write_text(json.dumps(predictions))
    with pytest.raises(InputError, match=r"predictions\.json: file_name: .*holiday-0\.jpg"):
        inputs(toy, folder)
