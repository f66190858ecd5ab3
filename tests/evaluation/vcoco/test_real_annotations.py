"""V-COCO's real annotations of training and validation images, with boxes made for them."""

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from evaluation.predictions import write_predictions
from evaluation.score_vcoco import score_detections, score_vcoco_file
from evaluation.vcoco.average_precision import (
    AGENT_AP,
    ROLE_AP,
    ROLE_AP_WITHOUT_POINT,
    SCENARIO_KEYS,
)
from pipeline.annotations.vcoco import VcocoGroundTruth
from pipeline.datasets.dataset import open_dataset
from pipeline.types import Annotation, Detections
from pipeline.vocabulary import load_vocabulary

WIDTH, HEIGHT, MIN_SIDE = 640, 480, 20
PERSON = 1
# Images, annotated people, annotation ids that occur, and positive labels of all actions.
COUNTS = {"train": (2533, 3932, 7387, 11325), "val": (2867, 4499, 8460, 13141)}
NUM_ROLES, NUM_ACTIONS = 25, 26


@dataclass(frozen=True)
class Part:
    """One part: its folder and official entries, and what the readers make of it."""

    folder: Path
    name: str
    entries: list
    ground_truth: VcocoGroundTruth
    annotations: list[Annotation]
    issues: dict

    @property
    def actions(self):
        return self.folder / f"vcoco_{self.name}.json"

    @property
    def perfect(self):
        """Detections that repeat the annotations."""
        scores = np.random.default_rng(1).uniform(0.1, 0.9, 100).astype(np.float32)
        return [
            Detections(a.image_id, a.boxes, a.labels, a.hois, np.resize(scores, len(a.hois)))
            for a in self.annotations
        ]


def numbers(column):
    return np.array(column).reshape(-1)


def objects_of_roles(entry):
    """The objects that each role of an action may have, in the names of the vocabulary."""
    every = set(load_vocabulary("vcoco").objects)
    return [{name.replace(" ", "_") for name in names} or every for names in entry["include"]]


def annotation_ids(entries):
    """Image id and COCO's category id of every annotation id that occurs: people, and objects of
    the roles, of a category that all their roles may have."""
    vocabulary = load_vocabulary("vcoco")
    ids = dict(zip(vocabulary.objects, vocabulary.category_ids, strict=True))
    images, allowed = {}, {}
    for entry in entries:
        people, image_ids = numbers(entry["ann_id"]), numbers(entry["image_id"])
        roles = numbers(entry["role_object_id"]).reshape(-1, len(people))
        for role, objects in zip(roles, objects_of_roles(entry), strict=True):
            for number, image in zip(role.tolist(), image_ids.tolist(), strict=True):
                if number:
                    images[number] = image
                    allowed[number] = allowed.get(number, objects) & objects
    people = set(numbers(entries[0]["ann_id"]).tolist())
    categories = {}
    for number, objects in allowed.items():
        names = sorted(objects - {"person"}) or sorted(objects)
        name = "person" if number in people else names[number % len(names)]
        categories[number] = ids[name]
    return images, categories


def write_boxes(folder, images, categories):
    """COCO's instances file with random boxes for the annotations."""
    rng = np.random.default_rng(0)
    corner = rng.integers(0, (WIDTH - MIN_SIDE, HEIGHT - MIN_SIDE), (len(images), 2))
    side = rng.integers(MIN_SIDE, np.array((WIDTH, HEIGHT)) - corner + 1)
    size = {"width": WIDTH, "height": HEIGHT}
    instances = {
        "images": [
            {"id": image, "file_name": f"COCO_train2014_{image:012}.jpg", **size}
            for image in sorted(set(images.values()))
        ],
        "annotations": [
            {"id": number, "image_id": image, "category_id": categories[number]}
            | {"bbox": box, "iscrowd": 0, "area": box[2] * box[3]}
            for (number, image), box in zip(
                images.items(), np.hstack([corner, side]).tolist(), strict=True
            )
        ],
        "categories": [{"id": PERSON, "name": "person"}],
    }
    (folder / "instances_vcoco_all_2014.json").write_text(json.dumps(instances))


@pytest.fixture(scope="module")
def open_part(vcoco_files, tmp_path_factory):
    """`open_part("val")`: a `Part` with boxes of its own."""

    @cache
    def run(name):
        folder = tmp_path_factory.mktemp(name)
        for file in (f"vcoco_{name}.json", f"vcoco_{name}.ids"):
            (folder / file).write_bytes((vcoco_files / file).read_bytes())
        (folder / "dataset.toml").write_text(
            f'name = "v-coco"\nvocabulary = "vcoco"\n[{PARTS[name]}]\nimages = "."\n'
            f'annotations = "vcoco_{name}.json"\n'
        )
        entries = json.loads((folder / f"vcoco_{name}.json").read_text())
        write_boxes(folder, *annotation_ids(entries))
        dataset = open_dataset(folder)
        ground_truth = dataset.vcoco_ground_truth(PARTS[name])
        loaded = dataset.load(PARTS[name])
        return Part(folder, name, entries, ground_truth, loaded.annotations, loaded.issues)

    return run


PARTS = {"train": "train", "val": "test"}
each_part = pytest.mark.parametrize("name", PARTS)


@each_part
def test_counts_are_those_of_the_file(open_part, name):
    part = open_part(name)
    assert not part.issues
    num_images, num_people, num_boxes, num_positives = COUNTS[name]
    assert len(part.ground_truth.images) == len(part.annotations) == num_images
    assert sum(len(image.boxes) for image in part.ground_truth.images) == num_boxes
    assert len(part.entries) == NUM_ACTIONS and len(part.entries[0]["ann_id"]) == num_people
    labels = np.concatenate([image.action_labels for image in part.ground_truth.images])
    of_roles = np.concatenate([image.role_boxes for image in part.ground_truth.images])
    assert (labels >= 0).all(axis=1).sum() == num_people
    assert (labels == 1).sum() == num_positives
    results = score_detections([], part.ground_truth, load_vocabulary("vcoco"))
    for index, entry in enumerate(part.entries):
        does = numbers(entry["label"]) == 1
        objects = numbers(entry["role_object_id"]).reshape(-1, num_people)[1:]
        assert results.per_action[entry["action_name"]].positives == does.sum() > 0
        for role, column in enumerate(objects):
            assert (of_roles[:, index, role] >= 0).sum() == (column[does] > 0).sum()


@each_part
def test_perfect_detections_score_100_in_every_row(open_part, name):
    part = open_part(name)
    results = score_detections(part.perfect, part.ground_truth, load_vocabulary("vcoco"))
    assert len(results.per_action) == NUM_ACTIONS
    agents = [result.agent_ap for result in results.per_action.values()]
    rows = [role for result in results.per_action.values() for role in result.roles.values()]
    roles = [role[key] for role in rows for key in SCENARIO_KEYS]
    assert (len(agents), len(roles)) == (NUM_ACTIONS, 2 * NUM_ROLES)
    assert [*agents, *roles, *results.metrics.values()] == pytest.approx([1.0] * 81)


def test_both_forms_of_files_score_100(open_part, tmp_path):
    """Predictions, and the official layout that is made of them."""
    part = open_part("val")
    file, official = tmp_path / "predictions.json", tmp_path / "official.npz"
    write_predictions(file, part.perfect, load_vocabulary("vcoco"))
    lines = score_vcoco_file(file, part.actions, official=official)
    assert score_vcoco_file(official, part.actions) == lines
    (average,) = [line for line in lines if line.startswith("average")]
    (papers,) = [line for line in lines if line.startswith("without point")]
    assert average.split()[1:] == ["100.00"] * 3 and papers.split()[2:] == ["100.00"] * 2


@each_part
def test_only_the_mean_of_papers_leaves_out_point(open_part, name):
    part = open_part(name)
    vocabulary = load_vocabulary("vcoco")
    point = vocabulary.verbs.index("point_instr")
    without = [
        Detections(d.image_id, d.boxes, d.labels, d.hois[kept], d.scores[kept])
        for d in part.perfect
        for kept in [d.hois[:, 2] != point]
    ]
    metrics = score_detections(without, part.ground_truth, vocabulary).metrics
    assert metrics[AGENT_AP] == pytest.approx((NUM_ACTIONS - 1) / NUM_ACTIONS)
    for name, papers in zip(ROLE_AP, ROLE_AP_WITHOUT_POINT, strict=True):
        assert metrics[name] == pytest.approx((NUM_ROLES - 1) / NUM_ROLES)
        assert metrics[papers] == 1.0


@each_part
def test_the_vocabulary_allows_the_objects_of_the_file(open_part, name):
    vocabulary = load_vocabulary("vcoco")
    verbs = {entry["action"]: entry for entry in vocabulary.roles}
    for entry in open_part(name).entries:
        known = verbs[entry["action_name"]]
        for role, objects in zip(entry["role_name"][1:], objects_of_roles(entry)[1:], strict=True):
            verb = vocabulary.verbs.index(known["verbs"][known["roles"].index(role)])
            valid = np.flatnonzero(vocabulary.valid[verb])
            assert {vocabulary.objects[label] for label in valid} == objects
