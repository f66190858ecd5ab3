import errno
import json
import os
import shutil
from dataclasses import replace

import numpy as np
import pytest

from evaluation.predictions import read_predictions
from pipeline.utils.errors import InputError
from student.engine.evaluate import evaluate_checkpoint
from student.inference.model import ModelSpec
from student.inference.predict import BatchPredictor
from student.inference.predict_dataset import JOURNAL, PredictDatasetConfig, predict_dataset


@pytest.fixture
def config(toy_checkpoint, dataset_root, tmp_path):
    return PredictDatasetConfig(
        model=ModelSpec(toy_checkpoint),
        data=dataset_root,
        part="test",
        out=tmp_path / "out",
        threshold=0.0,
        top=100,
        batch_size=2,
        workers=0,
        device="cpu",
        overwrite=False,
    )


def test_predictions_equal_those_of_the_evaluation(config, vocabulary, tmp_path):
    assert predict_dataset(config) == config.out / "predictions.json"
    assert [path.name for path in config.out.iterdir()] == ["predictions.json"]
    evaluate_checkpoint(config.model.path, config.data, None, tmp_path / "eval", "cpu", 0, False)
    ours, theirs = (
        read_predictions(folder / "predictions.json", vocabulary)
        for folder in (config.out, tmp_path / "eval")
    )
    assert len(ours) == 6
    for one, other in zip(ours, theirs, strict=True):
        assert one.image_id == other.image_id and len(one.scores) == len(other.scores)
        np.testing.assert_allclose(one.scores, other.scores, atol=1e-5)


def test_threshold_and_top(config, vocabulary):
    predict_dataset(replace(config, top=3, part="train"))
    found = read_predictions(config.out / "predictions.json", vocabulary)
    assert len(found) == 16 and {len(one.scores) for one in found} == {3}
    least = float(found[0].scores[1])
    predict_dataset(replace(config, threshold=least, part="train", overwrite=True))
    again = read_predictions(config.out / "predictions.json", vocabulary)
    assert all((one.scores >= least - 1e-6).all() for one in again)
    assert len(again[0].scores) == 2


class Stop(Exception):
    pass


def test_an_interrupted_command_is_resumed(config, monkeypatch):
    # The last digits of scores depend on the composition of the batches.
    config = replace(config, batch_size=1)
    predict_dataset(replace(config, out=config.out.with_name("whole")))
    real, predicted_names = BatchPredictor.stream, []

    def stopping(self, sources, *others):
        for one in real(self, sources, *others):
            predicted_names.append(sources[one.index].name)
            if len(predicted_names) == 4:
                raise Stop
            yield one

    monkeypatch.setattr(BatchPredictor, "stream", stopping)
    with pytest.raises(Stop):
        predict_dataset(config)
    assert not (config.out / "predictions.json").exists()
    journal = config.out / JOURNAL
    # A killed process may leave a truncated last line.
    journal.write_text(journal.read_text() + '{"image_id": "wor')
    predict_dataset(config)
    # Three images were in the journal at the interruption.
    assert len(predicted_names) == 4 + 3 and len(set(predicted_names)) == 6
    whole = (config.out.with_name("whole") / "predictions.json").read_text()
    assert (config.out / "predictions.json").read_text() == whole
    assert not journal.exists()


def test_a_journal_of_other_settings_is_ignored(config):
    config.out.mkdir()
    row = {
        "image_id": "toy_test_00000001.jpg",
        "boxes": [],
        "labels": [],
        "hois": [],
        "scores": [],
    }
    (config.out / JOURNAL).write_text(json.dumps({"top": 5}) + "\n" + json.dumps(row) + "\n")
    predict_dataset(config)
    value = json.loads((config.out / "predictions.json").read_text())
    assert len(value) == 6 and all(one["hoi_prediction"] for one in value)


def test_unreadable_images_are_reported_and_left_out(config, tmp_path, messages, vocabulary):
    data = tmp_path / "data"
    shutil.copytree(config.data, data)
    images = sorted((data / "images/test2015").iterdir())
    images[1].write_bytes(b"no image")
    images[2].unlink()
    with pytest.raises(InputError, match="2 of 6 images could not be read and are missing in"):
        predict_dataset(replace(config, data=data))
    err = "\n".join(messages)
    assert err.count(f"{images[1]}: expected an image") == 1
    assert err.count(f"{images[2]}: no such image") == 1
    found = read_predictions(config.out / "predictions.json", vocabulary)
    assert [one.image_id for one in found] == [p.name for p in (images[0], *images[3:])]


def test_existing_predictions_are_refused(config):
    config.out.mkdir()
    (config.out / "predictions.json").write_text("mine")
    with pytest.raises(InputError, match=r"predictions.json: exists"):
        predict_dataset(config)
    assert (config.out / "predictions.json").read_text() == "mine"


def test_a_detector_of_another_vocabulary(config, dataset_root, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(dataset_root, data)
    toml = (data / "dataset.toml").read_text()
    (data / "dataset.toml").write_text(toml.replace('vocabulary = "toy"', 'vocabulary = "vcoco"'))
    with pytest.raises(InputError, match=r"checkpoint\.pt: expected.*found toy"):
        predict_dataset(replace(config, data=data))


def test_a_full_disk_names_the_file(config, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("student.inference.predict_dataset._to_json", full)
    with pytest.raises(OSError) as caught:
        predict_dataset(config)
    assert caught.value.filename == str(config.out / JOURNAL)
