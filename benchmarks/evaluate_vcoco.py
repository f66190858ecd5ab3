"""Times V-COCO's evaluation against plain loops, on random annotations of its test part's size.

Random detections are drawn around annotated people: `--detections` for each image. Prints JSON.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

import numpy as np

from benchmarks.evaluate import compared, peak_memory, timed
from evaluation.vcoco.average_precision import evaluate_vcoco
from evaluation.vcoco.detections import VcocoDetections, column_shapes
from pipeline.annotations.vcoco import VcocoAction, VcocoGroundTruth, VcocoImage
from pipeline.vocabulary import load_vocabulary

IMAGES, PEOPLE, THINGS = 4946, 3, 3


def random_ground_truth(count: int, rng: np.random.Generator) -> VcocoGroundTruth:
    """Images with three people and three objects; a tenth of the people is not annotated."""
    roles = load_vocabulary("vcoco").roles
    actions = tuple(VcocoAction(entry["action"], tuple(entry["roles"])) for entry in roles)
    number = PEOPLE + THINGS
    images = []
    for index in range(count):
        corners = rng.uniform(0, 400, (number, 2))
        does = np.full((number, len(actions)), -1, dtype=np.int8)
        does[:PEOPLE] = rng.random((PEOPLE, len(actions))) < 0.12
        does[: PEOPLE - 1][rng.random(PEOPLE - 1) < 0.1] = -1
        named = rng.integers(PEOPLE - 1, number, (number, len(actions), 2))
        images.append(
            VcocoImage(
                id=index,
                size=(600, 600),
                name=f"{index}.jpg",
                boxes=np.hstack([corners, corners + rng.uniform(30, 200, (number, 2))]).astype(
                    np.float32
                ),
                categories=np.ones(number, dtype=np.int64),
                is_person=np.arange(number) < PEOPLE,
                is_crowd=np.zeros(number, dtype=bool),
                action_labels=does,
                # An index of the last person is replaced by -1, a role without object.
                role_boxes=np.where((does == 1)[..., None] & (named >= PEOPLE), named, -1),
            )
        )
    return VcocoGroundTruth(actions, tuple(images), {})


def random_detections(
    ground_truth: VcocoGroundTruth, count: int, rng: np.random.Generator
) -> VcocoDetections:
    """Detections with boxes near annotated people and objects."""
    images = np.repeat(np.arange(len(ground_truth.images)), count)
    boxes = np.stack([image.boxes for image in ground_truth.images])
    people = boxes[images, rng.integers(0, PEOPLE, len(images))]

    def random_column(shape: tuple[int, ...]) -> np.ndarray:
        scores = rng.random(len(images), dtype=np.float32)
        if not shape:
            return scores
        things = boxes[images, rng.integers(PEOPLE, PEOPLE + THINGS, len(images))]
        things = things + rng.normal(0, 4, things.shape).astype(np.float32)
        things[rng.random(len(images)) < 0.3] = 0
        return np.column_stack([things, scores])

    return VcocoDetections(
        images,
        people + rng.normal(0, 6, people.shape).astype(np.float32),
        {name: random_column(shape) for name, shape in column_shapes(ground_truth.actions).items()},
    )


def plain_loop(ground_truth: VcocoGroundTruth, found: VcocoDetections) -> np.ndarray:
    """(A, 5) agent AP, then AP of each role in both scenarios, computed with loops over actions,
    images and detections."""
    scores = np.full((len(ground_truth.actions), 5), np.nan)
    rows_of = [np.flatnonzero(found.image_ids == image.id) for image in ground_truth.images]
    for index, action in enumerate(ground_truth.actions):
        for column in range(1 + 2 * len(action.roles)):
            role, scenario = (column - 1) // 2, (column - 1) % 2 + 1
            outcomes: list[tuple[float, bool]] = []
            positives = 0
            for image, rows in zip(ground_truth.images, rows_of, strict=True):
                people = np.flatnonzero(image.is_person)
                positives += int((image.action_labels[people, index] == 1).sum())
                taken = set()
                if column:
                    targets, values = found.role_boxes(action, action.roles[role])
                else:
                    targets, values = None, found.agent_scores(action)
                for row in rows[np.argsort(-values[rows], kind="stable")]:
                    over = [_iou(image.boxes[one], found.person_boxes[row]) for one in people]
                    best = int(np.argmax(over))
                    person = people[best]
                    if image.action_labels[person, index] < 0:
                        continue
                    right = image.action_labels[person, index] == 1 and over[best] >= 0.5
                    if right and targets is not None:
                        target = image.role_boxes[person, index, role]
                        if target >= 0:
                            right = _iou(image.boxes[target], targets[row]) >= 0.5
                        elif scenario == 1:
                            right = not targets[row].any()
                    outcomes.append((values[row], bool(right) and person not in taken))
                    if right:
                        taken.add(person)
            if positives:
                scores[index, column] = _area(outcomes, positives)
    return scores


def _iou(first: np.ndarray, second: np.ndarray) -> float:
    width = max(min(first[2], second[2]) - max(first[0], second[0]) + 1, 0)
    height = max(min(first[3], second[3]) - max(first[1], second[1]) + 1, 0)
    first_area = (first[2] - first[0] + 1) * (first[3] - first[1] + 1)
    second_area = (second[2] - second[0] + 1) * (second[3] - second[1] + 1)
    return width * height / (first_area + second_area - width * height)


def _area(outcomes: list[tuple[float, bool]], positives: int) -> float:
    hits, precision, recall = 0, [], []
    for row, (_, hit) in enumerate(sorted(outcomes, key=lambda outcome: -outcome[0])):
        hits += hit
        precision.append(hits / (row + 1))
        recall.append(hits / positives)
    best, area = 0.0, 0.0
    for row in reversed(range(len(recall))):
        best = max(best, precision[row])
        area += (recall[row] - (recall[row - 1] if row else 0.0)) * best
    return area


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Times the evaluation, compares it with the loop and checks that both agree."""
    rng = np.random.default_rng(options.seed)
    ground_truth = random_ground_truth(IMAGES, rng)
    found = random_detections(ground_truth, options.detections, rng)
    before = peak_memory()
    whole, scores = timed(lambda: evaluate_vcoco(ground_truth, found))
    few = VcocoGroundTruth(ground_truth.actions, ground_truth.images[: options.loop_images], {})
    own = found.keep(np.flatnonzero(found.image_ids < options.loop_images))
    quick, ours = timed(lambda: evaluate_vcoco(few, own))
    slow, expected = timed(lambda: plain_loop(few, own), repeats=1)
    both = np.stack([ours.role_ap[1], ours.role_ap[2]], axis=2).reshape(
        len(ground_truth.actions), 4
    )
    assert np.allclose(np.column_stack([ours.agent_ap, both]), expected, atol=1e-6, equal_nan=True)
    return {
        "images": IMAGES,
        "detections": len(found),
        **scores.metrics(),
        "seconds": whole.to_dict(),
        "peak_memory_gb": {"data": before, "with_evaluation": peak_memory()},
        "plain_loop": compared(quick, slow, options.loop_images),
    }


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--detections", type=int, default=100, help="for each image")
    parser.add_argument("--loop-images", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    print(json.dumps(run(parser.parse_args()), indent=2))


if __name__ == "__main__":
    main()
