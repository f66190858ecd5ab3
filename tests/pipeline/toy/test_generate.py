import json

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from pipeline.cli import data
from pipeline.datasets.dataset import open_dataset
from pipeline.toy import generate
from pipeline.toy.generate import write_toy
from pipeline.toy.scene import draw_scene
from pipeline.toy.scene_spec import toy_vocabulary
from pipeline.utils.errors import InputError


def folder_contents(root):
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def small_toy(tmp_path_factory):
    root = tmp_path_factory.mktemp("toy")
    assert write_toy(root, 6, 3, seed=2)
    return root


def test_files_of_the_toy_dataset(small_toy):
    assert sorted(folder_contents(small_toy)) == [
        "annotations/test_hico.json",
        "annotations/trainval_hico.json",
        "dataset.toml",
        *(f"images/test2015/toy_test_{number:08d}.jpg" for number in range(1, 4)),
        *(f"images/train2015/toy_train_{number:08d}.jpg" for number in range(1, 7)),
        "toy.json",
    ]
    dataset = open_dataset(small_toy)
    assert dataset.name == dataset.vocabulary.name == "toy"
    for part, count in (("train", 6), ("test", 3)):
        assert len(dataset.load(part).annotations) == count
        for record in dataset.records(part):
            with Image.open(record.path) as image:
                image.load()
                assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (128, 128))


def test_annotations_are_in_hoia_format(small_toy):
    vocabulary = toy_vocabulary()
    entries = json.loads((small_toy / "annotations/trainval_hico.json").read_text())
    assert len(entries) == 6
    for index, entry in enumerate(entries):
        annotation = draw_scene(2, "train", index)[1]
        assert entry["file_name"] == annotation.image_id
        assert (entry["width"], entry["height"]) == (128, 128)
        assert len(entry["annotations"]) == len(annotation.boxes)
        for box, found in zip(annotation.boxes, entry["annotations"], strict=True):
            assert np.float32(found["bbox"]).tolist() == box.tolist()
        for row, found in zip(annotation.hois, entry["hoi_annotation"], strict=True):
            assert (found["subject_id"], found["object_id"]) == (row[0], row[1])
            assert found["category_id"] == row[2] + 1
            label = vocabulary.label_by_category_id[entry["annotations"][row[1]]["category_id"]]
            pair = vocabulary.interactions[found["hoi_category_id"] - 1]
            assert pair == (row[2], label)


def test_the_layout_of_swig_hoi_has_the_same_images_and_labels(small_toy, tmp_path):
    assert write_toy(tmp_path, 6, 3, seed=2, layout="swig")
    assert not write_toy(tmp_path, 6, 3, seed=2, layout="swig")
    written = folder_contents(tmp_path)
    for part, count in (("train", 6), ("test", 3)):
        first, second = (
            open_dataset(root).load(part, strict=True) for root in (small_toy, tmp_path)
        )
        for one, other in zip(first.annotations, second.annotations, strict=True):
            assert one.image_id == other.image_id and one.hois.tolist() == other.hois.tolist()
            assert one.boxes.tolist() == other.boxes.tolist()
        assert [image.id for image in second.swig_images] == list(range(1, count + 1))
    # In place of a dataset in the other layout, no file of which is left.
    root = tmp_path / "w"
    write_toy(root, 7, 3, seed=2)
    with pytest.raises(InputError, match="--overwrite"):
        write_toy(root, 6, 3, seed=2, layout="swig")
    assert write_toy(root, 6, 3, seed=2, layout="swig", overwrite=True)
    assert folder_contents(root) == written


def test_bytes_do_not_depend_on_workers(tmp_path, monkeypatch):
    monkeypatch.setattr(generate, "MIN_IMAGES_FOR_WORKERS", 5)
    monkeypatch.setattr(generate, "CHUNK_SIZE", 4)
    write_toy(tmp_path / "one", 10, 1, seed=0, workers=1)
    write_toy(tmp_path / "two", 10, 1, seed=0, workers=2)
    assert folder_contents(tmp_path / "one") == folder_contents(tmp_path / "two")


def test_finished_dataset_is_not_written_again(small_toy):
    before = {path: path.stat().st_mtime_ns for path in small_toy.rglob("*")}
    assert not write_toy(small_toy, 6, 3, seed=2)
    assert before == {path: path.stat().st_mtime_ns for path in small_toy.rglob("*")}


def test_interrupted_dataset_is_completed(small_toy, tmp_path, monkeypatch):
    real, calls = generate.to_hoia_entry, []

    def interrupted(annotation):
        calls.append(annotation)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return real(annotation)

    monkeypatch.setattr(generate, "to_hoia_entry", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_toy(tmp_path / "w", 6, 3, seed=2)
    assert not (tmp_path / "w" / "dataset.toml").exists()
    monkeypatch.undo()
    assert write_toy(tmp_path / "w", 6, 3, seed=2)
    assert folder_contents(tmp_path / "w") == folder_contents(small_toy)


def test_other_toy_dataset_is_replaced_only_with_overwrite(small_toy, tmp_path):
    root = tmp_path / "w"
    write_toy(root, 8, 4, seed=1)
    before = folder_contents(root)
    with pytest.raises(InputError, match=r"'seed': 2.*'seed': 1.*--overwrite"):
        write_toy(root, 6, 3, seed=2)
    assert folder_contents(root) == before
    assert write_toy(root, 6, 3, seed=2, overwrite=True)
    assert folder_contents(root) == folder_contents(small_toy)


def test_folder_with_other_files_is_refused(tmp_path):
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "trainval_hico.json").write_text("[]")
    before = folder_contents(tmp_path)
    with pytest.raises(InputError, match="expected a new folder or a toy dataset"):
        write_toy(tmp_path, 6, 3, seed=0, overwrite=True)
    assert folder_contents(tmp_path) == before


@pytest.mark.parametrize("where", ["file", "file/below"])
def test_file_in_place_of_the_folder_is_refused(tmp_path, where):
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="file"):
        write_toy(tmp_path / where, 6, 3, seed=0)


@pytest.mark.parametrize(
    ("train", "test", "seed", "named"),
    [(0, 1, 0, "train"), (-5, 1, 0, "train"), (1, 0, 0, "test"), (1, 1, -1, "seed")],
)
def test_wrong_numbers_are_refused_before_writing(tmp_path, train, test, seed, named):
    with pytest.raises(InputError, match=rf"{named}: expected a number"):
        write_toy(tmp_path / "w", train, test, seed)
    assert not (tmp_path / "w").exists()


def test_command(tmp_path, small_toy):
    root = tmp_path / "w"
    words = ["toy", str(root), "--train", "6", "--test", "3", "--seed", "2"]
    assert "wrote the toy dataset" in CliRunner().invoke(data, words).stdout
    assert folder_contents(root) == folder_contents(small_toy)
    assert "already there" in CliRunner().invoke(data, words).stdout
