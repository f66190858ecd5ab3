"""Bad input to the commands of the student: a one-line error, exit code 2, no partial files."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from commands import run_command
from PIL import Image

from pipeline.utils.weights import read_checkpoint
from student.cli import main
from student.inference.cli import main as predict_main

FILES = {"train": "trainval_hico.json", "test": "test_hico.json"}


@pytest.fixture
def folder(dataset_root, cache_path, tmp_path):
    """Copies of the dataset and the cache, for tests to damage."""
    shutil.copytree(dataset_root, tmp_path / "data")
    shutil.copytree(cache_path, tmp_path / "cache")
    return tmp_path


@pytest.fixture
def refused(folder, toy_checkpoint):
    """`refused(part)` runs the command that reads this part of the dataset, returns its error line
    and checks that it left no files."""

    def call(part, checkpoint=toy_checkpoint, main=main, more=()):
        words = {
            "train": ["student", "--cache", folder / "cache", "--split", "ua", "--preset", "toy"],
            "test": ["evaluate", checkpoint],
            "predict": [checkpoint],
        }
        places = ["--data", folder / "data", "--out", folder / "out", "--device", "cpu"]
        done = run_command(main, "eoid", *words[part], *places, *more)
        # Messages of the log and progress may precede the error.
        lines = done.stderr.splitlines()
        assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
        assert [line.startswith("eoid") for line in lines].count(True) == 1, done.stderr
        assert lines[-1].startswith("eoid"), done.stderr
        assert not list(folder.glob("out/*"))
        return lines[-1]

    return call


def every(edit, rows=slice(None)):
    """Damages entries of an annotation file."""

    def damage(root, part):
        file = annotations_of(root, part)
        entries = json.loads(file.read_text())
        for entry in entries[rows]:
            edit(entry)
        file.write_text(json.dumps(entries))

    return damage


bad_box = every(lambda entry: entry["annotations"][0].update(bbox=[1, 2, 3]), slice(1, 2))


def images(root, part):
    return root / "images" / f"{part}2015"


def annotations_of(root, part):
    return root / "annotations" / FILES[part]


def no_image(root, part):
    sorted(images(root, part).iterdir())[2].unlink()


def swap(entry):
    for row in entry["hoi_annotation"]:
        row["subject_id"], row["object_id"] = row["object_id"], row["subject_id"]


def scale_boxes(factor):
    def scale(entry):
        for row in entry["annotations"]:
            row["bbox"] = [factor * number for number in row["bbox"]]

    return every(scale)


def smaller(root, part):
    for path in images(root, part).iterdir():
        with Image.open(path) as image:
            half = image.resize((64, 64))
        half.save(path)


def half_annotations(root, part):
    file = annotations_of(root, part)
    file.write_text(file.read_text()[:400])


@pytest.mark.parametrize("part", FILES)
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda root, _: shutil.rmtree(root), "data: no such dataset folder"),
        (lambda *data: shutil.rmtree(images(*data)), "{part}2015: no such folder of images"),
        (no_image, "toy_{part}_00000003.jpg: no such image"),
        (lambda *data: annotations_of(*data).unlink(), "{file}: no such file"),
        (half_annotations, "{file}: line "),
        (bad_box, "toy_{part}_00000002.jpg: annotations[0].bbox: expected four"),
        (every(lambda entry: entry.update(hoi_annotation=[])), "labelled interactions, found none"),
        (
            every(lambda entry: [row.update(object_id=99) for row in entry["hoi_annotation"]]),
            "labels with a box index out of range",
        ),
        (every(swap), "subject and object swapped"),
        (scale_boxes(1 / 128), "numbers from 0 to 1"),
        (smaller, "declared 128 x 128, the file has 64 x 64"),
    ],
)
def test_a_bad_dataset(folder, refused, damage, message, part):
    damage(folder / "data", part)
    assert message.format(part=part, file=FILES[part]) in refused(part)


@pytest.mark.parametrize("part", FILES)
def test_a_truncated_image(folder, refused, part):
    """Of the training part, truncated after the cache was built."""
    image = sorted(images(folder / "data", part).iterdir())[1]
    image.write_bytes(image.read_bytes()[:600])
    assert f"{image}: expected a whole image" in refused(part)


def later_format(cache):
    file = cache / "manifest.json"
    file.write_text(file.read_text().replace('"format_version": 1', '"format_version": 2'))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (shutil.rmtree, "cache: expected a cache folder with manifest.json, found none"),
        (
            lambda cache: (cache / "manifest.json").rename(cache / "build.json"),
            "cache: the cache is unfinished (no manifest.json)",
        ),
        (later_format, "manifest.json: format_version: expected 1, found 2"),
        (lambda cache: (cache / "manifest.json").write_text("{"), "line 1: expected JSON"),
    ],
)
def test_a_bad_cache(folder, refused, damage, message):
    damage(folder / "cache")
    assert message in refused("train")


def test_a_missing_shard(folder, refused):
    (folder / "cache/shards/00000.h5").unlink()
    assert "00000.h5: expected a complete shard" in refused("train")


def test_a_cache_of_another_vocabulary(folder, refused, make_cache, annotations, vocabulary):
    other = replace(vocabulary, verbs=("mount", *vocabulary.verbs[1:]))
    shutil.rmtree(folder / "cache")
    make_cache(folder / "cache", annotations, other)
    line = refused("train")
    assert "the cache does not fit this dataset: vocabulary: " in line
    assert other.digest()[:12] in line and vocabulary.digest()[:12] in line


def test_a_cache_of_other_annotations(folder, refused):
    file = Path(folder / "data/annotations/trainval_hico.json")
    file.write_text(file.read_text() + "\n")
    assert "the cache does not fit this dataset: annotations: " in refused("train")


@pytest.mark.parametrize("part", ["train", "test", "predict"])
def test_non_finite_weights(refused, toy_checkpoint, tmp_path, part):
    """One NaN in the proposal head."""
    file = tmp_path / "nan.pt"
    content = read_checkpoint(toy_checkpoint / "checkpoint.pt")
    content["model"]["query_source.head.boxes.0.weight"].flatten()[5] = torch.nan
    torch.save(content, file)
    more = ("--pretrained", file) if part == "train" else ()
    line = refused(part, file, predict_main if part == "predict" else main, more)
    assert f"{file}: query_source.head.boxes.0.weight: " in line and "1 of " in line


def test_a_diverging_run_with_proposal_queries(start, student_command, tmp_path):
    """In a separate process, since RoI pooling of NaN boxes may end it by a signal."""
    options = "--learning-rate 1e20 --clip-norm 0 --backbone-learning-rate 1e20 --epochs 3"
    options += " --batch-size 4 --workers 0"
    arguments = student_command(tmp_path / "run", *options.split())
    code, _, err = start(arguments)()
    assert code == 2, err
    line = err.splitlines()[-1]
    assert re.search(r"step \d+: .*total.* not finite on images toy_train_", line)
