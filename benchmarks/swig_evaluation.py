"""Times SWIG-HOI's evaluation on random files, beside a plain loop over its rule. Prints JSON.

There are about as many images and pairs as in SWIG-HOI's test part, and `--detections` for each
image, about half of them near an annotated pair. The files are `annotations.json` and
`predictions.json`, the latter in the layout of the public projects.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.evaluate import seconds
from benchmarks.program import run_main
from evaluation.swig.average_precision import MAX_DETECTIONS, evaluate_swig
from evaluation.swig.predictions import read_published
from pipeline.annotations.load import load_annotations
from pipeline.annotations.swig import SwigImage
from pipeline.types import Detections
from pipeline.utils.files import write_text
from pipeline.vocabulary import Vocabulary, load_vocabulary

IMAGES, PAIRS, SIZE = 14000, 28000, 512
COMMAND = "import eoid, sys; sys.argv[0] = 'eoid-eval'; eoid._eval()"


def plain_loop(
    images: Sequence[SwigImage], detections: Sequence[Detections], vocabulary: Vocabulary
) -> dict[int, float]:
    """AP of every evaluated interaction, by loops over interactions, detections and pairs."""

    def iou(first: Sequence[float], second: Sequence[float]) -> float:
        width = min(first[2], second[2]) - max(first[0], second[0])
        height = min(first[3], second[3]) - max(first[1], second[1])
        overlap = max(width, 0.0) * max(height, 0.0)
        areas = [max(b[2] - b[0], 0.0) * max(b[3] - b[1], 0.0) for b in (first, second)]
        return overlap / (areas[0] + areas[1] - overlap) if overlap > 0 else 0.0

    found: dict[int, list[Any]] = defaultdict(list)
    labels: dict[int, dict[str, list[Any]]] = defaultdict(lambda: defaultdict(list))
    for item in detections:
        boxes, names = item.boxes.tolist(), item.labels.tolist()
        for (human, target, verb), score in zip(
            item.hois.tolist(), item.scores.tolist(), strict=True
        ):
            interaction = int(vocabulary.interaction_ids[verb, names[target]])
            found[interaction].append((score, item.image_id, boxes[human], boxes[target]))
    for image in images:
        boxes = image.boxes.tolist()
        for (human, target), interaction in zip(
            image.pairs.tolist(), image.interactions.tolist(), strict=True
        ):
            labels[interaction][image.name].append((boxes[human], boxes[target]))
    results = {}
    evaluated = vocabulary.evaluated
    for interaction in range(vocabulary.num_interactions) if evaluated is None else evaluated:
        rows, truth = found[interaction], labels[interaction]
        num_pairs, hits, taken = sum(map(len, truth.values())), [], set()
        for row in np.argsort([score for score, *_ in rows])[::-1][:MAX_DETECTIONS]:
            _, name, human, target = rows[row]
            best, place = 0.0, -1
            for number, (human_label, target_label) in enumerate(truth.get(name, ())):
                overlap = min(iou(human, human_label), iou(target, target_label))
                if overlap > best:
                    best, place = overlap, number
            hits.append(best >= 0.5 and (name, place) not in taken)
            if hits[-1]:
                taken.add((name, place))
        sums = np.cumsum(hits)
        precision = sums / np.arange(1, len(hits) + 1)
        reached = [sums / num_pairs >= i / 10 for i in range(11)] if hits and num_pairs else []
        results[interaction] = sum(precision[mask].max() for mask in reached if mask.any()) / 11
    return results


def write_files(folder: Path, count: int, seed: int, vocabulary: Vocabulary) -> tuple[Path, Path]:
    """Writes random annotations and predictions; a few interactions are much more common."""
    rng = np.random.default_rng(seed)
    evaluated, table = np.array(vocabulary.evaluated), np.array(vocabulary.interactions)
    frequency = rng.gamma(0.3, size=len(evaluated))
    frequency /= frequency.sum()
    entries, lines = [], []
    for number, more in enumerate(rng.multinomial(PAIRS - IMAGES, np.full(IMAGES, 1 / IMAGES))):
        labels = rng.choice(evaluated, 1 + more, p=frequency)
        pairs = _pairs(rng, len(labels))
        rows = rng.integers(0, len(labels), count)
        near = rng.random(count) < 0.5
        interactions = np.where(near, labels[rows], rng.choice(evaluated, count, p=frequency))
        boxes = np.where(
            near[:, None, None], pairs[rows] + rng.normal(0, 8, (count, 2, 4)), _pairs(rng, count)
        )
        values = np.round(np.column_stack([rng.random(count), boxes.reshape(count, 8)]), 6)
        found = [
            [interaction, *row]
            for interaction, row in zip(interactions.tolist(), values.tolist(), strict=True)
        ]
        lines.append(f'"{number}":{json.dumps(found)}')
        entries.append(_entry(number, table[labels], pairs))
    annotations, predictions = folder / "annotations.json", folder / "predictions.json"
    write_text(annotations, json.dumps(entries))
    write_text(predictions, "{" + ",\n".join(lines) + "}")
    return annotations, predictions


def _pairs(rng: np.random.Generator, count: int) -> np.ndarray:
    """(count, 2, 4) random boxes in pixels."""
    corners = rng.uniform(0, 0.6 * SIZE, (count, 2, 2))
    sides = rng.uniform(0.1 * SIZE, 0.4 * SIZE, (count, 2, 2))
    return np.concatenate([corners, corners + sides], axis=-1).round()


def _entry(number: int, labels: np.ndarray, pairs: np.ndarray) -> dict[str, Any]:
    """An image's entry of the annotation file, with two boxes for every label."""
    categories = np.column_stack([np.zeros(len(labels), int), labels[:, 1]]).ravel().tolist()
    boxes = pairs.reshape(-1, 4).tolist()
    return {
        "file_name": f"{number}.jpg",
        "img_id": number,
        "width": SIZE,
        "height": SIZE,
        "box_annotations": [
            {"bbox": box, "category_id": category, "aux_category_id": []}
            for box, category in zip(boxes, categories, strict=True)
        ],
        "hoi_annotations": [
            {"subject_id": 2 * row, "object_id": 2 * row + 1, "action_id": verb}
            for row, verb in enumerate(labels[:, 0].tolist())
        ],
    }


def run(count: int, seed: int) -> dict[str, Any]:
    """Times the command, and the evaluation and the plain loop in memory."""
    vocabulary = load_vocabulary("swig-hoi")
    with tempfile.TemporaryDirectory() as folder:
        annotations, predictions = write_files(Path(folder), count, seed, vocabulary)
        words = ["swig", str(predictions), "--annotations", str(annotations), "--quiet"]
        started = time.perf_counter()
        subprocess.run([sys.executable, "-c", COMMAND, *words], check=True, capture_output=True)
        clock, used = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
        megabytes = predictions.stat().st_size / 1e6
        images = load_annotations(annotations, vocabulary, "test").swig_images
        detections = read_published(predictions, images, vocabulary)
    data = images, detections, vocabulary
    scores, expected = evaluate_swig(*data), plain_loop(*data)
    found = scores.average_precision[list(expected)]
    times = {
        "evaluation": seconds(lambda: evaluate_swig(*data)),
        "plain_loop": seconds(lambda: plain_loop(*data), repeats=1),
    }
    return {
        "images": len(images),
        "pairs": sum(len(image.interactions) for image in images),
        "detections": sum(len(item.scores) for item in detections),
        "most_of_one_interaction": int(np.bincount(_interactions(*data[1:])).max()),
        "mean_ap": scores.mean_ap(),
        "largest_difference": float(np.abs(found - list(expected.values())).max()),
        "seconds": times,
        "ratio": round(times["plain_loop"]["computing"] / times["evaluation"]["computing"], 1),
        "command": {
            "file_mb": round(megabytes),
            "computing": round(used.ru_utime + used.ru_stime, 1),
            "clock": round(clock, 1),
            "peak_mb": round(used.ru_maxrss / 1024),
        },
    }


def _interactions(detections: Sequence[Detections], vocabulary: Vocabulary) -> np.ndarray:
    """The interactions of all detections."""
    return np.concatenate(
        [
            vocabulary.interaction_ids[item.hois[:, 2], item.labels[item.hois[:, 1]]]
            for item in detections
        ]
    )


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
