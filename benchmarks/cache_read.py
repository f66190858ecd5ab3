"""Measures the time to open a cache and to read images' outputs at random. Prints JSON.

The cache has random content and the shape of HICO-DET's, in a temporary folder.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch.utils.data import DataLoader, Dataset

from benchmarks.program import run_main
from benchmarks.synthetic_data import random_boxes, write_cache
from pipeline.types import Pairs
from teacher_cache.reader.cache import TeacherCache, open_cache
from teacher_cache.reader.format import TeacherOutputs

# Regions per pair on HICO-DET's test annotations, where pairs with equal union boxes share one.
REGIONS_PER_PAIR = 0.88
# In HICO-DET about eight actions are possible with an object.
NUM_POSSIBLE = 8


@dataclass(frozen=True)
class Shape:
    """Sizes of a cache.

    Attributes:
        shards: number of shards.
        images: images per shard.
        pairs: pairs per image.
        verbs: number of verbs.
        width: dimension of embeddings.
    """

    shards: int
    images: int
    pairs: int
    verbs: int
    width: int


def random_outputs(shape: Shape, rng: np.random.Generator) -> TeacherOutputs:
    """Random outputs of an image; probabilities are a softmax over some of the verbs."""
    pairs, regions = shape.pairs, max(1, round(REGIONS_PER_PAIR * shape.pairs))
    logits = rng.normal(0, 3, (pairs, shape.verbs)).astype(np.float32)
    logits[rng.random(logits.shape) > NUM_POSSIBLE / shape.verbs] = -np.inf
    logits[:, 0] = 0
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    embeddings = rng.normal(size=(regions, shape.width)).astype(np.float32)
    return TeacherOutputs(
        pairs=Pairs(
            human_boxes=random_boxes(rng, pairs),
            object_boxes=random_boxes(rng, pairs),
            object_labels=rng.integers(0, 80, pairs),
            human_scores=rng.random(pairs, dtype=np.float32),
            object_scores=rng.random(pairs, dtype=np.float32),
            sources=np.ones(pairs, dtype=np.uint8),
        ),
        probabilities=weights / weights.sum(axis=1, keepdims=True),
        region_indices=np.minimum(np.arange(pairs), regions - 1),
        region_boxes=random_boxes(rng, regions),
        embeddings=embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True),
    )


def make_cache(folder: Path, shape: Shape) -> Path:
    """Writes a finished cache; images of a shard share a few random outputs, to save time."""
    rng, shards = np.random.default_rng(0), []
    for shard in range(shape.shards):
        outputs = [random_outputs(shape, rng) for _ in range(min(16, shape.images))]
        names = (f"HICO_train2015_{shard * shape.images + i:08d}.jpg" for i in range(shape.images))
        shards.append({name: outputs[i % len(outputs)] for i, name in enumerate(names)})
    return write_cache(folder, shards, shape.verbs, {})


class Accesses(Dataset[float]):
    """Microseconds of random accesses, measured in the process that reads."""

    def __init__(self, cache: TeacherCache, ids: Sequence[str]) -> None:
        self.cache, self.ids = cache, ids

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> float:
        started = time.perf_counter_ns()
        self.cache[self.ids[index]]
        return (time.perf_counter_ns() - started) / 1e3


def read_times(folder: Path, workers: int, reads: int) -> dict[str, float]:
    """Percentiles of the microseconds to read an image, after one warm-up pass.

    Args:
        folder: folder of the cache.
        workers: number of DataLoader workers that read at once; 0 for this process.
        reads: number of reads.
    """
    cache = open_cache(folder)
    order = np.random.default_rng(1).integers(0, len(cache), reads)
    accesses = Accesses(cache, [cache.image_ids[index] for index in order])
    loader = DataLoader(
        accesses, batch_size=64, num_workers=workers, persistent_workers=workers > 0
    )
    for _ in loader:
        pass
    microseconds = np.concatenate([batch.numpy() for batch in loader])
    found = np.percentile(microseconds, (50, 90, 99)).round(1).tolist()
    return dict(zip(("p50", "p90", "p99"), found, strict=True))


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shards", type=int, default=40)
    parser.add_argument("--images", type=int, default=256, help="images per shard")
    parser.add_argument("--pairs", type=int, default=15, help="pairs per image")
    parser.add_argument("--verbs", type=int, default=117)
    parser.add_argument("--width", type=int, default=512, help="dimension of embeddings")
    parser.add_argument("--workers", type=int, nargs="*", default=[0, 1, 2, 4])
    parser.add_argument("--reads", type=int, default=5000)
    options = parser.parse_args()
    shape = Shape(options.shards, options.images, options.pairs, options.verbs, options.width)
    with tempfile.TemporaryDirectory() as folder:
        make_cache(Path(folder), shape)
        started = time.perf_counter()
        open_cache(folder)
        result = {
            "shape": vars(shape),
            "seconds_to_open": round(time.perf_counter() - started, 4),
            "microseconds_by_workers": {
                count: read_times(Path(folder), count, options.reads) for count in options.workers
            },
        }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    run_main(main)
