import os
import signal
import subprocess
import sys
import time
from functools import partial

import pytest
from commands import run_command

from teacher_cache.cli import main

COMMAND = [sys.executable, "-c", "from teacher_cache.cli import main; main()"]
THRESHOLDS = ("--person-threshold", "0.06", "--object-threshold", "0.06")

run = partial(run_command, main, "eoid-cache")


@pytest.fixture(scope="module")
def built(shared_dataset, tmp_path_factory):
    """A cache built with a configuration file, one of whose settings an option replaces."""
    folder = tmp_path_factory.mktemp("built")
    config = folder / "config.toml"
    config.write_text("images-per-shard = 2\nperson-threshold = 0.06\nobject-threshold = 0.9\n")
    args = ("--out", folder / "cache", "--config", config, "--object-threshold", "0.06")
    done = run("build", shared_dataset, *args)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    assert "7 images" in done.stdout and "4 shards" in done.stdout
    return folder / "cache"


@pytest.mark.parametrize(
    ("option", "line"),
    [
        ("--device=auto", "{}: was finished before; nothing to do"),
        ("--verbose", "INFO eoid.teacher_cache.build: {}: was finished before; nothing to do"),
        ("--quiet", None),
    ],
)
def test_messages_of_a_build(built, shared_dataset, option, line):
    config = ("--config", built.parent / "config.toml", "--object-threshold", "0.06")
    done = run("build", shared_dataset, "--out", built, *config, option)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert (line is None and done.stderr == "") or line.format(built) in done.stderr.splitlines()


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


def test_commands_on_a_finished_cache(built, shared_dataset, tmp_path):
    def succeed(*words):
        done = run(*words)
        assert done.returncode == 0, done.stderr
        return done.stdout

    data, files = ("--data", shared_dataset), [tmp_path / f"{number}.json" for number in (1, 2)]
    assert "7 images in 4 shards" in succeed("verify", built, *data)
    shown = tmp_path / "shown.jpg"
    succeed("show", built, "toy_train_00000001.jpg", *data, "--out", shown, "--top", 1)
    assert "rescored" in succeed("rescore", built, "--out", tmp_path / "new", "--temperature", 0.5)
    assert "7 images" in succeed("merge", built, "--out", tmp_path / "merged")
    assert "detector.model          toy\n" in succeed(
        "inspect", tmp_path / "merged", "--json", files[0]
    )
    succeed("evaluate", built, *data, "--split", "ua", "--json", files[1])
    assert all(file.is_file() for file in (*files, shown))


BUILD = "build {data} --out {tmp}/c"


@pytest.mark.parametrize(
    "words, text",
    [
        ("build {data}", "Missing --out. See"),
        ("build {tmp}/absent --out {tmp}/c", "no such dataset folder"),
        ("build {data} --out {cache}", "holds a cache of other settings"),
        ("build {data} --out {data}", "expected a new or empty folder"),
        (f"{BUILD} --region round", "--region: expected pad"),
        (f"{BUILD} --batch-size 0", "--batch-size"),
        (f"{BUILD} --device abacus", "--device"),
        (f"{BUILD} --set max_objects=0", "max_objects: expected integer, at least 1, found 0"),
        (f"{BUILD} --set levle=image", "levle: expected a setting of eoid-cache build"),
        (f"{BUILD} --retry-failed {{tmp}}/absent", "absent"),
        (f"{BUILD} --retry-failed {{cache}}", "expected a cache of the same settings"),
        (f"{BUILD} --set cores=8", "--cores: expected together with --slurm, found alone"),
        ("evaluate {cache} --data {data} --split no", "no such split"),
        ("inspect {cache} --figure {tmp}/c.jpg", "expected a name that ends in .png"),
        ("verify {tmp}/absent --repair", "expected a cache folder"),
        ("rescore {cache} --out {tmp}/c --temperature 0", "--temperature"),
        ("rescore {cache} --out {cache} --temperature 1", "other settings"),
        ("merge --out {tmp}/c", "CACHE..."),
        ("merge {cache} --out {data}", "expected a new or empty folder"),
        ("show {cache} no.jpg --data {data} --out {tmp}/c.png", "one of 7"),
        ("toy-models {tmp}/file --seed -1", "--seed"),
        ("toy-models {tmp}/file", "File exists"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(built, shared_dataset, tmp_path, words, text):
    (tmp_path / "file").write_text("mine")
    paths = {"data": shared_dataset, "cache": built, "tmp": tmp_path}
    done = run(*(word.format(**paths) for word in words.split()))
    assert done.returncode == 2, done.stderr
    assert len(done.stderr.splitlines()) == 1 and text in done.stderr
    assert (tmp_path / "file").read_text() == "mine" and len(list(tmp_path.iterdir())) == 1


@pytest.mark.slow
def test_an_interrupted_build_can_be_resumed(dataset, tmp_path):
    out = tmp_path / "cache"
    words = [*COMMAND, "build", dataset, "--out", out, "--images-per-shard", "1", *THRESHOLDS]
    process = subprocess.Popen([*words, "--batch-size", "1"], stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 300
    while not list(out.glob("shards/*.h5")) and time.monotonic() < deadline:
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGINT)
    _, stderr = process.communicate(timeout=300)
    if process.returncode != 0:
        assert process.returncode == 130, stderr
        assert "interrupted" in stderr and "Traceback" not in stderr
        assert not (out / "manifest.json").exists()
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (out / "manifest.json").is_file()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("images", None, "train2015: no such folder of images"),
        ("images/train2015", {}, "found none of the images"),
        ("annotations/trainval_hico.json", "[{", "trainval_hico.json: line 1: expected JSON"),
        ("dataset.toml", "name =", "dataset.toml: expected TOML"),
        ("teacher", None, "teacher: no such CLIP folder"),
        ("detector.safetensors", None, "detector.safetensors: no such"),
    ],
)
def test_bad_datasets(dataset, tmp_path, name, content, message):
    if not content:
        (dataset / name).rename(tmp_path / "elsewhere")
    if content == {}:
        (dataset / name).mkdir()
    elif content:
        (dataset / name).write_text(content)
    done = run("build", dataset, "--out", tmp_path / "cache", "--device", "cpu")
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert message in done.stderr and not (tmp_path / "cache").exists()
