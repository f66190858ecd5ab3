"""Bad input through the command of phase one: one line, exit 2, nothing half-written."""

import json
import shutil
import sys

import pytest

from teacher_cache.cli import main
from teacher_cache.reader.fingerprint import compute_fingerprint

ANNOTATIONS = "annotations/trainval_hico.json"
FIRST = "toy_train_00000001.jpg"


@pytest.fixture
def refused(monkeypatch, capsys):
    """`refused(*words)` runs the command and gives its one line."""

    def call(*words):
        monkeypatch.setattr(sys, "argv", ["eoid-cache", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            main()
        err = capsys.readouterr().err
        assert ended.value.code == 2, err
        assert err.count("\n") == 1 and err.startswith("eoid-cache: "), err
        return err

    return call


def change(edit):
    """A damage to the entry of the first image."""

    def damage(root):
        entries = json.loads((root / ANNOTATIONS).read_text())
        edit(entries[0])
        (root / ANNOTATIONS).write_text(json.dumps(entries))

    return damage


def set_box(box):
    return change(lambda entry: entry["annotations"][0].update(bbox=box))


def write(content):
    return lambda root: (root / ANNOTATIONS).write_text(content)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (shutil.rmtree, "toy: no such dataset folder"),
        (lambda root: shutil.rmtree(root / "images"), "train2015: no such folder of images"),
        (lambda root: (root / ANNOTATIONS).unlink(), "trainval_hico.json: no such file"),
        (write("[]"), "trainval_hico.json: "),
        (write("[{"), "trainval_hico.json: line 1: expected JSON"),
        (set_box([1, 2, 3]), f"{FIRST}: annotations[0].bbox: expected four"),
        (set_box([1, 2, float("nan"), 9]), f"{FIRST}: annotations[0].bbox: expected four"),
        (
            change(lambda entry: entry["annotations"][0].update(category_id=77)),
            f"{FIRST}: annotations[0].category_id: expected an object id",
        ),
        (lambda root: (root / "dataset.toml").write_text("name ="), "dataset.toml: expected TOML"),
    ],
)
def test_a_bad_dataset(dataset, tmp_path, refused, damage, says):
    damage(dataset)
    assert says in refused("build", dataset, "--out", tmp_path / "cache", "--device", "cpu")
    assert not (tmp_path / "cache").exists()


@pytest.fixture
def manifest(dataset, tmp_path):
    """`manifest(parts)` writes a finished cache's manifest without shards."""

    def make(parts):
        folder = tmp_path / "cache"
        folder.mkdir()
        value = {
            "format_version": 1,
            "fingerprint": compute_fingerprint(parts),
            "parts": parts,
            "failed": {},
            "shards": [],
        }
        (folder / "manifest.json").write_text(json.dumps(value))
        return folder

    return make


def test_evaluating_a_cache_of_another_vocabulary(dataset, manifest, refused, vocabulary):
    folder = manifest({"vocabulary": "0" * 64, "annotations": "1" * 64, "part": "train"})
    line = refused("evaluate", folder, "--data", dataset)
    assert "the cache does not fit this dataset" in line
    assert f"vocabulary: {'0' * 12}, now {vocabulary.digest()[:12]}" in line


def test_evaluating_an_unfinished_cache(dataset, tmp_path, refused):
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache/build.json").write_text("{}")
    assert "the cache is unfinished" in refused("evaluate", tmp_path / "cache", "--data", dataset)


@pytest.mark.parametrize(("words", "says"), [(["--seed", "-1"], "--seed"), ([], "File exists")])
def test_toy_models(tmp_path, refused, words, says):
    (tmp_path / "models").write_text("hours of work")
    assert says in refused("toy-models", tmp_path / "models", "--device", "cpu", *words)
    assert (tmp_path / "models").read_text() == "hours of work"
