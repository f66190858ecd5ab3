"""V-COCO from its official files to agent and role AP, on pictures of the toy dataset."""

import dataclasses
import shutil

import numpy as np
import pytest
import torch

from evaluation.results import read_results
from evaluation.score_vcoco import score_detections, score_vcoco_file
from pipeline.datasets.check import check_dataset, summarise_problems
from pipeline.datasets.dataset import open_dataset
from pipeline.splits import load_split
from pipeline.utils.files import read_json
from pipeline.vocabulary import load_vocabulary
from student.config import TargetConfig
from student.data.dataset import make_sample
from student.data.targets import build_targets
from student.engine.evaluate import evaluate_checkpoint
from student.engine.run import run_student
from student.inference.postprocess import select_detections
from teacher_cache.reader.cache import open_cache

# What COCO calls the toy dataset's things, and what V-COCO calls its actions.
CATEGORIES = {"person": 1, "bike": 2, "dog": 18, "horse": 19, "umbrella": 28, "box": 33}
CATEGORIES |= {"ball": 37, "skateboard": 41, "chair": 62}
ACTIONS = {"ride": "ride", "sit_on": "sit", "carry": "carry", "hold": "hold", "point": "point"}


@pytest.fixture(scope="module")
def vcoco():
    return load_vocabulary("vcoco")


@pytest.fixture(scope="module")
def root(tmp_path_factory, dataset, write_vcoco):
    """A folder in V-COCO's layout with the toy dataset's images and V-COCO's verbs."""
    folder, start = tmp_path_factory.mktemp("vcoco"), 0
    parts = ("train", "trainval", "train2014"), ("test", "test", "val2014")
    for part, name, images in parts:
        annotations = dataset.load(part).annotations
        write_vcoco(
            folder, [to_vcoco(item, dataset.vocabulary) for item in annotations], name, start
        )
        shutil.copytree(dataset.parts[part].images, folder / "images" / images)
        start += len(annotations)
    return folder


def to_vcoco(annotation, toy):
    does = {}
    for human, thing, verb in annotation.hois.tolist():
        action = ACTIONS.get(toy.verbs[verb], "look")
        does[human, action] = (thing,)
    people = np.flatnonzero(annotation.labels == toy.person).tolist()
    for person in people:
        does[person, "stand"] = ()
        # One person laughs and one points, both without an object.
        does.setdefault((person, "point"), (None,))
    boxes = [
        (CATEGORIES[toy.objects[label]], [x1, y1, x2 - x1 + 1, y2 - y1 + 1])
        for label, (x1, y1, x2, y2) in zip(
            annotation.labels, annotation.boxes.tolist(), strict=True
        )
    ]
    return {"name": annotation.image_id, "size": (128, 128), "boxes": boxes, "does": does}


@pytest.fixture(scope="module")
def official(root):
    return open_dataset(root)


@pytest.fixture(scope="module")
def cache(tmp_path_factory, official, make_cache):
    folder = tmp_path_factory.mktemp("vcoco-cache")
    return make_cache(folder, official.load("train"), official.vocabulary)


@pytest.fixture(scope="module")
def run(root, cache, configure_run, tmp_path_factory):
    """A short run with learned queries."""
    out = tmp_path_factory.mktemp("runs") / "vcoco"
    options = {"data": root, "cache": cache, "split": "full"}
    run_student(configure_run(out, queries="learned", num_queries=12, **options))
    return out


def test_the_layout_is_recognised_and_valid(root, official):
    assert (official.name, official.vocabulary.name) == ("v-coco", "vcoco")
    assert summarise_problems(check_dataset(official)) == ""
    train = official.load("train")
    assert len(train.annotations) == 16 and not train.issues
    verbs = {official.vocabulary.verbs[v] for a in train.annotations for v in a.hois[:, 2]}
    assert {"stand", "point_instr", "hold_obj"} <= verbs


def test_targets_of_verbs_without_object(official, cache, vcoco):
    annotation = official.load("train").annotations[0]
    outputs, split = open_cache(cache)[annotation.image_id], load_split(vcoco, "full")
    having = {tuple(row[:2]) for row in annotation.hois.tolist() if row[1] >= 0}
    assert (outputs.pairs.sources == 0).sum() == len(having)
    targets = build_targets(
        annotation, outputs.pairs, outputs.probabilities, split, vcoco, TargetConfig()
    )
    sample = make_sample("a.jpg", torch.zeros(3, 128, 128, dtype=torch.uint8), targets, lambda i: i)
    alone = (sample.targets.object_boxes == 0).all(1)
    assert alone.any() and not alone.all()
    assert ((sample.targets.object_labels == vcoco.num_objects) == alone).all()
    assert sample.targets.verb_labels[alone][:, vcoco.verbs.index("stand")].all()
    assert not sample.targets.teacher_probs[alone].any()


def test_a_run_and_its_checkpoint_are_scored_by_vcoco_metrics(run, root, tmp_path):
    results, own = read_results(run / "results.json"), read_json(run / "vcoco.json")
    assert (results.dataset, results.vocabulary) == ("v-coco", "vcoco")
    assert results.vcoco.metrics == own["metrics"] and len(own["per_action"]) == 26
    assert own["num_images"] == 6 and own["per_action"]["stand"]["positives"] > 0
    lines = score_vcoco_file(run, root / "data/vcoco/vcoco_test.json")
    wanted = [f"{100 * value:.2f}" for value in own["metrics"].values()]
    assert lines[28 + 3].split() == ["average", *wanted[:3]]
    assert lines[28 + 4].split()[-2:] == wanted[3:]
    again = evaluate_checkpoint(run, root, None, tmp_path, "cpu", 0, overwrite=False)
    assert again.vcoco == results.vcoco
    assert read_json(tmp_path / "vcoco.json")["metrics"] == own["metrics"]


def test_a_limit_is_that_of_both_protocols(run, root, tmp_path):
    few = evaluate_checkpoint(run, root, None, tmp_path, "cpu", 0, overwrite=False, limit=3)
    own, whole = read_json(tmp_path / "vcoco.json"), read_json(run / "vcoco.json")
    assert few.num_images == own["num_images"] == own["limit"] == 3
    people = [each["per_action"]["stand"]["positives"] for each in (own, whole)]
    assert people[0] < people[1]


def test_perfect_predictions_have_an_ap_of_100(official, vcoco):
    """One query for each pair and for each person alone, with scores of 1."""
    truth, found = official.vcoco_ground_truth("test"), []
    for annotation in official.load("test").annotations:
        pairs, inverse = np.unique(annotation.hois[:, :2], axis=0, return_inverse=True)
        objects = torch.full((1, len(pairs), vcoco.num_objects + 1), -50.0)
        verbs = torch.full((1, len(pairs), vcoco.num_verbs), -50.0)
        for row, thing in enumerate(pairs[:, 1]):
            label = vcoco.num_objects if thing < 0 else annotation.labels[thing]
            objects[0, row, label] = 50.0
        verbs[0, inverse.reshape(-1), annotation.hois[:, 2]] = 50.0
        boxes = torch.from_numpy(annotation.boxes) / 128
        middle, size = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
        boxes = torch.cat([middle, size], dim=1)
        outputs = {
            "pred_object_logits": objects,
            "pred_verb_logits": verbs,
            "pred_human_boxes": boxes[pairs[:, 0]][None],
            "pred_object_boxes": boxes[pairs[:, 1]][None],
        }
        found += select_detections(outputs, [annotation.image_id], [(128, 128)], vcoco)
    metrics = score_detections(found, truth, vcoco).metrics
    assert metrics == pytest.approx(dict.fromkeys(metrics, 1.0))
    # Without the verbs that have no object, agents and empty roles are missed.
    objects_only = [
        dataclasses.replace(item, hois=item.hois[kept], scores=item.scores[kept])
        for item in found
        for kept in [item.hois[:, 1] >= 0]
    ]
    fewer = score_detections(objects_only, truth, vcoco).metrics
    assert fewer["average_agent_ap"] < 1 and fewer["average_role_ap_scenario_1"] < 1
