"""Measures reading time, memory and size of caches, also for other HDF5 storage options.

The caches have random content, in a temporary folder. Prints JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from torch.utils.data import DataLoader, Dataset

from pipeline.types import Pairs
from pipeline.utils.files import write_json
from teacher_cache.reader.cache import TeacherCache, open_cache
from teacher_cache.reader.fingerprint import compute_fingerprint
from teacher_cache.reader.format import (
    FORMAT_VERSION,
    MANIFEST,
    PAIR_OFFSETS,
    SHARDS,
    TeacherOutputs,
    shard_name,
)
from teacher_cache.writer.shard import read_shard_record, write_shard

PARTS: dict[str, Any] = {"made": "of random numbers"}
# Regions per pair on HICO-DET's test annotations, where pairs with equal union boxes share one.
REGIONS_PER_PAIR = 0.88
# Options of HDF5 datasets; files with these are read through h5py.
FILTERS: dict[str, dict[str, Any]] = {
    "contiguous": {},
    "chunks of an image": {"chunks": True},
    "chunks, lzf": {"chunks": True, "compression": "lzf"},
    "chunks, gzip 4": {"chunks": True, "compression": "gzip", "compression_opts": 4},
    "chunks, shuffle and gzip 4": {
        "chunks": True,
        "shuffle": True,
        "compression": "gzip",
        "compression_opts": 4,
    },
}


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
    # In HICO-DET about eight actions are possible with an object.
    logits[rng.random(logits.shape) > 8 / shape.verbs] = -np.inf
    logits[:, 0] = 0
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    embeddings = rng.normal(size=(regions, shape.width)).astype(np.float32)
    corners = rng.uniform(0, 300, (3, pairs, 2)).astype(np.float32)
    return TeacherOutputs(
        pairs=Pairs(
            human_boxes=np.concatenate([corners[0], corners[0] + 90], axis=1),
            object_boxes=np.concatenate([corners[1], corners[1] + 60], axis=1),
            object_labels=rng.integers(0, 80, pairs),
            human_scores=rng.random(pairs, dtype=np.float32),
            object_scores=rng.random(pairs, dtype=np.float32),
            sources=np.ones(pairs, dtype=np.uint8),
        ),
        probabilities=weights / weights.sum(axis=1, keepdims=True),
        region_indices=np.minimum(np.arange(pairs), regions - 1),
        region_boxes=np.tile(corners[2][:regions], 2),
        embeddings=embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True),
    )


def make_cache(folder: Path, shape: Shape, seed: int = 0) -> Path:
    """Writes a finished cache; images of a shard share a few random outputs, to save time."""
    rng, fingerprint = np.random.default_rng(seed), compute_fingerprint(PARTS)
    entries = []
    for shard in range(shape.shards):
        path = folder / SHARDS / shard_name(shard)
        ids = image_ids(shard, shape.images)
        outputs = [random_outputs(shape, rng) for _ in range(min(16, shape.images))]
        all_outputs = [outputs[index % len(outputs)] for index in range(shape.images)]
        write_shard(path, fingerprint, ids, all_outputs, {}, shape.verbs)
        record = read_shard_record(path, fingerprint)
        assert record is not None
        entries.append(record.to_dict())
    write_manifest(folder, entries)
    return folder


def image_ids(shard: int, count: int) -> list[str]:
    """File names in HICO-DET's form."""
    return [f"HICO_train2015_{shard * count + index:08d}.jpg" for index in range(count)]


def write_manifest(folder: Path, entries: Sequence[dict[str, Any]]) -> None:
    """Writes the manifest of a finished cache."""
    value = {"format_version": FORMAT_VERSION, "fingerprint": compute_fingerprint(PARTS)}
    write_json(folder / MANIFEST, {**value, "parts": PARTS, "failed": {}, "shards": list(entries)})


def times(work: Callable[[Any], Any], arguments: Sequence[Any]) -> np.ndarray:
    """Microseconds of every call."""
    microseconds = np.zeros(len(arguments))
    for index, argument in enumerate(arguments):
        started = time.perf_counter_ns()
        work(argument)
        microseconds[index] = (time.perf_counter_ns() - started) / 1e3
    return microseconds


def percentiles(microseconds: np.ndarray) -> dict[str, float]:
    """Percentiles of microseconds."""
    return {
        f"p{share}": round(float(np.percentile(microseconds, share)), 1) for share in (50, 90, 99)
    }


class Accesses(Dataset[float]):
    """Times of random accesses, measured in the DataLoader worker."""

    def __init__(self, cache: TeacherCache, ids: Sequence[str]) -> None:
        self.cache, self.ids = cache, ids

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> float:
        return float(times(self.cache.__getitem__, [self.ids[index]])[0])


def warm_access(folder: Path, reads: int) -> dict[str, float]:
    """Times of random access to images of shards that this process has already opened."""
    cache = open_cache(folder)
    ids = cache.image_ids
    for shard in range(cache.num_shards):
        cache.shard_arrays(shard)
    times(cache.__getitem__, ids)
    order = np.random.default_rng(1).integers(0, len(ids), reads)
    return percentiles(times(cache.__getitem__, [ids[index] for index in order]))


def with_workers(folder: Path, workers: int, reads: int) -> dict[str, float]:
    """Times of random access in several DataLoader workers at once, after one warm-up pass."""
    cache = open_cache(folder)
    order = np.random.default_rng(2).integers(0, len(cache), reads)
    ids = [cache.image_ids[index] for index in order]
    loader = DataLoader(
        Accesses(cache, ids), batch_size=64, num_workers=workers, persistent_workers=True
    )
    for _ in loader:
        pass
    started = time.perf_counter()
    microseconds = np.concatenate([batch.numpy() for batch in loader])
    rate = len(ids) / (time.perf_counter() - started)
    return {**percentiles(microseconds), "images_per_second": round(rate)}


def opening(shards: int, images: int) -> dict[str, float]:
    """Seconds to open a cache, whose manifest is read."""
    with tempfile.TemporaryDirectory() as name:
        entries = [
            {"name": shard_name(shard), "sha256": "0" * 64, "images": image_ids(shard, images)}
            for shard in range(shards)
        ]
        write_manifest(Path(name), entries)
        started = time.perf_counter()
        count = len(open_cache(name))
        return {
            "images": count,
            "manifest_megabytes": round((Path(name) / MANIFEST).stat().st_size / 1e6, 1),
            "seconds": round(time.perf_counter() - started, 3),
        }


def memory(folder: Path) -> list[dict[str, int]]:
    """Anonymous memory and open files of this process for increasing numbers of read shards."""
    cache = open_cache(folder)
    steps = np.unique(np.geomspace(1, cache.num_shards, 6).astype(int))
    found, shard = [], 0
    for step in steps.tolist():
        while shard < step:
            for image_id in cache.manifest["shards"][shard]["images"]:
                cache[image_id]
            shard += 1
        kilobytes = _own_kilobytes()
        files = len(os.listdir("/proc/self/fd"))
        found.append({"shards": step, "own_kilobytes": kilobytes, "open_files": files})
    return found


def _own_kilobytes() -> int:
    """Anonymous memory; pages of mapped files are excluded, because the system can drop them."""
    status = Path("/proc/self/status").read_text().splitlines()
    (line,) = [line for line in status if line.startswith("RssAnon")]
    return int(line.split()[1])


def storage(folder: Path, reads: int) -> dict[str, dict[str, float]]:
    """Relative size, and times of reading one image, for several storage options of a shard."""
    with tempfile.TemporaryDirectory() as name:
        return _storage(open_cache(folder), reads, Path(name) / "other.h5")


def _storage(cache: TeacherCache, reads: int, path: Path) -> dict[str, dict[str, float]]:
    arrays, found = cache.shard_arrays(0), {}
    offsets = arrays[PAIR_OFFSETS]
    raw = sum(array.nbytes for array in arrays.values())
    order = np.random.default_rng(3).integers(0, len(offsets) - 1, reads).tolist()
    for title, options in FILTERS.items():
        with h5py.File(path, "w", libver="v110") as file:
            for name, array in arrays.items():
                rows = max(1, round(len(array) / (len(offsets) - 1)))
                chunks = {"chunks": (rows, *array.shape[1:])} if "chunks" in options else {}
                file.create_dataset(name, data=array, **{**options, **chunks})
        # No chunk cache: with a thousand shards, hardly any chunk would be in it.
        with h5py.File(path, "r", locking=False, rdcc_nbytes=0) as file:
            datasets = {name: file[name] for name in arrays if name != PAIR_OFFSETS}

            def read(row: int, datasets: dict[str, Any] = datasets) -> None:
                for name, dataset in datasets.items():
                    if name.startswith("pairs"):
                        dataset[offsets[row] : offsets[row + 1]]

            microseconds = percentiles(times(read, order))
        found[title] = {"bytes_per_raw_byte": round(path.stat().st_size / raw, 3), **microseconds}
    mapped = percentiles(times(cache.__getitem__, [cache.image_ids[row] for row in order]))
    size = (cache.path / SHARDS / shard_name(0)).stat().st_size / raw
    found["format 1: contiguous and mapped"] = {"bytes_per_raw_byte": round(size, 3), **mapped}
    return found


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shards", type=int, default=40)
    parser.add_argument("--images", type=int, default=256, help="images per shard")
    parser.add_argument("--pairs", type=int, default=15, help="pairs per image")
    parser.add_argument("--verbs", type=int, default=117)
    parser.add_argument("--width", type=int, default=512, help="dimension of embeddings")
    parser.add_argument("--many-shards", type=int, default=1000)
    parser.add_argument("--workers", type=int, nargs="*", default=[1, 2, 4])
    parser.add_argument("--reads", type=int, default=5000)
    parser.add_argument("--cache", type=Path, help="an existing cache for the storage options")
    options = parser.parse_args()
    shape = Shape(options.shards, options.images, options.pairs, options.verbs, options.width)
    small = Shape(options.many_shards, 4, 5, options.verbs, 64)
    with tempfile.TemporaryDirectory() as name:
        folder = make_cache(Path(name) / "cache", shape)
        many = make_cache(Path(name) / "many", small)
        result = {
            "shape": vars(shape),
            "warm_microseconds": {
                "one process": warm_access(folder, options.reads),
                f"one process, {small.shards} shards": warm_access(many, options.reads),
                **{
                    f"{count} workers": with_workers(folder, count, options.reads)
                    for count in options.workers
                },
            },
            "opening": opening(options.many_shards, 250),
            "memory": memory(many),
            "storage": storage(options.cache or folder, min(options.reads, 1000)),
        }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
