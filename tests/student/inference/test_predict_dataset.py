import shutil
from functools import partial

import pytest
from PIL import Image

from evaluation.predictions import read_predictions
from pipeline.datasets.dataset import open_dataset
from pipeline.utils.errors import InputError
from student.inference.batch_predictor import BatchPredictor
from student.inference.detector import Detector
from student.inference.postprocess import SelectionConfig
from student.inference.predict_dataset import PARTIAL, predict_dataset


@pytest.fixture
def predict(toy_detector, dataset_root, tmp_path):
    """`predict(root=, part=, threshold=, top=, **options)` returns the read predictions."""

    def make(root=dataset_root, part="test", threshold=0.0, top=100, **options):
        selection = SelectionConfig(threshold, top)
        dataset = open_dataset(root)
        run = partial(predict_dataset, toy_detector, dataset, part, tmp_path / "out", selection)
        assert run(workers=0, **options) == tmp_path / "out/predictions.json"
        return read_predictions(tmp_path / "out/predictions.json", toy_detector.vocabulary)

    return make


def test_threshold_and_top(predict, tmp_path):
    found = predict(top=3, part="train")
    assert len(found) == 16 and {len(one.scores) for one in found} == {3}
    least = float(found[0].scores[1])
    again = predict(threshold=least, part="train", overwrite=True)
    assert all((one.scores >= least - 1e-6).all() for one in again)
    assert len(again[0].scores) == 2
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["predictions.json"]


class Names(list):
    """Names of predicted images. The prediction is interrupted before the batch after `stop_at`
    images, when the partial file contained `partial`."""

    stop_at = partial = None


@pytest.fixture
def predicted(tmp_path, monkeypatch):
    stream, names = BatchPredictor.stream_batches, Names()

    def recorded(self, sources, *arguments):
        for batch in stream(self, sources, *arguments):
            if len(names) == names.stop_at:
                names.partial = (tmp_path / "out" / PARTIAL).read_text()
                raise KeyboardInterrupt
            names.extend(sources[one.index].name for one in batch)
            yield batch

    monkeypatch.setattr(BatchPredictor, "stream_batches", recorded)
    return names


@pytest.mark.parametrize("end", ["", '[{"image_id": "wor'], ids=["whole", "truncated line"])
def test_an_interrupted_command_is_resumed(predict, predicted, tmp_path, end):
    predict(part="train", batch_size=3)
    file, names = tmp_path / "out/predictions.json", sorted(predicted)
    whole = file.read_bytes()
    predicted.clear()
    for predicted.stop_at in (6, 12):
        with pytest.raises(KeyboardInterrupt):
            predict(part="train", batch_size=3, overwrite=True)
        # What a killed process leaves.
        (tmp_path / "out" / PARTIAL).write_text(predicted.partial + end)
    predicted.stop_at = None
    predict(part="train", batch_size=3, overwrite=True)
    assert file.read_bytes() == whole and sorted(predicted) == names
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["predictions.json"]


@pytest.mark.parametrize("change", [{"top": 2}, {"part": "train"}], ids=str)
def test_other_settings_start_again(predict, predicted, change):
    predicted.stop_at = 4
    with pytest.raises(KeyboardInterrupt):
        predict(batch_size=2)
    predicted.clear()
    predicted.stop_at = None
    assert len(predict(batch_size=2, **change)) == len(predicted) == len(set(predicted))


def test_unreadable_images_are_reported_and_left_out(
    predict, dataset_root, tmp_path, messages, vocabulary, monkeypatch
):
    """And images of another size than declared, of which a few are allowed."""
    data = shutil.copytree(dataset_root, tmp_path / "data")
    images = sorted((data / "images/test2015").iterdir())
    images[1].write_bytes(b"no image")
    images[2].unlink()
    with Image.open(images[3]) as image:
        image.resize((50, 50)).save(images[3])
    monkeypatch.setattr("pipeline.datasets.size_check.MAX_MISMATCH_SHARE", 0.5)
    with pytest.raises(InputError, match="3 of 6 images could not be read and are missing in"):
        predict(data)
    lines = "\n".join(messages)
    assert lines.count(f"{images[1]}: expected an image") == 1
    assert lines.count(f"{images[2]}: no such image") == 1
    found = read_predictions(tmp_path / "out/predictions.json", vocabulary)
    assert [one.image_id for one in found] == [p.name for p in (images[0], *images[4:])]


def test_existing_predictions_are_refused(predict, tmp_path):
    file = tmp_path / "out/predictions.json"
    file.parent.mkdir()
    file.write_text("mine")
    with pytest.raises(InputError, match=r"predictions.json: exists"):
        predict()
    assert file.read_text() == "mine"


def test_a_detector_of_another_vocabulary(predict, dataset_root, toy_checkpoint, tmp_path):
    data = shutil.copytree(dataset_root, tmp_path / "data")
    toml = (data / "dataset.toml").read_text()
    (data / "dataset.toml").write_text(toml.replace('vocabulary = "toy"', 'vocabulary = "vcoco"'))
    for refused in (
        lambda: predict(data),
        lambda: Detector.open(toy_checkpoint, vocabulary=open_dataset(data).vocabulary),
    ):
        with pytest.raises(InputError, match=r"checkpoint\.pt: expected.*found toy"):
            refused()
