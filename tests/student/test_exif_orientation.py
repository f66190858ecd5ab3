"""Images with EXIF orientation, annotated in stored pixels, in evaluation and prediction."""

import shutil

import numpy as np
import pytest
from PIL import Image

from evaluation.analysis.comparison import compare
from evaluation.predictions import read_predictions
from evaluation.report.inputs import find_dataset, load_report_inputs
from evaluation.results import read_results
from evaluation.score_hico import score_hico_file
from pipeline.datasets.dataset import open_dataset
from pipeline.utils.errors import InputError
from student.engine.evaluate import evaluate_checkpoint
from student.inference.detector import Detector
from student.inference.postprocess import SelectionConfig
from student.inference.predict_dataset import predict_dataset
from student.inference.predict_shards import ShardConfig


@pytest.fixture(scope="module")
def twins(dataset_root, turned_twins, tmp_path_factory):
    return turned_twins(dataset_root, tmp_path_factory.mktemp("twins"), "test")


def evaluate(run, data, out, **options):
    return evaluate_checkpoint(run, data, None, out, "cpu", 0, False, **options)


def predict_part(run, data, out):
    config = ShardConfig(SelectionConfig(0.0, 100), workers=0)
    return predict_dataset(Detector.open(run, "cpu"), open_dataset(data), "test", out, config)


@pytest.fixture(scope="module")
def evaluated(twins, toy_checkpoint, tmp_path_factory):
    folders = [tmp_path_factory.mktemp("out") for _ in twins]
    for root, out in zip(twins, folders, strict=True):
        evaluate(toy_checkpoint, root, out)
    return folders


def predictions(folder, vocabulary):
    return read_predictions(folder / "predictions.json", vocabulary)


def test_twins_have_equal_scores_and_predictions(
    twins, evaluated, toy_checkpoint, vocabulary, tmp_path
):
    results = [read_results(folder / "results.json") for folder in evaluated]
    assert results[0].per_class == results[1].per_class
    upright, stored = (predictions(folder, vocabulary) for folder in evaluated)
    assert any(not np.array_equal(a.boxes, b.boxes) for a, b in zip(upright, stored, strict=True))
    back = open_dataset(twins[1]).detections_to_upright("test", stored)
    for one, other in zip(upright, back, strict=True):
        np.testing.assert_allclose(one.boxes, other.boxes, atol=1e-3)
        np.testing.assert_array_equal(one.scores, other.scores)
    # `eoid-predict --data` writes the same file.
    predict_part(toy_checkpoint, twins[1], tmp_path)
    for one, other in zip(predictions(tmp_path, vocabulary), stored, strict=True):
        assert one.image_id == other.image_id
        np.testing.assert_allclose(one.scores, other.scores, atol=1e-5)


def test_predictions_in_stored_pixels_score_the_same(twins, evaluated, tmp_path):
    tables = []
    for root, out in zip(twins, evaluated, strict=True):
        file = tmp_path / f"{len(tables)}.json"
        score_hico_file(out / "predictions.json", data=root, split="ua", json=file)
        tables.append(read_results(file))
    assert tables[0].per_class == tables[1].per_class
    assert tables[1].per_class == read_results(evaluated[1] / "results.json").per_class


def test_the_report_draws_boxes_on_upright_images(evaluated, vocabulary):
    seen = []
    for out in evaluated:
        results = [read_results(out / "results.json")]
        inputs = load_report_inputs(compare(results, vocabulary), find_dataset(results))
        seen.append([*inputs.test_annotations, *inputs.predictions[0].detections])
    for one, other in zip(*seen, strict=True):
        np.testing.assert_allclose(one.boxes, other.boxes, atol=1e-3)


@pytest.mark.parametrize("predicts", ["evaluate", "predict"])
def test_without_the_orientation_key_nothing_is_scored(twins, toy_checkpoint, tmp_path, predicts):
    root = shutil.copytree(twins[1], tmp_path / "toy")
    description = root / "dataset.toml"
    description.write_text(description.read_text().replace('orientation = "stored"\n', ""))
    out = tmp_path / "out"
    with pytest.raises(InputError) as caught:
        if predicts == "evaluate":
            evaluate(toy_checkpoint, root, out)
        else:
            predict_part(toy_checkpoint, root, out)
    assert 'set orientation = "stored" in dataset.toml' in str(caught.value)
    assert not out.exists()


def test_unreadable_test_images_are_skipped_if_requested(
    dataset_root, toy_checkpoint, vocabulary, tmp_path, messages
):
    root = shutil.copytree(dataset_root, tmp_path / "toy")
    paths = sorted((root / "images/test2015").iterdir())
    paths[1].write_bytes(b"no image")
    paths[4].write_bytes(paths[4].read_bytes()[:900])
    paths[5].unlink()
    out = tmp_path / "out"
    with pytest.raises(InputError) as caught:
        evaluate(toy_checkpoint, root, out)
    assert str(caught.value).startswith(str(paths[1])) and "3 of 6" in str(caught.value)
    assert not out.exists()
    results = evaluate(toy_checkpoint, root, out, skip_unreadable=True)
    assert results.num_images == 6 and "3 of 6" in "\n".join(messages)
    counts = {one.image_id: len(one.hois) for one in predictions(out, vocabulary)}
    lacking = [path.name for path in (paths[1], *paths[4:])]
    assert len(lacking) == 3 and [name for name in counts if not counts[name]] == lacking
    for path in paths:
        path.unlink(missing_ok=True)
    with pytest.raises(InputError, match="6 of 6"):
        evaluate(toy_checkpoint, root, tmp_path / "none", skip_unreadable=True)
    assert not (tmp_path / "none").exists()


def test_obsolete_orientation_tags_are_ignored(
    twins, evaluated, toy_checkpoint, vocabulary, tmp_path, messages
):
    """Upright images with a tag that would turn them on their side."""
    root = shutil.copytree(twins[0], tmp_path / "toy")
    exif = Image.Exif()
    exif[0x0112] = 6
    for path in (root / "images/test2015").iterdir():
        with Image.open(path) as image:
            image.load()
        image.save(path, "PNG", exif=exif)
    with pytest.raises(InputError, match='set orientation = "stored"'):
        evaluate(toy_checkpoint, root, tmp_path / "out")
    description = root / "dataset.toml"
    description.write_text('orientation = "stored"\n' + description.read_text())
    results = evaluate(toy_checkpoint, root, tmp_path / "out")
    assert "left over" in "\n".join(messages)
    assert results.per_class == read_results(evaluated[0] / "results.json").per_class
    for one, other in zip(
        predictions(tmp_path / "out", vocabulary),
        predictions(evaluated[0], vocabulary),
        strict=True,
    ):
        np.testing.assert_array_equal(one.boxes, other.boxes)
        np.testing.assert_array_equal(one.scores, other.scores)
