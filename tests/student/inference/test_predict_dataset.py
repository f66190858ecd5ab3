import shutil

import pytest
from PIL import Image

from evaluation.predictions import read_predictions
from pipeline.cluster.tasks import ArrayShare
from pipeline.datasets.dataset import open_dataset
from pipeline.utils.errors import InputError
from student.inference.detector import Detector
from student.inference.postprocess import SelectionConfig
from student.inference.predict_dataset import PARTIAL, predict_dataset
from student.inference.predict_shards import ShardConfig


@pytest.fixture
def predict(toy_detector, dataset_root, tmp_path):
    """`predict(root=, part=, threshold=, top=, overwrite=, limit=, **config)` returns the read
    predictions, None if other jobs' are missing."""

    def make(
        root=dataset_root,
        part="test",
        threshold=0.0,
        top=100,
        overwrite=False,
        limit=None,
        **options,
    ):
        config = ShardConfig(SelectionConfig(threshold, top), workers=0, **options)
        out, dataset = tmp_path / "out", open_dataset(root)
        file = predict_dataset(toy_detector, dataset, part, out, config, overwrite, limit)
        if file is None:
            return None
        assert file == tmp_path / "out/predictions.json"
        return read_predictions(file, toy_detector.vocabulary)

    return make


def test_threshold_and_top(predict, tmp_path):
    found = predict(top=3, part="train")
    assert len(found) == 16 and {len(one.scores) for one in found} == {3}
    least = float(found[0].scores[1])
    again = predict(threshold=least, part="train", overwrite=True)
    assert all((one.scores >= least - 1e-6).all() for one in again)
    assert len(again[0].scores) == 2
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["predictions.json"]


def test_no_interaction_is_predicted_as_benchmarks_count_it(predict, toy_detector):
    verb = toy_detector.vocabulary.no_interaction
    assert any((one.hois[:, 2] == verb).any() for one in predict())


def test_an_interrupted_command_is_resumed(predict, predicted, tmp_path):
    """At the shards that are not finished; the existing file is replaced at the end only."""
    predict(part="train", images_per_shard=3)
    file, names = tmp_path / "out/predictions.json", sorted(predicted)
    whole = file.read_bytes()
    predicted.clear()
    for predicted.stop_at in (7, 14):
        with pytest.raises(KeyboardInterrupt):
            predict(part="train", images_per_shard=3, overwrite=True)
        assert file.read_bytes() == whole
    predicted.stop_at = None
    predict(part="train", images_per_shard=3, overwrite=True)
    assert file.read_bytes() == whole
    # The image of each interrupted shard again.
    assert sorted(set(predicted)) == names and len(predicted) == len(names) + 2
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["predictions.json"]


@pytest.mark.parametrize(
    "change", [{"top": 2}, {"part": "train"}, {"limit": 3}, {"images_per_shard": 4}], ids=str
)
def test_other_settings_start_again(predict, predicted, change):
    predicted.stop_at = 4
    with pytest.raises(KeyboardInterrupt):
        predict(images_per_shard=2)
    predicted.clear()
    predicted.stop_at = None
    assert len(predict(**{"images_per_shard": 2, **change})) == len(predicted)
    assert len(predicted) == len(set(predicted))


def test_jobs_of_an_array(predict, predicted, tmp_path, messages):
    """The last one writes the file; a job that comes again finds it."""
    out = tmp_path / "out"
    alone = predict(images_per_shard=2)
    whole = (out / "predictions.json").read_bytes()
    shutil.rmtree(out)
    assert predict(images_per_shard=2, share=ArrayShare(0, 2, own_only=True)) is None
    assert not (out / "predictions.json").exists()
    assert "missing" in messages[-1]
    for _ in range(2):
        assert len(predict(images_per_shard=2, share=ArrayShare(1, 2))) == len(alone)
        assert (out / "predictions.json").read_bytes() == whole
    with pytest.raises(InputError, match=r"found others \(top\)"):
        predict(images_per_shard=2, top=3, share=ArrayShare(1, 2))
    # The images may have changed.
    predicted.clear()
    assert len(predict(images_per_shard=2, overwrite=True)) == len(predicted)
    assert (out / "predictions.json").read_bytes() == whole and not (out / PARTIAL).exists()


def test_a_damaged_line_is_named(predict, tmp_path):
    predict(images_per_shard=2, share=ArrayShare(0, 2, own_only=True))
    path = tmp_path / "out/predictions.partial/shards/00000.jsonl"
    path.write_bytes(b"{}\n" + path.read_bytes().split(b"\n", 1)[1])
    with pytest.raises(InputError, match=r"00000\.jsonl: line 1: "):
        predict(images_per_shard=2, share=ArrayShare(1, 2))


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
