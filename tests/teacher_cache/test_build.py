import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.datasets.check import format_check
from pipeline.datasets.dataset import open_dataset
from pipeline.utils.errors import InputError
from pipeline.utils.files import sha256_of_file
from teacher_cache.build import build_cache, resolve_detector
from teacher_cache.detectors.pairing import PairingConfig, annotated_pairs
from teacher_cache.detectors.torchvision import DEFAULT_DETECTOR
from teacher_cache.extraction import task as task_module
from teacher_cache.maintenance.verify import VerifyConfig, verify_cache
from teacher_cache.reader.cache import open_cache
from teacher_cache.reader.format import MANIFEST, SHARDS, TEACHER
from teacher_cache.reader.soft_targets import action_probabilities
from teacher_cache.teachers.clip import ClipConfig, ClipTeacher
from teacher_cache.teachers.regions import RegionMode, crop_regions_pil, union_regions


def datasets(folder):
    """Values of all HDF5 datasets, by shard and name."""
    found = {}
    for path in sorted((folder / SHARDS).iterdir()):
        with h5py.File(path) as file:

            def note(name, item, shard=path.name):
                if isinstance(item, h5py.Dataset):
                    value = item[()]
                    found[shard, name] = (
                        value.tolist() if value.dtype == object else value.tobytes()
                    )

            file.visititems(note)
    return found


def test_pairs_of_a_cache(finished, shared_dataset, vocabulary):
    data = open_dataset(shared_dataset)
    loaded = data.load("train")
    cache = open_cache(finished)
    cache.check(vocabulary, loaded.digest)
    assert cache.image_ids == [annotation.image_id for annotation in loaded.annotations]
    assert cache.failed == {}
    assert [path.name for path in sorted((finished / SHARDS).iterdir())] == [
        "00000.h5",
        "00001.h5",
        "00002.h5",
    ]
    num_proposed = 0
    for annotation in loaded.annotations:
        outputs = cache[annotation.image_id]
        expected = annotated_pairs(annotation)
        annotated = outputs.pairs.sources == 0
        assert annotated[: len(expected)].all() and not annotated[len(expected) :].any()
        np.testing.assert_array_equal(outputs.pairs.human_boxes[annotated], expected.human_boxes)
        np.testing.assert_array_equal(
            outputs.pairs.object_labels[annotated], expected.object_labels
        )
        assert (outputs.pairs.object_labels != vocabulary.person).all()
        np.testing.assert_allclose(outputs.probabilities.sum(1), 1, atol=5e-3)
        num_proposed += int((~annotated).sum())
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


def test_images_without_annotations(finished, dataset, build_config, capsys):
    """The proposed pairs and their outputs equal those of a cache with annotations."""
    (dataset / "dataset.toml").write_text(
        'vocabulary = "toy"\ndetector = "detector.safetensors"\nteacher = "teacher"\n'
        '[train]\nimages = "images/train2015"\n'
    )
    (dataset / "images/train2015/broken.jpg").write_bytes(b"\xff\xd8")
    config = build_config(dataset)
    build_cache(config)
    cache, annotated = open_cache(config.out), open_cache(finished)
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
    verify_cache(VerifyConfig(config.out, dataset=dataset))
    assert capsys.readouterr().out.startswith(f"{config.out}: 7 images in 3 shards")
    (dataset / "images/train2015/more.jpg").write_bytes(b"")
    with pytest.raises(InputError, match=r"does not fit this dataset: .*annotations"):
        verify_cache(VerifyConfig(config.out, dataset=dataset))


def test_the_manifest(finished):
    manifest = json.loads((finished / MANIFEST).read_text())
    counts = manifest["counts"]
    assert counts["images"] == 7 and counts["shards"] == 3 and counts["failed"] == 0
    assert counts["pairs"] == sum(entry["pairs"] for entry in manifest["shards"]) > 0
    assert manifest["parts"]["detector.model"] == "world"
    assert manifest["parts"]["part"] == "train"
    for entry in manifest["shards"]:
        assert entry["sha256"] == sha256_of_file(finished / SHARDS / entry["name"])


class PowerCut(Exception):
    """Interrupts a build in the middle of a shard."""


@pytest.mark.parametrize("after", [0, 1, 2])
def test_a_resumed_build_gives_the_same_bytes(
    dataset, build_config, finished, monkeypatch, after, messages
):
    config = build_config(dataset)
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
    assert datasets(config.out) == datasets(finished)
    assert not list((config.out / SHARDS).glob(".*"))


def test_a_finished_cache_is_left_unchanged(dataset, build_config, messages):
    config = build_config(dataset)
    build_cache(config)
    before = {path: path.read_bytes() for path in config.out.rglob("*") if path.is_file()}
    messages.clear()
    build_cache(config)
    assert any("nothing to do" in line for line in messages)
    assert before == {path: path.read_bytes() for path in config.out.rglob("*") if path.is_file()}


def test_a_missing_shard_is_made_again(dataset, build_config, finished):
    config = build_config(dataset)
    build_cache(config)
    (config.out / SHARDS / "00001.h5").unlink()
    build_cache(config)
    assert datasets(config.out) == datasets(finished)


def other_template(config):
    return replace(config, templates=("a photo of person {ing} {object}",))


def other_threshold(config):
    pairing = replace(config.extraction.pairing, person_threshold=0.07)
    return replace(config, extraction=replace(config.extraction, pairing=pairing))


def other_region(config):
    return replace(config, extraction=replace(config.extraction, region=RegionMode("stretch")))


def other_annotations(config):
    path = config.dataset / "annotations/trainval_hico.json"
    path.write_text(path.read_text() + "\n")
    return config


def other_shards(config):
    return replace(config, images_per_shard=4)


@pytest.mark.parametrize(
    "change, text",
    [
        (other_template, "prompts: "),
        (other_threshold, "person_threshold: 0.06, now 0.07"),
        (other_region, "region: pad, now stretch"),
        (other_annotations, "annotations: "),
        (other_shards, "images_per_shard: 3, now 4"),
        (lambda config: replace(config, part="test"), "part: train, now test"),
    ],
)
def test_a_changed_option_is_refused(dataset, build_config, finished, change, text):
    config = build_config(dataset)
    shutil.copytree(finished, config.out)
    with pytest.raises(InputError, match="holds a cache of other settings") as caught:
        build_cache(change(config))
    assert text in str(caught.value)


def test_a_batch_size_may_change(dataset, build_config, finished):
    config = build_config(dataset)
    build_cache(
        replace(
            config, extraction=replace(config.extraction, regions_per_batch=3, images_per_batch=1)
        )
    )
    reference, built = open_cache(finished), open_cache(config.out)
    assert reference.fingerprint == built.fingerprint
    for image_id in reference.image_ids:
        np.testing.assert_allclose(
            reference[image_id].pairs.human_boxes, built[image_id].pairs.human_boxes, atol=1e-2
        )


def truncate(path):
    path.write_bytes(path.read_bytes()[:700])


DAMAGES = [truncate, lambda path: path.write_bytes(b""), lambda path: path.unlink()]


@pytest.mark.parametrize("damage", DAMAGES)
def test_an_unreadable_image_is_listed_as_failed(dataset, build_config, finished, damage, messages):
    config = build_config(dataset)
    broken = sorted((dataset / "images/train2015").iterdir())[4]
    damage(broken)
    messages.clear()
    build_cache(config)
    cache = open_cache(config.out)
    assert list(cache.failed) == [broken.name]
    assert str(dataset) not in cache.failed[broken.name]
    assert len(cache) == 6 and broken.name not in cache
    assert any(broken.name in line for line in messages)
    complete = open_cache(finished)
    for image_id in cache.image_ids:
        np.testing.assert_allclose(
            cache[image_id].probabilities, complete[image_id].probabilities, atol=2e-3
        )


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_strict_build_stops_at_an_unreadable_image(dataset, build_config, damage):
    config = build_config(dataset)
    config = replace(config, extraction=replace(config.extraction, strict=True))
    broken = sorted((dataset / "images/train2015").iterdir())[4]
    damage(broken)
    with pytest.raises(InputError, match=broken.name):
        build_cache(config)
    assert not (config.out / MANIFEST).exists()


def test_a_strict_build_does_not_resume_one_with_failed_images(dataset, build_config):
    config = build_config(dataset)
    broken = sorted((dataset / "images/train2015").iterdir())[4]
    broken.unlink()
    build_cache(config)
    (config.out / MANIFEST).unlink()
    with pytest.raises(InputError, match=f"lacks {broken.name}: no such image"):
        build_cache(replace(config, extraction=replace(config.extraction, strict=True)))


def remove_sizes(dataset):
    """Removes the images' sizes from the annotations."""
    file = dataset / "annotations/trainval_hico.json"
    entries = json.loads(file.read_text())
    for entry in entries:
        del entry["width"], entry["height"]
    file.write_text(json.dumps(entries))


def test_images_of_different_sizes(dataset, build_config):
    first, second, third = sorted((dataset / "images/train2015").iterdir())[:3]
    for path, size in ((first, (128, 150)), (second, (200, 128)), (third, (128, 150))):
        with Image.open(path) as image:
            image.resize(size).save(path)
    remove_sizes(dataset)
    config = build_config(dataset)
    build_cache(config)
    assert len(open_cache(config.out)) == 7


def test_without_embeddings(dataset, build_config):
    config = build_config(dataset)
    build_cache(replace(config, extraction=replace(config.extraction, embeddings=False)))
    cache = open_cache(config.out)
    assert cache[cache.image_ids[0]].embeddings is None


def test_the_test_part(dataset, build_config):
    config = build_config(dataset, part="test")
    build_cache(config)
    assert open_cache(config.out).image_ids == [
        annotation.image_id for annotation in open_dataset(dataset).load("test").annotations
    ]


def no_images(dataset):
    shutil.rmtree(dataset / "images/train2015")


def empty_images(dataset):
    for path in (dataset / "images/train2015").iterdir():
        path.unlink()


def no_annotations(dataset):
    (dataset / "annotations/trainval_hico.json").write_text("[]")


def no_labels(dataset):
    file = dataset / "annotations/trainval_hico.json"
    entries = json.loads(file.read_text())
    file.write_text(json.dumps([{**entry, "hoi_annotation": []} for entry in entries]))


def no_teacher(dataset):
    shutil.rmtree(dataset / "teacher")


def no_detector(dataset):
    (dataset / "detector.safetensors").unlink()


@pytest.mark.parametrize(
    "damage, text",
    [
        (shutil.rmtree, "toy: no such"),
        (no_images, "no such folder of images"),
        (empty_images, "found none of the images"),
        (no_annotations, "trainval_hico.json"),
        (no_labels, "trainval_hico.json: file: expected labelled interactions, found none"),
        (no_teacher, "teacher: no such CLIP folder"),
        (no_detector, r"detector.safetensors: no such"),
    ],
)
def test_bad_input_leaves_no_files(dataset, build_config, damage, text):
    config = build_config(dataset)
    damage(dataset)
    with pytest.raises(InputError, match=text) as caught:
        build_cache(config)
    assert "\n" not in str(caught.value)
    assert not config.out.exists()


def test_a_missing_teacher_file_is_written_again(dataset, build_config, finished):
    config = build_config(dataset)
    shutil.copytree(finished, config.out)
    (config.out / MANIFEST).unlink()
    (config.out / TEACHER).unlink()
    build_cache(config)
    assert open_cache(config.out).prompt_embeddings.prompts


def test_verbs_with_the_same_prompt_are_reported_once(dataset, build_config, vocabulary, messages):
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
    build_cache(build_config(dataset, candidates="annotated"))
    (line,) = [line for line in messages if "cannot distinguish" in line]
    assert "ride, pull" in line and "horse" in line and "riding horse" in line
    assert "ride, pull" in format_check(open_dataset(dataset), [])


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


@pytest.mark.parametrize("name", [None, "toy", OTHER_DETECTOR])
def test_the_datasets_weights_are_used_for_its_own_detector_only(
    shared_dataset, build_config, name
):
    config = build_config(shared_dataset, detector=name)
    detector = resolve_detector(open_dataset(shared_dataset), config)
    dataset_weights = str(shared_dataset / "detector.safetensors")
    assert detector.name == (name or "toy")
    assert detector.weights == (None if name == OTHER_DETECTOR else dataset_weights)


def test_detector_weights_by_name_and_by_file(shared_dataset, build_config):
    dataset = replace(open_dataset(shared_dataset), detector=None)
    config = build_config(shared_dataset)
    assert resolve_detector(dataset, config).name == DEFAULT_DETECTOR
    assert resolve_detector(dataset, config).weights is None
    named = replace(config, detector=OTHER_DETECTOR, detector_weights="COCO_V1")
    detector = resolve_detector(dataset, named)
    assert (detector.name, detector.weights) == (OTHER_DETECTOR, "COCO_V1")
    file = str(shared_dataset / "detector.safetensors")
    detector = resolve_detector(dataset, replace(config, detector_weights=file))
    assert (detector.name, detector.weights) == ("toy", file)


def test_the_detector_threshold_is_the_lower_one_of_the_pairing(shared_dataset, build_config):
    config = build_config(shared_dataset)
    pairing = PairingConfig(person_threshold=0.5, object_threshold=0.3)
    config = replace(config, extraction=replace(config.extraction, pairing=pairing))
    threshold = resolve_detector(open_dataset(shared_dataset), config).score_threshold
    assert threshold < 0.3 and threshold == pytest.approx(0.3, abs=1e-5)


def test_the_datasets_weights_file_is_missing(shared_dataset, build_config):
    dataset = replace(open_dataset(shared_dataset), detector=Path("absent.safetensors"))
    with pytest.raises(InputError, match=r"absent\.safetensors: no such"):
        resolve_detector(dataset, build_config(shared_dataset))
