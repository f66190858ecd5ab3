"""Candidate pairs of a build: detector, proposals file or annotated boxes; regions; templates."""

import json

import numpy as np
import pytest
import torch
from commands import run_command
from PIL import Image
from safetensors.torch import load_file, save_file

from pipeline.datasets.dataset import open_dataset
from teacher_cache.cli import main
from teacher_cache.detectors.pairing import (
    UNRESTRICTED_PAIRING,
    annotated_boxes,
    annotated_pairs,
    form_pairs,
)
from teacher_cache.reader.cache import open_cache

LENIENT = (
    *("--person-threshold", "0.06", "--object-threshold", "0.06"),
    *("--max-people", "2", "--max-objects", "3"),
)
FIRST = "toy_train_00000001.jpg"


def run(*args):
    """Exit code, stdout and stderr of `eoid-cache`."""
    done = run_command(main, "eoid-cache", *args, "--device", "cpu")
    return done.returncode, done.stdout, done.stderr


@pytest.fixture
def build(tmp_path):
    """`build(dataset, *options)` builds a cache; returns the cache and stderr."""

    def run_build(dataset, *options, out="cache"):
        folder = tmp_path / out
        code, _, err = run("build", dataset, "--out", folder, "--images-per-shard", 3, *options)
        assert code == 0, err
        return open_cache(folder), err

    return run_build


def box_rows(outputs):
    pairs = outputs.pairs
    table = [pairs.human_boxes, pairs.object_boxes, pairs.object_labels[:, None]]
    return np.concatenate(table, axis=1)


def coco_results(cache, vocabulary):
    """The detections of a cache's proposed pairs in COCO's results form."""
    entries = {}
    for image_id in cache.image_ids:
        pairs = cache[image_id].pairs
        rows = pairs.sources == 1
        people = np.full(rows.sum(), vocabulary.person)
        for boxes, labels, scores in (
            (pairs.human_boxes[rows], people, pairs.human_scores[rows]),
            (pairs.object_boxes[rows], pairs.object_labels[rows], pairs.object_scores[rows]),
        ):
            for (x1, y1, x2, y2), label, score in zip(
                boxes.astype(float).tolist(), labels.tolist(), scores.astype(float), strict=True
            ):
                entry = {
                    "image_id": image_id,
                    "category_id": vocabulary.category_ids[label],
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "score": score,
                }
                entries[json.dumps(entry)] = entry
    return list(entries.values())


@pytest.fixture
def proposals(finished, vocabulary, tmp_path):
    """`proposals(edit)` writes the finished cache's detections, changed by `edit`, to a file."""

    def write(edit=lambda entries: entries):
        path = tmp_path / "results.json"
        path.write_text(json.dumps(edit(coco_results(open_cache(finished), vocabulary))))
        return path

    return write


def with_numeric_ids(entries):
    """Entries with numbers as image ids, in reverse order."""
    for entry in entries:
        entry["image_id"] = int(entry["image_id"].rpartition("_")[2].removesuffix(".jpg"))
    return entries[::-1]


@pytest.mark.parametrize(
    ("edit", "workers"),
    [(list, 0), (with_numeric_ids, 0), pytest.param(list, 2, marks=pytest.mark.slow)],
)
def test_a_detectors_own_proposals_give_its_cache(
    shared_dataset, finished, build, proposals, edit, workers
):
    options = ["--proposals", proposals(edit), "--workers", workers]
    cache, err = build(shared_dataset, *options, *LENIENT)
    reference = open_cache(finished)
    assert cache.image_ids == reference.image_ids
    for image_id in cache.image_ids:
        outputs, expected = cache[image_id], reference[image_id]
        np.testing.assert_allclose(box_rows(outputs), box_rows(expected), atol=1e-4)
        np.testing.assert_allclose(outputs.probabilities, expected.probabilities, atol=2e-3)
        np.testing.assert_array_equal(outputs.pairs.sources, expected.pairs.sources)
    parts = cache.manifest["parts"]
    assert parts["candidates"] == "proposals" and len(parts["proposals"]) == 64
    assert parts["max_objects"] == 3 and "detector.model" not in parts
    assert "detections in" in err and "over the image's edge" not in err


def test_clipped_proposals_are_reported(shared_dataset, build, proposals):
    def widen(entries):
        for entry in entries[:3]:
            entry["bbox"][2] = 999.0
        return entries

    file = proposals(widen)
    cache, err = build(shared_dataset, "--proposals", file, *LENIENT)
    assert f"{file}: " in err and "3 boxes over the image's edge (clipped)" in err
    for image_id in cache.image_ids:
        assert cache[image_id].region_boxes.max(initial=0) <= 128


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bbox": [10, 10, -5, 5]}, "entry 0.bbox: expected [x, y, width, height]"),
        ({"image_id": "other.jpg"}, "entry 0.image_id: expected the file name"),
        ({"category_id": 77}, "entry 0.category_id: expected an object id of toy"),
    ],
)
def test_bad_proposals_leave_no_files(shared_dataset, proposals, tmp_path, change, message):
    file = proposals(lambda entries: [{**entries[0], **change}, *entries[1:]])
    out = tmp_path / "cache"
    code, _, err = run("build", shared_dataset, "--out", out, "--proposals", file)
    assert code == 2 and err.count("\n") == 1
    assert f"{file}: {message}" in err and not out.exists()


def test_other_proposals_are_another_cache(shared_dataset, build, proposals, tmp_path):
    build(shared_dataset, "--proposals", proposals())
    other = proposals(lambda entries: entries[1:])
    options = ["--images-per-shard", 3, "--proposals", other]
    code, _, err = run("build", shared_dataset, "--out", tmp_path / "cache", *options)
    assert code == 2 and "holds a cache of other settings (proposals: " in err


def test_annotated_candidates_are_all_annotated_boxes(shared_dataset, build, vocabulary):
    cache, _ = build(shared_dataset, "--candidates", "annotated")
    annotations = open_dataset(shared_dataset).load("train").annotations
    num_unlabelled = 0
    for annotation in annotations:
        outputs = cache[annotation.image_id]
        labelled = annotated_pairs(annotation)
        sources = outputs.pairs.sources
        assert sources[: len(labelled)].tolist() == [0] * len(labelled)
        all_pairs = form_pairs(annotated_boxes(annotation), vocabulary, UNRESTRICTED_PAIRING)
        assert len(sources) == len(labelled) + len(all_pairs)
        found = box_rows(outputs)[len(labelled) :]
        expected = np.concatenate(
            [all_pairs.human_boxes, all_pairs.object_boxes, all_pairs.object_labels[:, None]],
            axis=1,
        )
        np.testing.assert_array_equal(found, expected)
        assert (outputs.pairs.object_scores == 1).all()
        # The labelled pairs are among them, with the same outputs, and share their regions.
        assert len(np.unique(outputs.region_indices)) <= len(all_pairs)
        num_unlabelled += len(all_pairs) - len(labelled)
    assert num_unlabelled > 0
    parts = cache.manifest["parts"]
    assert parts["candidates"] == "annotated"
    assert not {"detector.model", "person_threshold", "max_people", "proposals"} & parts.keys()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--candidates", "annotated", "--detector", "toy"], "--detector: expected none with"),
        (["--candidates", "annotated", "--proposals", "x.json"], "--proposals: expected none"),
        (["--candidates", "annotated", "--max-people", "3"], "--max-people: expected none with"),
        (["--proposals", "x.json", "--detector", "toy"], "--detector: expected none with --prop"),
        (["--proposals", "x", "--detector-classes", "coco80"], "--detector-classes: expected none"),
        (["--detector-classes", "yolo"], "--detector-classes: expected coco80, hico80 or a file"),
        (["--detector-classes", "coco80"], "--detector-classes: expected 9 names"),
        (["--proposals", "absent.json"], "absent.json: no such file"),
        (["--clip-weights", "openai"], "--clip-weights: expected none"),
        (["--level", "word"], "--level"),
    ],
)
def test_options_that_contradict_each_other(shared_dataset, tmp_path, options, message):
    code, _, err = run("build", shared_dataset, "--out", tmp_path / "cache", *options)
    assert code == 2 and message in err and err.count("\n") == 1
    assert not (tmp_path / "cache").exists()


def test_a_detector_full_of_nan_makes_no_cache(shared_dataset, tmp_path):
    state = load_file(shared_dataset / "detector.safetensors")
    bad = {name: value * torch.nan for name, value in state.items() if value.is_floating_point()}
    save_file({**state, **bad}, tmp_path / "nan.safetensors")
    options = ("--out", tmp_path / "cache", "--detector-weights", tmp_path / "nan.safetensors")
    code, _, err = run("build", shared_dataset, *options)
    assert code == 2 and err.count("\n") == 1 and not (tmp_path / "cache").exists()
    assert "nan.safetensors: backbone." in err


def test_names_of_a_detectors_classes(shared_dataset, build, tmp_path, finished, vocabulary):
    """The same detector with other class names gives other outputs and another fingerprint."""
    names = [name.replace("ball", "kite") for name in vocabulary.objects]
    (tmp_path / "names.txt").write_text("\n".join(["__background__", *names]) + "\n")
    named = ("--detector-classes", tmp_path / "names.txt")
    cache, err = build(shared_dataset, *LENIENT, *named)
    assert "1 of the 9 objects of toy: ball" in err
    parts = dict(cache.manifest["parts"])
    assert parts.pop("detector.classes") and parts == open_cache(finished).manifest["parts"]
    assert cache.manifest["settings"]["detector_classes"] == names
    pairs = [cache[image_id].pairs for image_id in cache.image_ids]
    found = np.concatenate([each.object_labels[each.sources == 1] for each in pairs])
    assert len(found) > 0 and vocabulary.objects.index("ball") not in found
    code, _, err = run("build", shared_dataset, "--out", tmp_path / "cache", *LENIENT)
    assert code == 2 and "detector.classes" in err


def test_the_whole_image_as_region(dataset, build, tmp_path):
    path = dataset / "images/train2015" / FIRST
    with Image.open(path) as image:
        image.resize((200, 100)).save(path)
    file = dataset / "annotations/trainval_hico.json"
    entries = json.loads(file.read_text())
    file.write_text(json.dumps([{**one, "width": None, "height": None} for one in entries]))
    cache, _ = build(dataset, "--level", "image", *LENIENT)
    for image_id in cache.image_ids:
        outputs = cache[image_id]
        assert len(outputs.region_boxes) == min(len(outputs.pairs), 1)
        assert set(outputs.region_indices.tolist()) <= {0}
        width, height = (200, 100) if image_id == FIRST else (128, 128)
        assert outputs.region_boxes.tolist() == [[0, 0, width, height]] * len(outputs.region_boxes)
        labels, rows = np.unique(outputs.pairs.object_labels, return_index=True)
        for label, row in zip(labels, rows, strict=True):
            same = outputs.probabilities[outputs.pairs.object_labels == label]
            np.testing.assert_array_equal(same, np.broadcast_to(same[:1], same.shape))
            assert same[0].sum() > 0 or row < 0
    assert cache.manifest["parts"]["level"] == "image"
    options = ["--images-per-shard", 3, *LENIENT]
    code, _, err = run("build", dataset, "--out", tmp_path / "cache", *options)
    assert code == 2 and "level: image, now region" in err


def test_two_templates_are_averaged(shared_dataset, build):
    templates = ["a picture of person {ing} {object}", "a photo of person {ing} {object}"]
    one, _ = build(shared_dataset, *LENIENT)
    options = [arg for template in templates for arg in ("--template", template)]
    two, _ = build(shared_dataset, *LENIENT, *options, out="two")
    assert two.prompt_embeddings.prompts[0] == (
        "a picture of person riding horse",
        "a photo of person riding horse",
    )
    np.testing.assert_allclose(
        np.linalg.norm(two.prompt_embeddings.embeddings, axis=1), 1, atol=1e-6
    )
    assert np.abs(two.prompt_embeddings.embeddings - one.prompt_embeddings.embeddings).max() > 1e-4
    assert one.manifest["parts"]["prompts"] != two.manifest["parts"]["prompts"]
