"""Bad input to the commands of the student: a one-line error, exit code 2, no partial files."""

import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from pipeline.splits import load_split
from pipeline.utils.weights import read_checkpoint
from student.cli import main
from student.inference.cli import main as predict_main
from student.models.detector import HOIDetector
from student.weights.checkpoint_file import Checkpoint, save_checkpoint

FILES = {"train": "trainval_hico.json", "test": "test_hico.json"}


@pytest.fixture
def folder(dataset_root, cache_path, tmp_path):
    """Copies of the dataset and the cache, for tests to damage."""
    shutil.copytree(dataset_root, tmp_path / "data")
    shutil.copytree(cache_path, tmp_path / "cache")
    return tmp_path


@pytest.fixture(scope="module")
def checkpoint(tiny_recipe, vocabulary, tmp_path_factory):
    torch.manual_seed(0)
    file = tmp_path_factory.mktemp("student") / "checkpoint.pt"
    weights = HOIDetector(tiny_recipe.model).state_dict()
    split = load_split(vocabulary, "ua")
    save_checkpoint(file, Checkpoint(tiny_recipe, vocabulary, split, weights, {}))
    return file


@pytest.fixture
def refused(folder, checkpoint, monkeypatch, capsys):
    """`refused(part, left=)` runs the command that reads this part, returns its error line and
    checks which files it left."""

    def call(part, left=frozenset()):
        commands = {
            "train": ["student", "--cache", folder / "cache", "--split", "ua", "--preset", "toy"],
            "test": ["evaluate", checkpoint],
        }
        arguments = [*commands[part], "--data", folder / "data", "--out", folder / "out"]
        monkeypatch.setattr(sys, "argv", ["eoid-train", *map(str, arguments), "--device", "cpu"])
        with pytest.raises(SystemExit) as ended:
            main()
        err = capsys.readouterr().err
        # Messages of the log and progress may precede the error.
        lines = err.splitlines()
        assert ended.value.code == 2 and "Traceback" not in err, err
        assert [line.startswith("eoid-train: ") for line in lines].count(True) == 1, err
        assert lines[-1].startswith("eoid-train: "), err
        assert {path.name for path in folder.glob("out/*")} == left
        return lines[-1]

    return call


def change(edit):
    """Damages the entry of the second image in an annotation file."""

    def damage(root, part):
        file = root / "annotations" / FILES[part]
        entries = json.loads(file.read_text())
        edit(entries[1])
        file.write_text(json.dumps(entries))

    return damage


def set_box(box):
    return change(lambda entry: entry["annotations"][0].update(bbox=box))


def images(root, part):
    return root / "images" / f"{part}2015"


def no_folder(root, part):
    shutil.rmtree(root)


def no_image(root, part):
    sorted(images(root, part).iterdir())[2].unlink()


def no_images(root, part):
    shutil.rmtree(images(root, part))


def no_annotations(root, part):
    (root / "annotations" / FILES[part]).unlink()


def every(edit):
    """Damages every entry of an annotation file."""

    def damage(root, part):
        file = root / "annotations" / FILES[part]
        entries = json.loads(file.read_text())
        for entry in entries:
            edit(entry)
        file.write_text(json.dumps(entries))

    return damage


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


def empty_annotations(root, part):
    (root / "annotations" / FILES[part]).write_text("[]")


def half_annotations(root, part):
    file = root / "annotations" / FILES[part]
    file.write_text(file.read_text()[:400])


@pytest.mark.parametrize("part", FILES)
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (no_folder, "data: no such dataset folder"),
        (no_images, "{part}2015: no such folder of images"),
        (no_image, "toy_{part}_00000003.jpg: no such image"),
        (no_annotations, "{file}: no such file"),
        (empty_annotations, "{file}: "),
        (half_annotations, "{file}: line "),
        (set_box([1, 2, 3]), "toy_{part}_00000002.jpg: annotations[0].bbox: expected four"),
        (set_box([1, 2, float("nan"), 9]), "toy_{part}_00000002.jpg: annotations[0].bbox: "),
        (set_box("wide"), "annotations[0].bbox: expected four"),
        (
            change(lambda entry: entry["annotations"][1].update(category_id=77)),
            "annotations[1].category_id: expected an object id",
        ),
        (
            change(lambda entry: entry["hoi_annotation"][0].update(category_id=99)),
            "hoi_annotation[0].category_id: expected a verb",
        ),
        (change(lambda entry: entry.pop("annotations")), "toy_{part}_00000002.jpg: annotations"),
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


def test_a_truncated_test_image(folder, refused):
    image = sorted(images(folder / "data", "test").iterdir())[1]
    image.write_bytes(image.read_bytes()[:600])
    assert f"{image}: expected a whole image" in refused("test")


def test_a_training_image_truncated_after_the_cache_was_built(folder, refused):
    image = sorted(images(folder / "data", "train").iterdir())[1]
    image.write_bytes(image.read_bytes()[:600])
    assert f"{image}: expected a whole image" in refused("train")


def unfinished(cache):
    (cache / "manifest.json").rename(cache / "build.json")


def later_format(cache):
    file = cache / "manifest.json"
    file.write_text(file.read_text().replace('"format_version": 1', '"format_version": 2'))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (shutil.rmtree, "cache: expected a cache folder with manifest.json, found none"),
        (unfinished, "cache: the cache is unfinished (no manifest.json)"),
        (later_format, "manifest.json: format_version: expected 1, found 2"),
        (lambda cache: (cache / "manifest.json").write_text("{"), "line 1: expected JSON"),
    ],
)
def test_a_bad_cache(folder, refused, damage, message):
    damage(folder / "cache")
    assert message in refused("train")


def test_a_cache_of_another_vocabulary(
    folder, refused, write_cache, annotations, make_teacher_outputs, vocabulary
):
    other = replace(vocabulary, verbs=("mount", *vocabulary.verbs[1:]))
    outputs = {one.image_id: make_teacher_outputs(one) for one in annotations.annotations}
    shutil.rmtree(folder / "cache")
    write_cache(folder / "cache", other, annotations.digest, outputs)
    line = refused("train")
    assert "the cache does not fit this dataset: vocabulary: " in line
    assert other.digest()[:12] in line and vocabulary.digest()[:12] in line


def test_a_cache_of_other_annotations(folder, refused):
    file = Path(folder / "data/annotations/trainval_hico.json")
    file.write_text(file.read_text() + "\n")
    assert "the cache does not fit this dataset: annotations: " in refused("train")


@pytest.fixture
def nan_file(checkpoint, tmp_path):
    """A checkpoint with one NaN in the proposal head."""
    content = read_checkpoint(checkpoint)
    content["model"]["query_source.head.boxes.0.weight"].flatten()[5] = torch.nan
    torch.save(content, tmp_path / "nan.pt")
    return tmp_path / "nan.pt"


@pytest.mark.parametrize("command", ["--pretrained", "evaluate", "predict"])
def test_non_finite_weights(nan_file, folder, command, monkeypatch, capsys):
    data = ("--data", folder / "data", "--out", folder / "out")
    student = ("student", *data, "--cache", folder / "cache", "--split", "ua", "--preset", "toy")
    arguments, run = {
        "--pretrained": ((*student, "--pretrained", nan_file), main),
        "evaluate": (("evaluate", nan_file, *data), main),
        "predict": ((nan_file, *data), predict_main),
    }[command]
    monkeypatch.setattr(sys, "argv", ["eoid", *map(str, arguments), "--device", "cpu"])
    with pytest.raises(SystemExit) as ended:
        run()
    line = capsys.readouterr().err.splitlines()[-1]
    assert ended.value.code == 2 and line.startswith("eoid") and not (folder / "out").exists()
    assert f"{nan_file}: query_source.head.boxes.0.weight: " in line and "1 of " in line


def test_a_diverging_run_with_proposal_queries(student_command, tmp_path):
    """In a separate process, since RoI pooling of NaN boxes may end it by a signal."""
    arguments = student_command(tmp_path / "run", "--learning-rate", 1e20, "--clip-norm", 0)
    arguments += [
        "--backbone-learning-rate",
        1e20,
        "--epochs",
        3,
        "--batch-size",
        4,
        "--workers",
        0,
    ]
    done = subprocess.run(
        [sys.executable, "-m", "student.cli", *map(str, arguments)], capture_output=True, text=True
    )
    assert done.returncode == 2, done.stderr
    line = done.stderr.splitlines()[-1]
    assert re.search(r"step \d+: .*total.* not finite on images toy_train_", line)
