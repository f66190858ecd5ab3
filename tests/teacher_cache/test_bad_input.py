"""Bad input of `eoid-cache`: one line on stderr, exit code 2, no partial output."""

import json
import shutil
import sys

import pytest

from teacher_cache.cli import main
from teacher_cache.reader.fingerprint import compute_fingerprint

ANNOTATIONS = "annotations/trainval_hico.json"
FIRST = "toy_train_00000001.jpg"


@pytest.fixture
def run_refused(monkeypatch, capsys):
    """Runs `eoid-cache` with bad input and returns its message."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["eoid-cache", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            main()
        err = capsys.readouterr().err
        assert caught.value.code == 2, err
        assert err.count("\n") == 1 and err.startswith("eoid-cache: "), err
        return err

    return run


def edit_first_entry(edit):
    """Returns a function that edits the annotations of the first image."""

    def damage(root):
        entries = json.loads((root / ANNOTATIONS).read_text())
        edit(entries[0])
        (root / ANNOTATIONS).write_text(json.dumps(entries))

    return damage


def set_box(box):
    return edit_first_entry(lambda entry: entry["annotations"][0].update(bbox=box))


def write(content):
    return lambda root: (root / ANNOTATIONS).write_text(content)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (shutil.rmtree, "toy: no such dataset folder"),
        (lambda root: shutil.rmtree(root / "images"), "train2015: no such folder of images"),
        (lambda root: (root / ANNOTATIONS).unlink(), "trainval_hico.json: no such file"),
        (write("[]"), "trainval_hico.json: "),
        (write("[{"), "trainval_hico.json: line 1: expected JSON"),
        (set_box([1, 2, 3]), f"{FIRST}: annotations[0].bbox: expected four"),
        (set_box([1, 2, float("nan"), 9]), f"{FIRST}: annotations[0].bbox: expected four"),
        (
            edit_first_entry(lambda entry: entry["annotations"][0].update(category_id=77)),
            f"{FIRST}: annotations[0].category_id: expected an object id",
        ),
        (lambda root: (root / "dataset.toml").write_text("name ="), "dataset.toml: expected TOML"),
    ],
)
def test_bad_datasets(dataset, tmp_path, run_refused, damage, message):
    damage(dataset)
    assert message in run_refused("build", dataset, "--out", tmp_path / "cache", "--device", "cpu")
    assert not (tmp_path / "cache").exists()


@pytest.fixture
def write_manifest(tmp_path):
    """Writes the manifest of a finished cache without shards; returns its folder."""

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


def test_evaluating_a_cache_of_another_vocabulary(dataset, write_manifest, run_refused, vocabulary):
    folder = write_manifest({"vocabulary": "0" * 64, "annotations": "1" * 64, "part": "train"})
    line = run_refused("evaluate", folder, "--data", dataset)
    assert "the cache does not fit this dataset" in line
    assert f"vocabulary: {'0' * 12}, now {vocabulary.digest()[:12]}" in line


def test_evaluating_an_unfinished_cache(dataset, tmp_path, run_refused):
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache/build.json").write_text("{}")
    assert "the cache is unfinished" in run_refused(
        "evaluate", tmp_path / "cache", "--data", dataset
    )


@pytest.mark.parametrize(
    ("arguments", "message"), [(["--seed", "-1"], "--seed"), ([], "File exists")]
)
def test_toy_models(tmp_path, run_refused, arguments, message):
    (tmp_path / "models").write_text("existing content")
    assert message in run_refused("toy-models", tmp_path / "models", "--device", "cpu", *arguments)
    assert (tmp_path / "models").read_text() == "existing content"
