import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.datasets.check import format_check
from pipeline.datasets.dataset import open_dataset
from pipeline.utils.errors import InputError
from pipeline.utils.files import sha256_of_file
from teacher_cache.build import BuildConfig, build_cache, resolve_detector
from teacher_cache.detectors.pairing import PairingConfig, annotated_pairs
from teacher_cache.detectors.torchvision import DEFAULT_DETECTOR
from teacher_cache.extraction import task as task_module
from teacher_cache.maintenance.verify import verify_cache
from teacher_cache.reader.cache import open_cache
from teacher_cache.reader.format import MANIFEST, SHARDS, TEACHER
from teacher_cache.reader.soft_targets import action_probabilities
from teacher_cache.teachers.clip import ClipConfig, ClipTeacher
from teacher_cache.teachers.regions import RegionMode, crop_regions_pil, union_regions


def test_pairs_of_a_cache(finished, shared_dataset, vocabulary):
    loaded = open_dataset(shared_dataset).load("train")
    cache = open_cache(finished)
    cache.check(vocabulary, loaded.digest)
    assert cache.image_ids == [annotation.image_id for annotation in loaded.annotations]
    num_proposed = 0
    for annotation in loaded.annotations:
        outputs, expected = cache[annotation.image_id], annotated_pairs(annotation)
        pairs, rows = outputs.pairs, slice(0, len(expected))
        num_others = len(pairs) - len(expected)
        assert pairs.sources.tolist() == [0] * len(expected) + [1] * num_others
        np.testing.assert_array_equal(pairs.human_boxes[rows], expected.human_boxes)
        np.testing.assert_array_equal(pairs.object_labels[rows], expected.object_labels)
        assert (pairs.object_labels != vocabulary.person).all()
        np.testing.assert_allclose(outputs.probabilities.sum(1), 1, atol=5e-3)
        num_proposed += num_others
    assert num_proposed > 0


def test_outputs_equal_those_computed_region_by_region(finished, shared_dataset, vocabulary):
    """Crops, embeddings and probabilities are recomputed from the boxes in the cache."""
    clip = ClipTeacher(ClipConfig(str(shared_dataset / "teacher")), torch.device("cpu"))
    cache = open_cache(finished)
    assert cache.prompt_embeddings.prompts[0] == ("a picture of person riding horse",)
    np.testing.assert_allclose(
        cache.prompt_embeddings.embeddings,
        clip.encode_texts([prompt for (prompt,) in cache.prompt_embeddings.prompts]),
        atol=1e-5,
    )
    image_id = cache.image_ids[3]
    outputs = cache[image_id]
    boxes, rows = union_regions(outputs.pairs)
    np.testing.assert_array_equal(outputs.region_boxes, boxes)
    np.testing.assert_array_equal(outputs.region_indices, rows)
    with Image.open(shared_dataset / "images/train2015" / image_id) as image:
        crops = crop_regions_pil(image.convert("RGB"), boxes, 64, RegionMode())
    embeddings = clip.encode_images(torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2))
    np.testing.assert_allclose(outputs.embeddings, embeddings, atol=2e-3)
    logits = clip.logit_scale * embeddings[rows] @ cache.prompt_embeddings.embeddings.T
    expected = action_probabilities(logits, outputs.pairs.object_labels, vocabulary)
    np.testing.assert_allclose(outputs.probabilities, expected, atol=2e-3)


def test_images_without_annotations(finished, dataset, build, capsys):
    """The proposed pairs and their outputs equal those of a cache with annotations."""
    (dataset / "dataset.toml").write_text(
        'vocabulary = "toy"\ndetector = "detector.safetensors"\nteacher = "teacher"\n'
        '[train]\nimages = "images/train2015"\n'
    )
    (dataset / "images/train2015/broken.jpg").write_bytes(b"\xff\xd8")
    cache, annotated = build(dataset), open_cache(finished)
    assert set(cache.image_ids) == set(annotated.image_ids) and set(cache.failed) == {"broken.jpg"}
    num_pairs = 0
    for image_id in cache.image_ids:
        outputs, expected = cache[image_id], annotated[image_id]
        proposed = expected.pairs.sources == 1
        assert (outputs.pairs.sources == 1).all()
        np.testing.assert_allclose(
            outputs.pairs.human_boxes, expected.pairs.human_boxes[proposed], atol=1e-3
        )
        np.testing.assert_allclose(
            outputs.probabilities, expected.probabilities[proposed], atol=2e-3
        )
        num_pairs += len(outputs.pairs)
    assert num_pairs > 0
    capsys.readouterr()
    verify_cache(cache.path, dataset=dataset)
    assert capsys.readouterr().out.startswith(f"{cache.path}: 7 images in 3 shards")
    (dataset / "images/train2015/more.jpg").write_bytes(b"")
    with pytest.raises(InputError, match=r"does not fit this dataset: .*annotations"):
        verify_cache(cache.path, dataset=dataset)


def test_the_manifest(finished):
    manifest = json.loads((finished / MANIFEST).read_text())
    counts = manifest["counts"]
    assert counts["images"] == 7 and counts["shards"] == 3 and counts["failed"] == 0
    assert counts["pairs"] == sum(entry["pairs"] for entry in manifest["shards"]) > 0
    assert (manifest["parts"]["detector.model"], manifest["parts"]["part"]) == ("world", "train")
    assert [entry["name"] for entry in manifest["shards"]] == ["00000.h5", "00001.h5", "00002.h5"]
    for entry in manifest["shards"]:
        assert entry["sha256"] == sha256_of_file(finished / SHARDS / entry["name"])


def test_the_toy_datasets_models_by_name(dataset_root, tmp_path, monkeypatch):
    """`toy` is a name where the dataset's folder is called so too, and a repair finds it again."""
    monkeypatch.chdir(dataset_root.parent)
    out = tmp_path / "cache"
    build_cache(BuildConfig(Path("toy"), out, detector="toy", clip_model="toy", images_per_shard=8))
    manifest = json.loads((out / MANIFEST).read_text())
    assert manifest["settings"]["clip_model"] == "toy"
    shard = out / SHARDS / "00001.h5"
    before = shard.read_bytes()
    shard.write_bytes(before[:-9])
    verify_cache(out, repair=True)
    assert shard.read_bytes() == before


class PowerCut(Exception):
    """Interrupts a build in the middle of a shard."""


@pytest.mark.parametrize("after", [0, 2])
def test_a_resumed_build_gives_the_same_bytes(
    shared_dataset, build_config, finished, contents, monkeypatch, after, messages
):
    config = build_config(shared_dataset)
    write = task_module.write_shard
    written = []

    def failing(path, *rest):
        if len(written) == after:
            (path.parent / f".{path.name}.999.tmp").write_bytes(b"half a shard")
            raise PowerCut
        written.append(path)
        write(path, *rest)

    monkeypatch.setattr(task_module, "write_shard", failing)
    with pytest.raises(PowerCut):
        build_cache(config)
    with pytest.raises(InputError, match="unfinished"):
        open_cache(config.out)
    monkeypatch.setattr(task_module, "write_shard", write)
    times = {path: path.stat().st_mtime_ns for path in written}
    messages.clear()
    build_cache(config)
    assert times == {path: path.stat().st_mtime_ns for path in written}
    assert any("resuming after" in line for line in messages) == (after > 0)
    assert contents(config.out) == contents(finished)


def test_a_build_on_a_finished_cache_makes_what_is_missing(
    shared_dataset, build_config, finished, contents, messages
):
    config = build_config(shared_dataset)
    shutil.copytree(finished, config.out)
    times = {path: path.stat().st_mtime_ns for path in config.out.rglob("*.*")}
    messages.clear()
    build_cache(config)
    assert any("nothing to do" in line for line in messages)
    assert times == {path: path.stat().st_mtime_ns for path in config.out.rglob("*.*")}
    for name in (f"{SHARDS}/00001.h5", TEACHER):
        (config.out / name).unlink()
        (config.out / MANIFEST).unlink(missing_ok=True)
        build_cache(config)
        assert contents(config.out) == contents(finished)


def test_an_unreadable_image_is_listed_as_failed(
    dataset, build_config, extraction, finished, messages
):
    """A strict build refuses it, also in shards of a build that was not strict."""
    config = build_config(dataset)
    strict = replace(config, extraction=replace(extraction, strict=True))
    broken = sorted((dataset / "images/train2015").iterdir())[4]
    broken.write_bytes(broken.read_bytes()[:700])
    with pytest.raises(InputError, match=broken.name):
        build_cache(strict)
    assert not (config.out / MANIFEST).exists()
    build_cache(config)
    assert any(broken.name in line for line in messages)
    cache, complete = open_cache(config.out), open_cache(finished)
    assert list(cache.failed) == [broken.name] and len(cache) == 6 and broken.name not in cache
    assert str(dataset) not in cache.failed[broken.name]
    for image_id in cache.image_ids:
        np.testing.assert_allclose(
            cache[image_id].probabilities, complete[image_id].probabilities, atol=2e-3
        )
    (config.out / MANIFEST).unlink()
    with pytest.raises(InputError, match=f"lacks {broken.name}: "):
        build_cache(strict)


def test_the_test_part_without_embeddings(shared_dataset, build, extraction):
    cache = build(shared_dataset, part="test", extraction=replace(extraction, embeddings=False))
    annotations = open_dataset(shared_dataset).load("test").annotations
    assert cache.image_ids == [annotation.image_id for annotation in annotations]
    assert cache[cache.image_ids[0]].embeddings is None


def test_verbs_with_the_same_prompt_are_reported_once(dataset, build, vocabulary, messages):
    """Both riding and pulling a horse are possible; here both have the same word in prompts."""
    value = vocabulary.to_dict()
    pull, ride = (
        next(verb for verb in value["verbs"] if verb["name"] == name) for name in ("pull", "ride")
    )
    pull["ing"] = ride["ing"]
    (dataset / "same_prompts.json").write_text(json.dumps(value))
    description = dataset / "dataset.toml"
    description.write_text(
        description.read_text().replace('vocabulary = "toy"', 'vocabulary = "same_prompts.json"')
    )
    messages.clear()
    build(dataset, candidates="annotated")
    (line,) = [line for line in messages if "cannot distinguish" in line]
    assert "ride, pull" in line and "horse" in line and "riding horse" in line
    assert "ride, pull" in format_check(open_dataset(dataset), [])


@pytest.mark.slow
def test_file_names_that_the_locale_cannot_encode(dataset, tmp_path):
    """Umlauts in the C locale, and a cache folder whose name is not valid UTF-8."""
    file = dataset / "annotations/trainval_hico.json"
    entries = json.loads(file.read_text())
    for number, entry in enumerate(entries):
        name = f"bücher {number}.jpg"
        (dataset / "images/train2015" / entry["file_name"]).rename(
            dataset / "images/train2015" / name
        )
        entry["file_name"] = name
    file.write_text(json.dumps(entries))
    root = dataset.rename(tmp_path / "für")
    out = tmp_path / os.fsdecode(b"c\xfcche")
    code = "from teacher_cache.cli import main; main()"
    args = ["build", root, "--out", out, "--candidates", "annotated", "--device", "cpu"]
    done = subprocess.run(
        [sys.executable, "-c", code, *args],
        env={**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr.decode()
    assert "bücher 0.jpg" in open_cache(out) and rb"c\udcfcche: 7 images" in done.stdout


OTHER_DETECTOR = "ssdlite320_mobilenet_v3_large"
FILE = "detector.safetensors"


@pytest.mark.parametrize(
    ("name", "weights", "own", "expected"),
    [
        (None, None, True, ("toy", FILE)),
        ("toy", None, True, ("toy", FILE)),
        (OTHER_DETECTOR, None, True, (OTHER_DETECTOR, None)),
        (None, None, False, (DEFAULT_DETECTOR, None)),
        (OTHER_DETECTOR, "COCO_V1", False, (OTHER_DETECTOR, "COCO_V1")),
        (None, FILE, False, ("toy", FILE)),
    ],
)
def test_the_detector_of_a_build(
    shared_dataset, build_config, extraction, monkeypatch, name, weights, own, expected
):
    """The dataset's own weights are used for its own detector only."""
    monkeypatch.chdir(shared_dataset)
    dataset = replace(open_dataset(shared_dataset), detector=Path(FILE) if own else None)
    extraction = replace(extraction, pairing=PairingConfig(0.5, 0.3))
    changes = {"detector": name, "detector_weights": weights, "extraction": extraction}
    detector = resolve_detector(dataset, build_config(shared_dataset, **changes))
    assert (detector.name, detector.weights) == expected
    # The detector keeps scores above its threshold, pairing also those that are equal to it.
    assert 0.3 - 1e-5 < detector.score_threshold < 0.3
