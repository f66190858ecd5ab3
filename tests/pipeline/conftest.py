"""Fixtures of the tests of `pipeline`."""

import copy
import json

import pytest
from PIL import Image

from pipeline.vocabulary import load_vocabulary


@pytest.fixture(scope="session")
def hico():
    return load_vocabulary("hico-det")


@pytest.fixture(scope="session")
def vcoco():
    return load_vocabulary("vcoco")


@pytest.fixture
def save_json(tmp_path):
    """Writes a JSON value to a file and returns its path."""

    def write(value, name="annotations.json"):
        path = tmp_path / name
        path.write_text(json.dumps(value))
        return path

    return write


@pytest.fixture(scope="session")
def changed():
    """`changed(value, path, new)`: a copy of parsed JSON in which a nested value is replaced, or
    removed where `new` is `...`."""

    def change(value, path, new):
        whole = place = copy.deepcopy(value)
        for key in path[:-1]:
            place = place[key]
        if new is ...:
            del place[path[-1]]
        else:
            place[path[-1]] = new
        return whole

    return change


@pytest.fixture
def small_dataset(tmp_path):
    """A HICO-DET folder of two training images and one test image."""
    root = tmp_path / "hico"
    for part, file, names in (
        ("train2015", "trainval_hico.json", ("a.jpg", "b.jpg")),
        ("test2015", "test_hico.json", ("c.jpg",)),
    ):
        folder = root / "images" / part
        folder.mkdir(parents=True)
        for name in names:
            Image.new("RGB", (100, 80), (90, 120, 60)).save(folder / name)
        (root / "annotations").mkdir(exist_ok=True)
        entries = [
            {
                "file_name": name,
                "annotations": [
                    {"bbox": [10, 20, 30, 60], "category_id": 1},
                    {"bbox": [5, 40, 50, 70], "category_id": 2},
                ],
                "hoi_annotation": [{"subject_id": 0, "object_id": 1, "category_id": 72}],
            }
            for name in names
        ]
        (root / "annotations" / file).write_text(json.dumps(entries))
    return root
