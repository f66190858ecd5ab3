import json
import os
import shutil
import signal
import subprocess
import sys
import time
from functools import partial

import pytest
from commands import run_command

from teacher_cache.cli import main
from teacher_cache.detectors.torchvision import TOY_IN_CACHES

COMMAND = [sys.executable, "-c", "from teacher_cache.cli import main; main()"]
OPTIONS = ["--person-threshold", "0.06", "--object-threshold", "0.06", "--max-objects", "2"]


run = partial(run_command, main, "eoid-cache")


@pytest.fixture(scope="module")
def built(shared_dataset, tmp_path_factory):
    """A cache built with a configuration file, and the finished command."""
    folder = tmp_path_factory.mktemp("built")
    config = folder / "config.toml"
    config.write_text("images-per-shard = 2\nperson-threshold = 0.06\nobject-threshold = 0.9\n")
    done = run(
        "build",
        shared_dataset,
        "--out",
        folder / "cache",
        "--config",
        config,
        "--object-threshold",
        "0.06",
    )
    return folder / "cache", done


def test_build(built):
    cache, done = built
    assert done.returncode == 0, done.stderr
    assert "7 images" in done.stdout and "4 shards" in done.stdout
    assert "Traceback" not in done.stderr
    assert (cache / "manifest.json").is_file()


@pytest.mark.parametrize(
    ("option", "line"),
    [
        ("--device=auto", "{}: was finished before; nothing to do"),
        ("--verbose", "INFO eoid.teacher_cache.build: {}: was finished before; nothing to do"),
        ("--quiet", None),
    ],
)
def test_messages_of_a_build(built, shared_dataset, option, line):
    cache, _ = built
    config = ("--config", cache.parent / "config.toml", "--object-threshold", "0.06")
    done = run("build", shared_dataset, "--out", cache, *config, option)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert (line is None and done.stderr == "") or line.format(cache) in done.stderr.splitlines()


def test_the_printed_configuration_builds_the_same_cache(shared_dataset, tmp_path, monkeypatch):
    built, config = [], tmp_path / "config.toml"
    monkeypatch.setattr("teacher_cache.build.build_cache", built.append)
    config.write_text(run("config").stdout)
    words = ("build", shared_dataset, "--out", tmp_path / "cache")
    assert run(*words).returncode == run(*words, "--config", config).returncode == 0
    assert built[0] == built[1]
    done = run(*words, "--config", config, "--set", "level=image", "--set", "max_objects=2")
    assert done.returncode == 0, done.stderr
    extraction = built[2].extraction
    assert (extraction.level, extraction.pairing.max_objects) == ("image", 2)


@pytest.mark.parametrize(
    ("assignment", "facts"),
    [
        ("max_objects=0", ("max_objects: expected integer, at least 1", "found 0")),
        ("levle=image", ("levle: expected a setting of eoid-cache build", "level")),
        ("cores=8", ("--cores: expected together with --slurm, found alone",)),
    ],
)
def test_wrong_settings_are_one_line_and_2(shared_dataset, tmp_path, assignment, facts):
    done = run("build", shared_dataset, "--out", tmp_path / "cache", "--set", assignment)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert all(fact in done.stderr for fact in facts), done.stderr


def test_commands_on_a_finished_cache(built, shared_dataset, tmp_path):
    cache, data = built[0], ("--data", shared_dataset)
    image = "toy_train_00000001.jpg"
    done = run("verify", cache, *data)
    assert done.returncode == 0 and "7 images in 4 shards" in done.stdout
    done = run("show", cache, image, *data, "--out", tmp_path / "shown.jpg", "--top", 1)
    assert done.returncode == 0 and (tmp_path / "shown.jpg").is_file(), done.stderr
    done = run("rescore", cache, "--out", tmp_path / "new", "--temperature", "0.5")
    assert done.returncode == 0 and "rescored" in done.stdout, done.stderr
    done = run("merge", cache, cache, "--out", tmp_path / "merged")
    assert done.returncode == 0 and "7 images" in done.stdout, done.stderr
    done = run("inspect", tmp_path / "merged", "--json", tmp_path / "i.json")
    assert done.returncode == 0 and (tmp_path / "i.json").is_file(), done.stderr
    assert TOY_IN_CACHES in done.stdout
    results = ("--split", "ua", "--json", tmp_path / "results.json")
    done = run("evaluate", cache, *data, *results)
    assert done.returncode == 0 and (tmp_path / "results.json").is_file(), done.stderr


@pytest.mark.parametrize(
    "arguments, text",
    [
        (["build", "{data}"], "Missing option '--out'"),
        (["build", "{tmp}/absent", "--out", "{tmp}/c"], "no such dataset folder"),
        (["build", "{data}", "--out", "{cache}"], "holds a cache of other settings"),
        (["build", "{data}", "--out", "{data}"], "expected a new or empty folder"),
        (["build", "{data}", "--out", "{tmp}/c", "--region", "round"], "--region: expected pad"),
        (["build", "{data}", "--out", "{tmp}/c", "--template", "hi"], "--template: expected"),
        (
            ["build", "{data}", "--out", "{tmp}/c", "--detector", "eyes"],
            "--detector: expected toy",
        ),
        (["build", "{data}", "--out", "{tmp}/c", "--clip-model", "RN50"], "--clip-weights"),
        (["build", "{data}", "--out", "{tmp}/c", "--batch-size", "0"], "--batch-size"),
        (["build", "{data}", "--out", "{tmp}/c", "--device", "abacus"], "--device"),
        (["evaluate", "{tmp}/absent", "--data", "{data}"], "expected a cache folder"),
        (["evaluate", "{cache}", "--data", "{data}", "--split", "no"], "no such split"),
        (["inspect", "{data}"], "expected a cache folder"),
        (["inspect", "{cache}", "--figure", "{tmp}/c.jpg"], "expected a name that ends in .png"),
        (["verify", "{data}"], "expected a cache folder"),
        (["verify", "{tmp}/absent", "--repair"], "expected a cache folder"),
        (["rescore", "{cache}", "--out", "{tmp}/c"], "expected --template"),
        (["rescore", "{cache}", "--out", "{tmp}/c", "--temperature", "0"], "--temperature"),
        (["rescore", "{cache}", "--out", "{cache}", "--temperature", "1"], "other settings"),
        (["merge", "--out", "{tmp}/c"], "CACHE..."),
        (["merge", "{cache}", "{data}", "--out", "{tmp}/c"], "expected a cache folder"),
        (["merge", "{cache}", "--out", "{data}"], "expected a new or empty folder"),
        (["show", "{cache}", "no.jpg", "--data", "{data}", "--out", "{tmp}/c.png"], "one of 7"),
        (["show", "{cache}", "no.jpg", "--data", "{data}"], "Missing option '--out'"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(built, shared_dataset, tmp_path, arguments, text):
    paths = {"data": shared_dataset, "cache": built[0], "tmp": tmp_path}
    done = run(*(argument.format(**paths) for argument in arguments))
    assert done.returncode == 2, done.stderr
    assert len(done.stderr.splitlines()) == 1 and text in done.stderr
    assert not (tmp_path / "c").exists()


def test_an_unfinished_cache(built, shared_dataset, tmp_path):
    cache = shutil.copytree(built[0], tmp_path / "cache")
    (cache / "manifest.json").unlink()
    done = run("evaluate", cache, "--data", shared_dataset)
    assert done.returncode == 2 and "unfinished" in done.stderr


@pytest.mark.slow
def test_an_interrupted_build_can_be_resumed(dataset, built, tmp_path):
    out = tmp_path / "cache"
    arguments = [*COMMAND, "build", dataset, "--out", out, "--images-per-shard", "1", *OPTIONS]
    process = subprocess.Popen(
        [*map(str, arguments), "--batch-size", "1"], stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 300
    while not list(out.glob("shards/*.h5")) and time.monotonic() < deadline:
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGINT)
    _, stderr = process.communicate(timeout=300)
    if process.returncode != 0:
        assert process.returncode == 130, stderr
        assert "interrupted" in stderr and "Traceback" not in stderr
        assert not (out / "manifest.json").exists()
    done = subprocess.run([*map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (out / "manifest.json").is_file()


ANNOTATIONS = "annotations/trainval_hico.json"
FIRST = "toy_train_00000001.jpg"


def write(content, name=ANNOTATIONS):
    return lambda root: (root / name).write_text(content)


def remove(name):
    return lambda root: (shutil.rmtree if (root / name).is_dir() else os.unlink)(root / name)


def edit(change):
    """Changes the annotations of all images."""

    def damage(root):
        entries = json.loads((root / ANNOTATIONS).read_text())
        for entry in entries:
            change(entry)
        (root / ANNOTATIONS).write_text(json.dumps(entries))

    return damage


def no_image_files(root):
    for path in (root / "images/train2015").iterdir():
        path.unlink()


def set_box(box):
    return edit(lambda entry: entry["annotations"][0].update(bbox=box))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (shutil.rmtree, "toy: no such dataset folder"),
        (remove("images"), "train2015: no such folder of images"),
        (no_image_files, "found none of the images"),
        (remove(ANNOTATIONS), "trainval_hico.json: no such file"),
        (write("[]"), "trainval_hico.json: "),
        (write("[{"), "trainval_hico.json: line 1: expected JSON"),
        (set_box([1, 2, 3]), f"{FIRST}: annotations[0].bbox: expected four"),
        (set_box([1, 2, float("nan"), 9]), f"{FIRST}: annotations[0].bbox: expected four"),
        (
            edit(lambda entry: entry["annotations"][0].update(category_id=77)),
            f"{FIRST}: annotations[0].category_id: expected an object id",
        ),
        (edit(lambda entry: entry.update(hoi_annotation=[])), "labelled interactions, found none"),
        (write("name =", "dataset.toml"), "dataset.toml: expected TOML"),
        (remove("teacher"), "teacher: no such CLIP folder"),
        (remove("detector.safetensors"), "detector.safetensors: no such"),
    ],
)
def test_bad_datasets(dataset, tmp_path, damage, message):
    damage(dataset)
    done = run("build", dataset, "--out", tmp_path / "cache", "--device", "cpu")
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert message in done.stderr and not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seed", "-1"], "--seed"),
        ([], "File exists"),
        (["--template", "hi"], "--template: expected a sentence"),
    ],
)
def test_toy_models(tmp_path, arguments, message):
    (tmp_path / "models").write_text("existing content")
    done = run("toy-models", tmp_path / "models", "--device", "cpu", *arguments)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and message in done.stderr
    assert (tmp_path / "models").read_text() == "existing content"
