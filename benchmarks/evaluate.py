"""Times the evaluations against plain loops over images, detections and annotated pairs.

Random detections are drawn around the annotations: `--detections` for each image, about half of
them correct. Annotations are read from a file or a dataset folder; without one, random ones are
drawn, with as many images and labels as HICO-DET's test part. Prints JSON.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from evaluation.hico.average_precision import RECALL_THRESHOLDS, evaluate, evaluate_settings
from evaluation.hico.nms import batched_pairwise_nms
from evaluation.score_hico import SETTINGS_OF_OPTION
from pipeline.annotations.load import load_annotations
from pipeline.datasets.dataset import open_dataset
from pipeline.types import Annotation, Detections
from pipeline.vocabulary import Vocabulary, load_vocabulary

IMAGES, LABELS = 9546, 33405
Result = TypeVar("Result")


def random_annotations(vocabulary: Vocabulary, rng: np.random.Generator) -> list[Annotation]:
    """Annotations with as many images and labels as HICO-DET's test part, unevenly distributed."""
    crowding = rng.gamma(0.7, size=IMAGES)
    more = rng.multinomial(LABELS - IMAGES, crowding / crowding.sum())
    annotations = []
    for index, labels in enumerate(1 + more):
        verbs, objects = np.array(vocabulary.interactions)[
            rng.integers(0, vocabulary.num_interactions, labels)
        ].T
        pair = np.arange(labels)
        annotations.append(
            Annotation(
                image_id=f"{index:08}.jpg",
                boxes=_boxes(rng, 2 * labels),
                labels=np.concatenate([np.full(labels, vocabulary.person), objects]),
                hois=np.column_stack([pair, pair + labels, verbs]),
            )
        )
    return annotations


def random_detections(
    annotation: Annotation, vocabulary: Vocabulary, count: int, rng: np.random.Generator
) -> Detections:
    """Detections; about half of them are annotated pairs with slightly moved boxes."""
    repeated = rng.random(count) < 0.6 if len(annotation.hois) else np.zeros(count, dtype=bool)
    rows = annotation.hois[rng.integers(0, max(len(annotation.hois), 1), repeated.sum())]
    verbs, objects = np.array(vocabulary.interactions)[
        rng.integers(0, vocabulary.num_interactions, count)
    ].T
    boxes = _boxes(rng, 2 * count).reshape(count, 2, 4)
    boxes[repeated] = annotation.boxes[rows[:, :2]] + rng.normal(0, 6, (len(rows), 2, 4))
    boxes = np.concatenate(
        [np.minimum(boxes[..., :2], boxes[..., 2:]), np.maximum(boxes[..., :2], boxes[..., 2:])],
        axis=-1,
    )
    verbs[repeated], objects[repeated] = rows[:, 2], annotation.labels[rows[:, 1]]
    pair = 2 * np.arange(count)
    return Detections(
        image_id=annotation.image_id,
        boxes=boxes.reshape(-1, 4).astype(np.float32),
        labels=np.column_stack([np.full(count, vocabulary.person), objects]).reshape(-1),
        hois=np.column_stack([pair, pair + 1, verbs]),
        scores=rng.random(count).astype(np.float32),
    )


def _boxes(rng: np.random.Generator, count: int) -> np.ndarray:
    corners = rng.uniform(0, 500, (count, 2))
    return np.hstack([corners, corners + rng.uniform(20, 250, (count, 2))]).astype(np.float32)


def plain_loop(
    annotations: Sequence[Annotation], detections: Sequence[Detections], vocabulary: Vocabulary
) -> np.ndarray:
    """(H,) AP, computed with loops over images, boxes and pairs.

    Every detected box is compared with the annotated boxes of its class, then every detection, in
    descending order of score, with the annotated pairs.
    """
    outcomes: dict[tuple[int, int], list[tuple[float, bool]]] = defaultdict(list)
    positives: dict[tuple[int, int], int] = defaultdict(int)
    for ground_truth, found in zip(annotations, detections, strict=True):
        found_boxes, true_boxes = (
            found.boxes.astype(np.float64),
            ground_truth.boxes.astype(np.float64),
        )
        overlaps = np.zeros((len(found_boxes), len(true_boxes)))
        for row in range(len(found_boxes)):
            for column in range(len(true_boxes)):
                if found.labels[row] == ground_truth.labels[column]:
                    overlaps[row, column] = _iou(found_boxes[row], true_boxes[column])
        for _, target, verb in ground_truth.hois:
            positives[verb, ground_truth.labels[target]] += 1
        taken = set()
        for row in np.argsort(-found.scores, kind="stable"):
            human, target, verb = found.hois[row]
            best, best_overlap = None, 0.0
            for index, (true_human, true_target, true_verb) in enumerate(ground_truth.hois):
                if verb == true_verb:
                    overlap = min(overlaps[human, true_human], overlaps[target, true_target])
                    if overlap >= 0.5 and overlap > best_overlap:
                        best, best_overlap = index, overlap
            hit = best is not None and best not in taken
            outcomes[verb, found.labels[target]].append((found.scores[row], hit))
            taken.add(best)
    scores = np.full(vocabulary.num_interactions, np.nan)
    for interaction, pair in enumerate(vocabulary.interactions):
        if positives[pair]:
            scores[interaction] = _average_precision(outcomes[pair], positives[pair])
    return scores


def _iou(first: np.ndarray, second: np.ndarray) -> float:
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    if width <= 0 or height <= 0:
        return 0.0
    overlap = (width + 1) * (height + 1)
    first_area = (first[2] - first[0] + 1) * (first[3] - first[1] + 1)
    second_area = (second[2] - second[0] + 1) * (second[3] - second[1] + 1)
    return overlap / (first_area + second_area - overlap)


def _average_precision(outcomes: list[tuple[float, bool]], positives: int) -> float:
    outcomes = sorted(outcomes, key=lambda outcome: -outcome[0])
    hits, precision, recall = 0, [], []
    for row, (_, hit) in enumerate(outcomes):
        hits += hit
        precision.append(hits / (row + 1))
        recall.append(hits / positives)
    total = 0.0
    for threshold in RECALL_THRESHOLDS:
        reached = [p for p, r in zip(precision, recall, strict=True) if r >= threshold]
        total += max(reached, default=0.0)
    return total / len(RECALL_THRESHOLDS)


@dataclass(frozen=True)
class Time:
    """Wall-clock and CPU seconds; other programs increase only the former."""

    clock: float
    computing: float

    def to_dict(self) -> dict[str, float]:
        return {"clock": round(self.clock, 3), "computing": round(self.computing, 3)}


def timed(work: Callable[[], Result], repeats: int = 3) -> tuple[Time, Result]:
    """The shortest of several times of a function, and its result."""
    times = []
    for _ in range(repeats):
        clock, computing = time.perf_counter(), time.process_time()
        result = work()
        times.append(Time(time.perf_counter() - clock, time.process_time() - computing))
    return min(times, key=lambda one: one.computing), result


def compared(quick: Time, slow: Time, images: int) -> dict[str, float]:
    """CPU milliseconds per image of the project's evaluation and of the loop."""
    return {
        "images": images,
        "loop_milliseconds_an_image": round(1000 * slow.computing / images, 3),
        "our_milliseconds_an_image": round(1000 * quick.computing / images, 3),
        "times_slower": round(slow.computing / quick.computing, 1),
    }


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Times the evaluation, compares it with the loop and checks that both agree."""
    vocabulary = load_vocabulary("hico-det")
    rng = np.random.default_rng(options.seed)
    parsing, annotations = timed(
        lambda: _annotations(options.annotations, vocabulary, rng), repeats=1
    )
    detections = [
        random_detections(item, vocabulary, options.detections, rng) for item in annotations
    ]
    before = peak_memory()
    default, scores = timed(lambda: evaluate(annotations, detections, vocabulary))
    both, _ = timed(
        lambda: evaluate_settings(annotations, detections, vocabulary, SETTINGS_OF_OPTION["both"])
    )
    nms, _ = timed(lambda: batched_pairwise_nms(detections))
    some = slice(0, options.loop_images or len(annotations))
    few = annotations[some], detections[some], vocabulary
    quick, found = timed(lambda: evaluate(*few))
    slow, expected = timed(lambda: plain_loop(*few), repeats=1)
    assert np.allclose(found.average_precision, expected, atol=1e-6, equal_nan=True)
    return {
        "images": len(annotations),
        "labels": sum(len(item.hois) for item in annotations),
        "detections": sum(len(item.hois) for item in detections),
        "mean_ap": scores.mean_ap(),
        "seconds": {
            "annotations": parsing.to_dict(),
            "default_setting": default.to_dict(),
            "both_settings": both.to_dict(),
            "pairwise_nms": nms.to_dict(),
        },
        "peak_memory_gb": {"data": before, "with_evaluation": peak_memory()},
        "plain_loop": compared(quick, slow, len(few[0])),
    }


def _annotations(
    path: Path | None, vocabulary: Vocabulary, rng: np.random.Generator
) -> Sequence[Annotation]:
    if path is None:
        return random_annotations(vocabulary, rng)
    if path.is_dir():
        return open_dataset(path).load("test").annotations
    return load_annotations(path, vocabulary, "test").annotations


def peak_memory() -> float:
    """Maximum memory of this process in GB."""
    unit = 1 if sys.platform == "darwin" else 1024
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9, 2)


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("annotations", nargs="?", type=Path, help="HICO-DET file or folder")
    parser.add_argument("--detections", type=int, default=100, help="for each image")
    parser.add_argument("--loop-images", type=int, default=0, help="0 for all")
    parser.add_argument("--seed", type=int, default=0)
    print(json.dumps(run(parser.parse_args()), indent=2))


if __name__ == "__main__":
    main()
