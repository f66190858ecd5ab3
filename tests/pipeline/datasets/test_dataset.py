import json
import shutil

import pytest

from pipeline.datasets.dataset import find_enclosing_dataset, open_dataset
from pipeline.utils.errors import InputError

TOML = """
name = "mine"
vocabulary = "hico-det"
detector = "weights/detector.safetensors"
teacher = "teacher"

[train]
images = "images/train2015"
annotations = "annotations/trainval_hico.json"
"""


def describe(root, text):
    (root / "dataset.toml").write_text(text)
    return root


def test_folders_that_are_no_dataset_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"expected dataset.toml or a known layout \(HICO-DET .*"):
        open_dataset(tmp_path)
    with pytest.raises(InputError, match="none: no such"):
        open_dataset(tmp_path / "none")


def test_known_layout(small_dataset):
    dataset = open_dataset(small_dataset)
    assert (dataset.name, dataset.vocabulary.name) == ("hico-det", "hico-det")
    assert dataset.detector is dataset.teacher is None
    train = dataset.load("train")
    assert train.part == "train" and train.num_labels == 2
    records = dataset.records(train)
    assert [record.id for record in records] == ["a.jpg", "b.jpg"]
    assert all(record.path.is_file() for record in records)
    assert [record.id for record in dataset.records("test")] == ["c.jpg"]
    assert dataset.vcoco_ground_truth("test") is None


def test_dataset_toml(small_dataset):
    dataset = open_dataset(describe(small_dataset, TOML))
    assert dataset.name == "mine" and set(dataset.parts) == {"train"}
    assert dataset.detector == small_dataset / "weights/detector.safetensors"
    assert dataset.teacher == small_dataset / "teacher"
    assert len(dataset.records("train")) == 2
    text = TOML.replace('name = "mine"', "")
    assert open_dataset(describe(small_dataset, text)).name == "hico"


def test_missing_part_error_lists_existing_parts(small_dataset):
    dataset = open_dataset(describe(small_dataset, TOML))
    with pytest.raises(InputError, match=r"hico: expected.*found train"):
        dataset.load("test")


def test_vocabulary_path_is_relative_to_dataset_toml(small_dataset, tmp_path, monkeypatch):
    vocabulary = {
        "objects": [{"name": "person", "id": 1}, {"name": "bicycle", "id": 2}],
        "verbs": [{"name": f"verb{i}", "ing": f"verbing {i}"} for i in range(72)],
        "interactions": [[71, 1]],
    }
    (small_dataset / "words").mkdir()
    (small_dataset / "words" / "mine.json").write_text(json.dumps(vocabulary))
    text = TOML.replace('"hico-det"', '"words/mine.json"')
    monkeypatch.chdir(tmp_path)
    dataset = open_dataset(describe(small_dataset, text))
    assert dataset.vocabulary.name == "mine"
    assert dataset.load("train").annotations[0].hois.tolist() == [[0, 1, 71]]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"hico-det"', '"none.json"', "none.json: no such vocabulary"),
        ('vocabulary = "hico-det"', "", "vocabulary: expected"),
        ('name = "mine"', "name = 7", r"dataset.toml: name: expected.*found 7"),
        ('name = "mine"', 'nam = "mine"', "nam: expected"),
        ('name = "mine"', 'orientation = "up"', "orientation: expected one of stored, upright"),
        ('images = "', 'image = "', r"train.image: expected"),
        (TOML, 'vocabulary = "hico-det"', "dataset.toml: parts: expected"),
        ('"hico-det"', '"world"', 'vocabulary: expected "toy", found "world"; write vocabulary'),
        ("annotations = ", "ids = ", r"train\.annotations: expected"),
    ],
)
def test_wrong_dataset_toml_names_the_field(small_dataset, old, new, message):
    assert old in TOML
    with pytest.raises(InputError, match=message):
        open_dataset(describe(small_dataset, TOML.replace(old, new)))


VCOCO = """
vocabulary = "vcoco"

[test]
images = "photos"
annotations = "data/vcoco/vcoco_test.json"
instances = "boxes.json"
ids = "mine.ids"
"""


def test_paths_of_vcoco_files_can_be_set(tmp_path, write_vcoco):
    image = {"boxes": [(1, [0, 0, 40, 80])], "does": {(0, "run"): ()}}
    write_vcoco(tmp_path, [image] * 3)
    (tmp_path / "data/instances_vcoco_all_2014.json").rename(tmp_path / "boxes.json")
    (tmp_path / "mine.ids").write_text("30\n10\n")
    dataset = open_dataset(describe(tmp_path, VCOCO))
    names = [f"COCO_val2014_{number:012}.jpg" for number in (30, 10)]
    assert [item.image_id for item in dataset.load("test").annotations] == names
    assert [image.name for image in dataset.vcoco_ground_truth("test").images] == names
    without = VCOCO.replace('ids = "mine.ids"', "")
    assert len(open_dataset(describe(tmp_path, without)).load("test").annotations) == 3


@pytest.mark.parametrize("name", ["images/train2015/b.jpg", "images/train2015"])
def test_missing_images_are_named(small_dataset, name):
    path = small_dataset / name
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(InputError, match=f"{name}: no such"):
        open_dataset(small_dataset).records("train")


def test_images_in_subfolders(small_dataset):
    folder = small_dataset / "images/test2015"
    (folder / "more").mkdir()
    (folder / "c.jpg").rename(folder / "more" / "c.jpg")
    file = small_dataset / "annotations/test_hico.json"
    file.write_text(file.read_text().replace("c.jpg", "more/c.jpg"))
    (record,) = open_dataset(small_dataset).records("test")
    assert record.id == "more/c.jpg" and record.path.is_file()


def test_find_enclosing_dataset(small_dataset, tmp_path):
    file = small_dataset / "annotations/test_hico.json"
    assert find_enclosing_dataset(file, "test").root == small_dataset.resolve()
    assert find_enclosing_dataset(file, "train") is None
    alone = tmp_path / "elsewhere" / "test_hico.json"
    alone.parent.mkdir()
    shutil.copy(file, alone)
    assert find_enclosing_dataset(alone, "test") is None


IMAGES_ONLY = '[train]\nimages = "images/train2015"\n'


def test_part_without_annotations(small_dataset):
    folder = small_dataset / "images/train2015"
    for name in ("notes.txt", ".hidden.jpg"):
        (folder / name).write_text("not an image")
    (folder / "more.jpg").mkdir()
    (folder / "C.PNG").write_bytes((folder / "a.jpg").read_bytes())
    dataset = open_dataset(describe(small_dataset, f'vocabulary = "hico-det"\n{IMAGES_ONLY}'))
    found = dataset.load("train")
    assert [record.id for record in dataset.records(found)] == ["C.PNG", "a.jpg", "b.jpg"]
    assert found.num_labels == 0 and found.part == "train" and found.format_issues() == ""
    for one in found.annotations:
        assert (one.boxes.shape, one.labels.shape, one.hois.shape) == ((0, 4), (0,), (0, 3))
    assert dataset.vcoco_ground_truth("train") is None
    (folder / "b.jpg").unlink()
    assert dataset.load("train").digest != found.digest


def test_folder_without_images_is_refused(small_dataset):
    text = f'vocabulary = "hico-det"\n{IMAGES_ONLY.replace("train2015", "none")}'
    dataset = open_dataset(describe(small_dataset, text))
    with pytest.raises(InputError, match="none: no such"):
        dataset.load("train")
    (small_dataset / "images/none").mkdir()
    with pytest.raises(InputError, match="none: expected"):
        dataset.load("train")
