"""Counts pairs, regions, confidences and top actions of a cache, one shard at a time."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from evaluation.report.charts.figure import check_chart_file
from pipeline.utils.files import refuse_existing, shorten_value, write_json
from pipeline.utils.progress import track
from teacher_cache.analysis.summary import (
    HISTOGRAM_BINS,
    PAIR_KINDS,
    CacheOverview,
    draw_overview,
    format_overview,
    overview_to_json,
)
from teacher_cache.reader.cache import TeacherCache, open_cache
from teacher_cache.reader.format import PAIR_OFFSETS, SHARDS


@dataclass(frozen=True)
class InspectConfig:
    """Which cache to inspect, and which files to write.

    Attributes:
        cache: the cache folder.
        json: JSON file of the numbers; None writes none.
        figure: file of a figure; None writes none.
        overwrite: whether existing files may be replaced.
    """

    cache: Path
    json: Path | None = None
    figure: Path | None = None
    overwrite: bool = False


def inspect_cache(config: InspectConfig) -> CacheOverview:
    """Prints the statistics of a cache, and writes them to the files of `config`.

    Raises:
        InputError: the cache is unfinished or damaged, or a file exists.
    """
    if config.json is not None:
        refuse_existing(config.json, config.overwrite)
    if config.figure is not None:
        check_chart_file(config.figure, config.overwrite)
    overview = compute_overview(open_cache(config.cache))
    if config.json is not None:
        write_json(config.json, overview_to_json(overview))
    if config.figure is not None:
        draw_overview(config.figure, overview)
    for line in format_overview(overview):
        print(line)
    return overview


def compute_overview(cache: TeacherCache) -> CacheOverview:
    """Counts pairs, regions, confidences and top actions of all shards.

    Raises:
        InputError: a shard is missing or damaged.
    """
    vocabulary = cache.vocabulary
    top_actions = np.zeros((vocabulary.num_objects, vocabulary.num_verbs), dtype=np.int64)
    confidence = np.zeros((len(PAIR_KINDS), HISTOGRAM_BINS), dtype=np.int64)
    by_source = np.zeros(len(PAIR_KINDS), dtype=np.int64)
    pairs_per_image = np.zeros(1, dtype=np.int64)
    num_regions = raw_bytes = file_bytes = 0
    shards = range(cache.num_shards)
    for shard in track(shards, len(shards), "Counting", "shards", brief=True):
        arrays = cache.shard_arrays(shard)
        sources = np.minimum(arrays["pairs/source"], 1)
        by_source += np.bincount(sources, minlength=len(PAIR_KINDS))
        shard_histogram = np.bincount(np.diff(arrays[PAIR_OFFSETS]))
        pairs_per_image = _add_histograms(pairs_per_image, shard_histogram)
        num_regions += cache.shard_layout(shard).num_regions
        raw_bytes += sum(array.nbytes for array in arrays.values())
        name = cache.manifest["shards"][shard]["name"]
        file_bytes += (cache.path / SHARDS / name).stat().st_size
        probabilities = arrays["pairs/action_probabilities"]
        # Non-negative float16 numbers are ordered like their bits, and numpy compares integers
        # many times faster.
        best = probabilities.view(np.uint16).argmax(axis=1)
        top = probabilities[np.arange(len(best)), best].astype(np.float64)
        # All probabilities are 0 for an object without interactions other than `no_interaction`.
        has_action = top > 0
        np.add.at(top_actions, (arrays["pairs/object_label"][has_action], best[has_action]), 1)
        bins = np.minimum((top * HISTOGRAM_BINS).astype(np.int64), HISTOGRAM_BINS - 1)[has_action]
        np.add.at(confidence, (sources[has_action], bins), 1)
    counts = {
        "images": len(cache),
        "failed images": len(cache.failed),
        "images without pairs": int(pairs_per_image[0]),
        "shards": len(shards),
        "annotated pairs": int(by_source[0]),
        "proposed pairs": int(by_source[1]),
        "regions": num_regions,
    }
    return CacheOverview(
        title=cache.path.resolve().name,
        counts=counts,
        file_bytes=file_bytes,
        raw_bytes=raw_bytes,
        pairs_per_image=pairs_per_image,
        confidence=dict(zip(PAIR_KINDS, confidence, strict=True)),
        top_actions=top_actions,
        objects=tuple(name.replace("_", " ") for name in vocabulary.objects),
        verbs=tuple(name.replace("_", " ") for name in vocabulary.verbs),
        parts={name: shorten_value(value) for name, value in cache.manifest["parts"].items()},
    )


def _add_histograms(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """The sum of two histograms, which may have different lengths."""
    total = np.zeros(max(len(first), len(second)), dtype=np.int64)
    total[: len(first)] += first
    total[: len(second)] += second
    return total
