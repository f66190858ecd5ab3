"""Candidate pairs of a build: detector, proposals file or annotated boxes; regions; templates."""

import json

import numpy as np
import pytest
from commands import run_command
from PIL import Image

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


def test_annotated_candidates_are_all_annotated_boxes(shared_dataset, build, vocabulary):
    cache, _ = build(shared_dataset, "--candidates", "annotated")
    num_unlabelled = 0
    for annotation in open_dataset(shared_dataset).load("train").annotations:
        outputs, labelled = cache[annotation.image_id], annotated_pairs(annotation)
        boxes = annotated_boxes(annotation)
        all_pairs = form_pairs(boxes, vocabulary, UNRESTRICTED_PAIRING)
        sources = [0] * len(labelled) + [1] * len(all_pairs)
        assert outputs.pairs.sources.tolist() == sources
        np.testing.assert_array_equal(
            outputs.pairs.human_boxes[len(labelled) :], all_pairs.human_boxes
        )
        np.testing.assert_array_equal(
            outputs.pairs.object_boxes[len(labelled) :], all_pairs.object_boxes
        )
        # The labelled pairs are among them and share their regions.
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


def test_the_whole_image_as_region(dataset, build):
    with Image.open(dataset / "images/train2015" / FIRST) as image:
        image.resize((200, 100)).save(dataset / "images/train2015" / FIRST)
    file = dataset / "annotations/trainval_hico.json"
    entries = json.loads(file.read_text())
    file.write_text(json.dumps([{**one, "width": None, "height": None} for one in entries]))
    cache, _ = build(dataset, "--level", "image", *LENIENT)
    assert cache.manifest["parts"]["level"] == "image"
    for image_id in cache.image_ids:
        outputs = cache[image_id]
        width, height = (200, 100) if image_id == FIRST else (128, 128)
        assert outputs.region_boxes.tolist() == [[0, 0, width, height]] * bool(len(outputs.pairs))
        assert set(outputs.region_indices.tolist()) <= {0}
        for label in set(outputs.pairs.object_labels.tolist()):
            same = outputs.probabilities[outputs.pairs.object_labels == label]
            np.testing.assert_array_equal(same, np.broadcast_to(same[:1], same.shape))
