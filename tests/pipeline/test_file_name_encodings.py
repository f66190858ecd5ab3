"""File names that the locale cannot encode, and file names that are not UTF-8."""

import json
import os
import shutil
import subprocess
import sys

import pytest

from pipeline.annotations.load import NON_UTF8_NAME
from pipeline.datasets.dataset import open_dataset
from pipeline.utils.errors import InputError
from pipeline.utils.files import read_json, sha256_of_json, write_json

C_LOCALE = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
BYTES = os.fsdecode(b"b\xfccher.jpg")


@pytest.fixture
def check():
    """Runs `eoid-data check` in the C locale."""

    def run(root):
        code = "from pipeline.cli import data, run_command; run_command(data)"
        return subprocess.run(
            [sys.executable, "-c", code, "check", root],
            env={**os.environ, **C_LOCALE},
            capture_output=True,
        )

    return run


def rename(root, name):
    file = root / "annotations/test_hico.json"
    (entry,) = json.loads(file.read_text())
    (root / "images/test2015" / entry["file_name"]).rename(root / "images/test2015" / name)
    file.write_text(json.dumps([{**entry, "file_name": name}]))


@pytest.mark.parametrize("name", ["bücher.jpg", "絵.jpg"])
def test_names_that_the_locale_cannot_encode(small_dataset, check, tmp_path, name):
    rename(small_dataset, name)
    root = tmp_path / "daten für alle"
    small_dataset.rename(root)
    (root / "images/test2015/ok.jpg").symlink_to(name)
    done = check(root)
    assert done.returncode == 0, done.stderr.decode()
    (root / "images/test2015" / name).write_bytes(b"")
    done = check(root)
    assert done.returncode == 2 and done.stderr.count(b"\n") == 1
    assert name in done.stderr.decode() and b"Traceback" not in done.stderr


def test_annotated_names_that_are_not_utf8_are_refused(small_dataset, check):
    rename(small_dataset, BYTES)
    with pytest.raises(InputError) as caught:
        open_dataset(small_dataset).load("test")
    assert r"b\udcfccher.jpg" in str(caught.value) and "UTF-8" in str(caught.value)
    str(caught.value).encode()
    done = check(small_dataset)
    assert done.returncode == 2 and done.stderr.count(b"\n") == 1
    assert rb"b\udcfccher.jpg" in done.stderr


def test_images_with_names_that_are_not_utf8_are_left_out(small_dataset, check, tmp_path):
    folder = small_dataset / "images/train2015"
    shutil.copy(folder / "a.jpg", folder / BYTES)
    (small_dataset / "dataset.toml").write_text(
        'vocabulary = "hico-det"\n[train]\nimages = "images/train2015"\n'
    )
    loaded = open_dataset(small_dataset).load("train")
    assert [one.image_id for one in loaded.annotations] == ["a.jpg", "b.jpg"]
    assert loaded.issues == {NON_UTF8_NAME: 1} and r"b\udcfccher" in loaded.examples[NON_UTF8_NAME]
    done = check(small_dataset)
    assert done.returncode == 0 and rb"b\udcfccher.jpg" in done.stdout


def test_folder_whose_name_is_not_utf8(small_dataset, check, tmp_path):
    root = tmp_path / os.fsdecode(b"d\xfcr")
    small_dataset.rename(root)
    assert check(root).returncode == 0
    done = check(root / "none")
    assert done.returncode == 2 and rb"d\udcfcr/none" in done.stderr


def test_json_keeps_names_that_are_not_utf8(tmp_path):
    value = {"image": BYTES, "other": "bücher"}
    write_json(tmp_path / "a.json", value)
    assert read_json(tmp_path / "a.json") == value
    assert sha256_of_json(value) != sha256_of_json({**value, "image": "b.jpg"})
