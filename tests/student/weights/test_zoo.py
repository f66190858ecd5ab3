import shutil
from pathlib import Path

import pytest
import torch

import eoid
from pipeline.utils.errors import InputError
from student.engine.evaluate import evaluate_checkpoint
from student.inference.detector import DetectorSource
from student.weights import zoo
from student.weights.checkpoint_file import CHECKPOINT, load_checkpoint
from student.weights.zoo import MODELS, find_checkpoint, read_zoo

NAMES = ["toy", "toy-text"]


def test_the_table_lists_the_files():
    assert list(read_zoo()) == NAMES
    files = {path.name for path in MODELS.iterdir()}
    assert files == {"README.md", "zoo.json", *(f"{name}.pt" for name in NAMES)}


@pytest.mark.parametrize("name", NAMES)
def test_weights_of_the_package(name):
    row, checkpoint = read_zoo()[name], load_checkpoint(MODELS / f"{name}.pt")
    assert row.file.stat().st_size < 6e6
    assert checkpoint.state == {}
    # Rounding must not change which queries are chosen.
    for part, value in checkpoint.weights.items():
        expected = torch.float32 if part.startswith("query_source.") else torch.float16
        assert value.dtype == expected or not value.is_floating_point()
    assert (checkpoint.split.name, checkpoint.vocabulary.name) == (row.split, "toy")
    assert checkpoint.recipe.model.verb_head == ("text" if name == "toy-text" else "linear")
    model = eoid.load_model(name)
    assert sum(parameter.numel() for parameter in model.parameters()) == row.parameters
    assert row.unseen > 0.5 and row.seen > 0.5 and row.licence == "MIT"


@pytest.mark.parametrize("name", NAMES)
def test_a_detector_opened_by_name(name, dataset_root, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    detector = eoid.Detector.open(name, "cpu")
    results = detector(sorted((dataset_root / "images" / "test2015").iterdir()))
    assert detector.split.name == "ua"
    assert any(result.scores.max(initial=0) > 0.5 for result in results)
    assert any(result.unseen.any() for result in detector([r.image for r in results], threshold=0))


def test_files_and_runs_come_before_names(toy_checkpoint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_checkpoint("toy") == MODELS / "toy.pt"
    # A dataset of this name is no run.
    (tmp_path / "toy" / "images").mkdir(parents=True)
    assert find_checkpoint("toy") == MODELS / "toy.pt"
    shutil.copy(toy_checkpoint / CHECKPOINT, tmp_path / "toy")
    assert find_checkpoint("toy").resolve() == tmp_path / "toy" / CHECKPOINT
    shutil.copy(toy_checkpoint / CHECKPOINT, tmp_path / "toy-text")
    assert find_checkpoint("toy-text").resolve() == tmp_path / "toy-text"


def test_paths_are_never_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for path in (tmp_path / "toy", "./toy", "toy.pt", "other/toy"):
        assert find_checkpoint(path) == Path(path)
    (tmp_path / "toy").mkdir()
    (tmp_path / "other").mkdir()
    for path in (tmp_path / "other", "other", "./toy", "toy/"):
        message = "expected a run folder, found a folder without checkpoint.pt"
        with pytest.raises(InputError, match=message):
            find_checkpoint(path)


def test_an_unknown_name_lists_the_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for load in (eoid.load_model, eoid.Detector.open):
        with pytest.raises(InputError, match=r"tyo: no such file.*toy, toy-text$") as caught:
            load("tyo")
        assert "\n" not in str(caught.value)


def test_an_incomplete_installation(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(zoo, "MODELS", tmp_path)
    shutil.copy(zoo.TABLE, tmp_path)
    with pytest.raises(InputError, match=r"toy\.pt: expected a file of the package, found none"):
        find_checkpoint("toy")
    monkeypatch.setattr(zoo, "TABLE", tmp_path / "gone.json")
    with pytest.raises(InputError, match=r"gone\.json: expected a file of the package"):
        find_checkpoint("toy")


def test_results_are_not_written_into_the_package(dataset_root, tmp_path):
    with pytest.raises(InputError, match="--out: expected a folder"):
        evaluate_checkpoint("toy", dataset_root, None, None, "cpu", 0, False)
    results = evaluate_checkpoint("toy", dataset_root, None, tmp_path / "scores", "cpu", 0, False)
    assert (results.name, results.split) == ("toy", "ua")
    assert (tmp_path / "scores" / "results.json").is_file()


def test_the_name_keeps_its_meaning_in_other_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "toy").mkdir()
    assert DetectorSource(Path("toy")).absolute().path == MODELS / "toy.pt"
