"""Statistics of a cache: pairs, regions, confidences and top actions."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from evaluation.report.charts.figure import check_chart_file
from evaluation.tables import format_percent
from pipeline.utils.files import refuse_existing, shorten_value, write_json
from pipeline.utils.progress import track
from teacher_cache.analysis.figures import CONFIDENCE_BINS, draw_overview
from teacher_cache.reader.cache import TeacherCache, open_cache
from teacher_cache.reader.format import PAIR_OFFSETS, SHARDS, displayed_parts

# Kinds of pairs in the order of `pairs/source`.
PAIR_KINDS = ("annotated", "proposed")
MAX_TABLE_ACTIONS = 3


def inspect_cache(
    cache: Path, json: Path | None = None, figure: Path | None = None, overwrite: bool = False
) -> None:
    """Prints the statistics of a cache, and writes them to a JSON file and a figure.

    Raises:
        InputError: the cache is unfinished or damaged, or a file exists.
    """
    if json is not None:
        refuse_existing(json, overwrite)
    if figure is not None:
        check_chart_file(figure, overwrite)
    opened = open_cache(cache)
    overview = compute_overview(opened)
    title = cache.resolve().name
    if opened.limit is not None:
        title += f" (built with --limit {opened.limit})"
    if json is not None:
        write_json(json, overview)
    if figure is not None:
        draw_overview(figure, title, overview)
    print(title)
    for line in format_overview(overview):
        print(line)


def compute_overview(cache: TeacherCache) -> dict[str, Any]:
    """Statistics of a cache as JSON values.

    Returns:
        `counts` of images, pairs and regions; `file_bytes` and `raw_bytes` of shards and of their
        arrays; `pairs_per_image`; `repeated_unions`, the share of pairs that have their union
        region in common with an earlier pair; `confidence`, the distribution of the probabilities
        of top actions by kind of pairs; `top_actions`, numbers of pairs by object and top action,
        most frequent first; `parts` of the fingerprint.

    Raises:
        InputError: a shard is missing or damaged.
    """
    vocabulary = cache.vocabulary
    top_actions = np.zeros((vocabulary.num_objects, vocabulary.num_verbs), dtype=np.int64)
    confidence: dict[str, list[np.ndarray]] = {kind: [] for kind in PAIR_KINDS}
    by_kind = np.zeros(len(PAIR_KINDS), dtype=np.int64)
    pairs_per_image = [np.zeros(0, dtype=np.int64)]
    num_regions = raw_bytes = file_bytes = 0
    shards = range(cache.num_shards)
    for shard in track(shards, len(shards), "Counting", "shards", brief=True):
        arrays = cache.shard_arrays(shard)
        sources = np.minimum(arrays["pairs/source"], 1)
        by_kind += np.bincount(sources, minlength=len(PAIR_KINDS))
        pairs_per_image.append(np.diff(arrays[PAIR_OFFSETS]))
        num_regions += cache.shard_layout(shard).num_regions
        raw_bytes += sum(array.nbytes for array in arrays.values())
        name = cache.manifest["shards"][shard]["name"]
        file_bytes += (cache.path / SHARDS / name).stat().st_size
        probabilities = arrays["pairs/action_probabilities"]
        # Non-negative float16 numbers are ordered like their bits, and numpy compares integers
        # many times faster.
        best = probabilities.view(np.uint16).argmax(axis=1)
        top = probabilities[np.arange(len(best)), best]
        # All probabilities are 0 for an object without interactions other than `no_interaction`.
        has_action = top > 0
        np.add.at(top_actions, (arrays["pairs/object_label"][has_action], best[has_action]), 1)
        for source, kind in enumerate(PAIR_KINDS):
            confidence[kind].append(top[has_action & (sources == source)])
    counts = np.concatenate(pairs_per_image)
    num_pairs = int(by_kind.sum())
    return {
        "counts": {
            "images": len(cache),
            "failed_images": len(cache.failed),
            "images_without_pairs": int((counts == 0).sum()),
            "shards": len(shards),
            **{f"{kind}_pairs": int(by_kind[row]) for row, kind in enumerate(PAIR_KINDS)},
            "regions": num_regions,
        },
        "file_bytes": file_bytes,
        "raw_bytes": raw_bytes,
        "pairs_per_image": {
            "mean": num_pairs / len(counts) if len(counts) else None,
            "median": int(np.quantile(counts, 0.5, method="lower")) if len(counts) else 0,
            "max": int(counts.max(initial=0)),
            "images_by_pairs": np.bincount(counts, minlength=1).tolist(),
        },
        "repeated_unions": 1 - num_regions / num_pairs if num_pairs else None,
        "confidence": {kind: _distribution(values) for kind, values in confidence.items()},
        "top_actions": {
            vocabulary.objects[label].replace("_", " "): {
                vocabulary.verbs[verb].replace("_", " "): int(top_actions[label, verb])
                for verb in _descending(top_actions[label])
            }
            for label in _descending(top_actions.sum(axis=1))
        },
        "parts": {name: shorten_value(value) for name, value in cache.manifest["parts"].items()},
    }


def _distribution(parts: Iterable[np.ndarray]) -> dict[str, Any]:
    """Number, quantiles and histogram of probabilities."""
    values = np.concatenate([np.zeros(0), *parts])
    quantiles: list[float | None] = [None] * 3
    if len(values):
        quantiles = np.quantile(values, (0.1, 0.5, 0.9)).tolist()
    return {
        "pairs": len(values),
        **dict(zip(("p10", "p50", "p90"), quantiles, strict=True)),
        "histogram": np.histogram(values, CONFIDENCE_BINS, (0, 1))[0].tolist(),
    }


def _descending(counts: np.ndarray) -> list[int]:
    """Indices of the counts above 0, highest first."""
    return [int(index) for index in np.argsort(-counts, kind="stable") if counts[index]]


def format_overview(overview: dict[str, Any]) -> list[str]:
    """Lines of a text table of a cache's statistics."""
    per_image = overview["pairs_per_image"]
    rows = {
        **{name.replace("_", " "): f"{count:,}" for name, count in overview["counts"].items()},
        "megabytes": f"{overview['file_bytes'] / 1e6:,.1f}",
        "bytes per raw byte": f"{overview['file_bytes'] / max(overview['raw_bytes'], 1):.3f}",
        "pairs per image": f"{per_image['mean'] or 0:.1f}, half of the images up to"
        f" {per_image['median']}, at most {per_image['max']}",
        "repeated unions": f"{format_percent(overview['repeated_unions'])} %",
    }
    for kind, values in overview["confidence"].items():
        if values["pairs"]:
            rows[f"confidence, {kind}"] = (
                f"{values['p50']:.2f} (median; 80 % from {values['p10']:.2f}"
                f" to {values['p90']:.2f})"
            )
    lines = [f"  {name:<24}{value}" for name, value in rows.items()]
    top_actions = overview["top_actions"]
    if top_actions:
        width = max(map(len, top_actions)) + 2
        lines += ["best action by object", f"  {'':<{width}}{'pairs':>10}"]
        for name, counts in top_actions.items():
            total = sum(counts.values())
            actions = ", ".join(
                f"{verb} {format_percent(count / total, 0)} %"
                for verb, count in list(counts.items())[:MAX_TABLE_ACTIONS]
            )
            lines.append(f"  {name:<{width}}{total:>10,}  {actions}")
    parts = [f"  {name:<24}{value}" for name, value in displayed_parts(overview["parts"]).items()]
    return [*lines, "made from", *parts]
