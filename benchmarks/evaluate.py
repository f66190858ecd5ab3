"""Times HICO-DET's evaluation on random annotations and detections. Prints JSON.

There are as many images and labels as in HICO-DET's test part, and `--detections` for each image,
drawn around the annotations; about half of them are correct.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.program import run_main
from evaluation.hico.average_precision import evaluate
from evaluation.hico.nms import pairwise_nms
from evaluation.score_hico import ScoringConfig, score_to_fields
from pipeline.types import Annotation, Detections
from pipeline.vocabulary import Vocabulary, load_vocabulary

IMAGES, LABELS = 9546, 33405


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


def seconds(work: Callable[[], Any], repeats: int = 3) -> dict[str, float]:
    """The shortest of several times of a function. Other programs increase only the clock's."""
    times = []
    for _ in range(repeats):
        clock, computing = time.perf_counter(), time.process_time()
        work()
        times.append((time.process_time() - computing, time.perf_counter() - clock))
    return dict(zip(("computing", "clock"), np.round(min(times), 3).tolist(), strict=True))


def run(count: int, seed: int) -> dict[str, Any]:
    """Times the evaluation of `count` random detections for each image."""
    vocabulary = load_vocabulary("hico-det")
    rng = np.random.default_rng(seed)
    annotations = random_annotations(vocabulary, rng)
    detections = [random_detections(item, vocabulary, count, rng) for item in annotations]
    data = annotations, detections, vocabulary
    return {
        "images": len(annotations),
        "labels": sum(len(item.hois) for item in annotations),
        "detections": sum(len(item.hois) for item in detections),
        "mean_ap": evaluate(*data).mean_ap(),
        "seconds": {
            "default_setting": seconds(lambda: evaluate(*data)),
            "both_settings": seconds(lambda: score_to_fields(*data, (), ScoringConfig())),
            "pairwise_nms": seconds(lambda: [pairwise_nms(item) for item in detections]),
        },
    }


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--detections", type=int, default=100, help="for each image")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    print(json.dumps(run(options.detections, options.seed), indent=2))


if __name__ == "__main__":
    run_main(main)
