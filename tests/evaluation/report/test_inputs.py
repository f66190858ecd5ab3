import json
import shutil

import numpy as np
import pytest

from evaluation.analysis.comparison import compare
from evaluation.report.inputs import gather_evidence
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
        value["dataset_path"] = str(runs / "world")
        (folder / "results.json").write_text(json.dumps({**value, **fields}))
        return folder

    return make


def evidence(world, *folders, data=None):
    results = [read_results(folder / "results.json") for folder in folders]
    return gather_evidence(compare(results, world), data)


def test_everything_there(world, runs):
    found = evidence(world, runs / "control", runs / "distilled", runs / "teacher")
    test = open_dataset(runs / "world").load("test")
    assert [view.contestant.role for view in found.views] == ["distilled", "control", "teacher"]
    assert len(found.test) == len(found.pictures) == len(test.annotations) == 24
    assert found.test_counts.sum() == test.num_labels
    train = open_dataset(runs / "world").load("train")
    assert found.training_counts.sum() == train.num_labels
    assert found.notes == ()
    for view in found.views:
        average_precision = view.result.per_class
        assert 0 < view.judged.hits.sum() <= found.test_counts.sum()
        assert average_precision


def test_no_dataset(world, copy, tmp_path):
    (gone,) = evidence(world, copy("control", dataset_path="gone")).notes
    assert gone.startswith("There is no dataset at ") and "--data DATASET" in gone
    (silent,) = evidence(world, copy("teacher", dataset_path=None)).notes
    assert silent.startswith("The results name no dataset;")


def test_annotations_are_enough_for_all_but_pictures(world, runs, copy):
    file = runs / "world" / "annotations" / "test_hico.json"
    folder = copy("control", dataset_path=None, annotations=str(file))
    found = evidence(world, folder)
    assert len(found.views) == 1 and found.test_counts.sum() > 0
    assert found.pictures is None and found.training_counts is None
    assert len(found.notes) == 1 and "--data DATASET" in found.notes[0]
    assert not evidence(world, copy("teacher", annotations="gone", dataset_path=None)).views


def test_annotations_of_other_images(world, runs, copy):
    file = runs / "world" / "annotations" / "trainval_hico.json"
    assert not evidence(world, copy("control", dataset_path=None, annotations=str(file))).views


def test_data_tells_where_it_lies(world, runs, copy):
    folder = copy("control", dataset_path="gone")
    found = evidence(world, folder, data=runs / "world")
    assert len(found.views) == 1 and found.notes == ()


def test_no_predictions(world, runs, copy):
    folder = copy("control", predictions=None)
    found = evidence(world, folder)
    assert found.views == () and len(found.test) == 24
    assert found.notes == ("No predictions file lies beside these results.",)
    found = evidence(world, folder, runs / "distilled")
    assert [view.contestant.role for view in found.views] == ["distilled"]
    assert found.notes == ("No predictions on this test set lie beside No distillation.",)


def test_another_test_set(world, copy):
    found = evidence(world, copy("control", num_images=9000))
    assert found.views == found.test == ()
    assert found.notes[0].endswith("has 24 annotated test pictures, the results are of 9,000.")
    # The training part is what it is.
    assert found.training_counts is not None


def test_pictures_gone(world, runs, tmp_path, copy):
    moved = shutil.copytree(runs / "world", tmp_path / "moved")
    pictures = sorted((moved / "images/test2015").iterdir())
    pictures[0].unlink()
    found = evidence(world, copy("control", dataset_path=str(moved)))
    assert len(found.pictures) == 23 and len(found.views) == 1
    assert found.notes[0].startswith("23 of the 24 test pictures lie in ")
    shutil.rmtree(moved / "images")
    found = evidence(world, copy("teacher", dataset_path=str(moved)))
    assert found.pictures == {} and found.notes[0].startswith("None of the 24 test pictures")


def test_no_training_part(world, runs, tmp_path, copy):
    moved = shutil.copytree(runs / "world", tmp_path / "moved")
    (moved / "annotations/trainval_hico.json").unlink()
    found = evidence(world, copy("control", dataset_path=str(moved)))
    assert found.training_counts is None and len(found.views) == 1


def test_results_of_other_datasets_are_not_mixed(world, runs, tmp_path, copy):
    other = shutil.copytree(runs / "world", tmp_path / "other world")
    folders = [copy("distilled", dataset_path=str(other)), runs / "control", runs / "teacher"]
    found = evidence(world, *folders)
    assert [view.contestant.role for view in found.views] == ["distilled"]
    found = evidence(world, *folders, data=runs / "world")
    assert [view.contestant.role for view in found.views] == ["control", "teacher"]


@pytest.mark.parametrize("setting", ["default", "known_object"])
@pytest.mark.parametrize("nms", [None, {"threshold": 0.5, "human_power": 1, "object_power": 1}])
def test_judged_as_the_results_say(world, copy, setting, nms):
    (view,) = evidence(world, copy("teacher", setting=setting, nms=nms)).views
    found = view.judged.found
    assert len(found) <= sum(len(item.hois) for item in view.detections)
    assert np.all(np.diff(found.scores) <= 0)


def test_predictions_of_something_else(world, copy):
    folder = copy("control")
    predictions = json.loads((folder / "predictions.json").read_text())
    for row, entry in enumerate(predictions):
        entry["file_name"] = f"holiday-{row}.jpg"
    (folder / "predictions.json").write_text(json.dumps(predictions))
    with pytest.raises(InputError, match=r"predictions\.json: file_name: .*holiday-0\.jpg"):
        evidence(world, folder)
