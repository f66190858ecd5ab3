"""What a cache holds, for people."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from teacher_cache.format import SHARDS, shown
from teacher_cache.pairing import ANNOTATED
from teacher_cache.reader import open_cache


def describe(folder: Path) -> list[str]:
    """Lines for people: counts, sizes, pairs per image, the teacher's confidence, what it is from.

    Raises:
        InputError: not a finished cache, or a damaged one.
    """
    cache = open_cache(folder)
    answers = [cache[image_id] for image_id in cache.image_ids]
    sources = np.concatenate([image.pairs.sources for image in answers] or [np.zeros(0)])
    best = np.concatenate([image.probabilities.max(axis=1) for image in answers] or [np.zeros(0)])
    num_regions = sum(len(image.region_boxes) for image in answers)
    num_bytes = sum(path.stat().st_size for path in (folder / SHARDS).glob("*.h5"))
    counts = {
        "images": len(cache),
        "failed images": len(cache.failed),
        "images without pairs": sum(len(image.pairs) == 0 for image in answers),
        "shards": len(cache.manifest["shards"]),
        "megabytes": f"{num_bytes / 1e6:.1f}",
        "annotated pairs": int((sources == ANNOTATED).sum()),
        "proposed pairs": int((sources != ANNOTATED).sum()),
        "pairs per image": f"{len(sources) / max(len(cache), 1):.1f}",
        "repeated regions": f"{100 * (1 - num_regions / max(len(sources), 1)):.1f} %",
        "median confidence": f"{np.median(best):.2f}" if len(best) else "-",
    }
    return [
        str(folder),
        *(f"  {name:<22}{value}" for name, value in counts.items()),
        "made from",
        *(f"  {name:<22}{shown(value)}" for name, value in cache.manifest["parts"].items()),
    ]
