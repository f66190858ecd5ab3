import json
import os
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import msgspec
import numpy as np
import pytest
from commands import run_command

from teacher_cache import estimate as estimate_module
from teacher_cache.build import build_cache
from teacher_cache.cli import main
from teacher_cache.estimate import Estimate, Total, estimate_build, format_estimate
from teacher_cache.reader.cache import open_cache
from teacher_cache.reader.manifest import read_manifest

run = partial(run_command, main, "eoid-cache")
THRESHOLDS = ("--set", "person_threshold=0.06", "--set", "object_threshold=0.06")


def size_of(folder):
    return sum(path.stat().st_size for path in folder.rglob("*.*") if path.is_file())


def listing(*folders):
    """All paths below some folders with sizes and modification times, those of folders too."""
    return {
        path: (path.lstat().st_size, path.lstat().st_mtime_ns)
        for folder in folders
        for path in (folder, *folder.rglob("*"))
    }


def detections(dataset, tmp_path):
    """A results file with two people and an object in every third image."""
    entries = [
        {"image_id": number, "category_id": category, "bbox": [9, 9 + row, 50, 40], "score": 0.9}
        for number in (1, 4, 7)
        for row, category in enumerate((1, 1, 2))
    ]
    file = tmp_path / "results.json"
    file.write_text(json.dumps(entries))
    return {"proposals": file}


@pytest.mark.parametrize(
    ("changes", "is_counted"),
    [
        (lambda *_: {}, False),
        (lambda *_: {"candidates": "annotated"}, True),
        (detections, True),
        (lambda *_: {"limit": 4}, False),
    ],
)
def test_an_estimate_and_the_build(shared_dataset, build_config, tmp_path, changes, is_counted):
    """All images are the sample, so that the numbers have to be those of the build."""
    config = build_config(shared_dataset, **changes(shared_dataset, tmp_path))
    if config.candidates == "annotated":
        extraction = replace(config.extraction, level="image", embeddings=False)
        config = replace(config, extraction=extraction)
    estimate = estimate_build(config)
    build_cache(config)
    counts = read_manifest(config.out)["counts"]
    for name in ("pairs", "regions"):
        assert getattr(estimate, name) == Total(counts[name], True)
    images = counts["images"]
    assert (estimate.images, estimate.sample, estimate.shards) == (images, images, counts["shards"])
    assert estimate.bytes == pytest.approx(size_of(config.out), rel=0.05)
    # A sample of three images, of which the counts of known boxes are independent.
    again = estimate_build(config, sample=3)
    assert again.sample == 3 and again.images == images
    assert (again.pairs == estimate.pairs) == is_counted
    assert again.pairs.is_counted == is_counted
    assert (again.pairs.standard_error is None) == is_counted
    assert again.bytes == pytest.approx(size_of(config.out), rel=0.2)


def test_bytes_of_an_estimate_from_half_of_the_images(shared_dataset, build_config):
    """Within 20 % of the cache that is built then."""
    config = build_config(shared_dataset)
    estimate = estimate_build(config, sample=4)
    build_cache(config)
    assert estimate.bytes == pytest.approx(size_of(config.out), rel=0.2)
    cache = open_cache(config.out)
    pairs = sum(len(cache[image].pairs) for image in cache.image_ids)
    assert abs(estimate.pairs.count - pairs) <= 4 * estimate.pairs.standard_error


@pytest.mark.parametrize(
    ("counts", "total", "expected"),
    [
        ([3, 5, 7, 9], 4, Total(24, True)),
        ([3, 5, 7, 9], 40, Total(240, False, 49)),
        ([0, 0], 40, Total(0, False, 0)),
        ([3], 40, Total(120, False)),
        ([3], 1, Total(3, True)),
    ],
)
def test_extrapolation(counts, total, expected):
    assert estimate_module._extrapolate(np.array(counts), total) == expected


def test_nothing_is_written(dataset, tmp_path, monkeypatch):
    work, temporary, home = (tmp_path / name for name in ("work", "temporary", "home"))
    for folder in (work, temporary, home):
        folder.mkdir()
    monkeypatch.chdir(work)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("TMPDIR", str(temporary))
    monkeypatch.setattr("tempfile.tempdir", None)
    before = listing(tmp_path)
    options = ("--jobs", 3, "--images-per-shard", 2, "--device", "cpu", *THRESHOLDS)
    done = run("plan", dataset, "--out", "cache", *options)
    assert done.returncode == 0, done.stderr
    assert listing(tmp_path) == before
    lines = done.stdout.splitlines()
    assert all(len(line) <= 80 for line in lines[1:])
    assert f"{dataset}, part train, on cpu (" in lines[0]
    names = [line.split("  ")[1].split(" ")[0] for line in lines[1:12] if line.startswith("  ")]
    assert names[:5] == ["images", "pairs", "regions", "shards", "cache"]
    assert names[5:] == ["loading", "reading", "detector", "teacher", "in", "3"]
    assert "at most 2 of 4 shards each" in done.stdout
    assert (
        "counted" in lines[2]
        and "Measured on 7 images" in lines[-1]
        and "extrapolated" not in done.stdout
    )


def test_the_command_line_of_a_build_is_one_of_a_plan(shared_dataset, tmp_path):
    """Options that do not matter are accepted; those of both reach the same configuration."""
    config = tmp_path / "build.toml"
    config.write_text(run("config").stdout)
    words = (shared_dataset, "--config", config, "--out", tmp_path / "cache", "--device", "cpu")
    slurm = ("--slurm", "--gres", "gpu:1", "--walltime", "01:00:00", "--jobs", 2)
    done = run("plan", *words, *slurm, *THRESHOLDS, "--sample", 2, "--json")
    assert done.returncode == 0, done.stderr
    estimate = msgspec.json.decode(done.stdout.encode(), type=Estimate)
    assert set(json.loads(done.stdout)) == set(Estimate.__struct_fields__)
    assert (estimate.jobs, estimate.sample, estimate.images_per_shard) == (2, 2, 256)
    assert set(estimate.hours) == {"loading", "reading", "detector", "teacher"}
    assert estimate.hours_in_all == pytest.approx(sum(estimate.hours.values()))
    assert not (tmp_path / "cache").exists()


def test_failing_images_of_the_sample(dataset, build_config, tmp_path):
    images = dataset / "images/train2015"
    (images / "toy_train_00000001.jpg").write_bytes(b"\xff\xd8\xff")
    (images / "toy_train_00000004.jpg").unlink()
    config = build_config(dataset)
    estimate = estimate_build(config)
    assert set(estimate.failed) == {"toy_train_00000001.jpg", "toy_train_00000004.jpg"}
    text = " ".join(format_estimate(estimate))
    assert "2 of 7 images could not be read, first toy_train_00000001.jpg: expected" in text
    build_cache(config)
    assert estimate.pairs.count == read_manifest(config.out)["counts"]["pairs"]
    words = ("plan", dataset, *THRESHOLDS, "--device", "cpu")
    strict = run(*words, "--strict")
    assert strict.returncode == 2 and "toy_train_0000000" in strict.stderr.splitlines()[-1]
    for number in range(1, 8):
        (images / f"toy_train_0000000{number}.jpg").write_bytes(b"GIF")
    done = run(*words, "--quiet")
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    assert "found none of 7 images of the sample, first toy_train_00000001.jpg: " in done.stderr


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("--sample", 0), "--sample"),
        (("--jobs", 0), "--jobs"),
        (("--proposals", "absent.json"), "absent.json"),
        (("--candidates", "annotated", "--detector", "toy"), "--detector: expected none"),
        (("--set", "levle=image"), "levle: expected a setting of eoid-cache plan"),
        (("--device", "abacus"), "--device"),
    ],
)
def test_bad_input_is_one_line(shared_dataset, words, text):
    done = run("plan", shared_dataset, *words)
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 1 and text in done.stderr


def test_time_is_divided_among_stages(monkeypatch):
    now = iter(range(0, 100, 1))
    monkeypatch.setattr(estimate_module, "time", SimpleNamespace(perf_counter=lambda: next(now)))
    watch = estimate_module._Stopwatch()
    with watch.stage("teacher"), watch.stage("reading"), watch.stage("detector"):
        pass
    with pytest.raises(KeyError), watch.stage("teacher"):
        raise KeyError
    assert watch.seconds == {"": 2, "teacher": 3, "reading": 2, "detector": 1}


def test_jobs_make_whole_shards(shared_dataset, build_config):
    config = build_config(shared_dataset)
    for jobs, share in ((1, 1), (2, 6 / 7), (3, 3 / 7), (9, 3 / 7)):
        estimate = estimate_build(config, jobs=jobs, sample=1)
        models = estimate.hours_in_all - estimate.hours["loading"]
        expected = estimate.hours["loading"] + share * models
        assert estimate.hours_of_jobs == pytest.approx(expected)


def test_a_cache_that_does_not_fit_the_disk(shared_dataset, tmp_path, monkeypatch):
    usage = type("Usage", (), {"free": 5000})
    monkeypatch.setattr(estimate_module.shutil, "disk_usage", lambda folder: usage)
    words = ("--out", tmp_path / "a" / "b", "--sample", 1, "--device", "cpu")
    done = run("plan", shared_dataset, *words)
    assert done.returncode == 0 and "5.0 kB left" in done.stdout
    assert "less than the cache needs" in done.stderr and os.listdir(tmp_path) == []
