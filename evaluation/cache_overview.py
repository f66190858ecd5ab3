"""What a teacher cache holds, as numbers, as lines for a terminal and as JSON."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from evaluation.wording import percent

# The share of a pair's best action falls into so many equal bins of [0, 1].
BINS = 1000
KINDS = ("annotated", "proposed")
SHOWN_ACTIONS = 3


@dataclass(frozen=True, eq=False)
class CacheOverview:
    """Counts over all images of a cache.

    Attributes:
        title: for people.
        counts: images, pairs and the like by name.
        file_bytes, raw_bytes: of the shards' files, and of the numbers in them.
        pairs_per_image: (N,) int64, how many images have 0, 1, 2, ... pairs.
        confidence: by kind of pairs, (`BINS`,) int64: how many pairs have this probability of their
            best action; pairs without any action are left out.
        top_actions: (O, V) int64, how often a verb is the best action with an object.
        objects, verbs: names for people.
        parts: what the cache was made from, by name.
    """

    title: str
    counts: dict[str, int]
    file_bytes: int
    raw_bytes: int
    pairs_per_image: np.ndarray
    confidence: dict[str, np.ndarray]
    top_actions: np.ndarray
    objects: tuple[str, ...]
    verbs: tuple[str, ...]
    parts: dict[str, str]

    @property
    def num_pairs(self) -> int:
        return sum(self.counts[f"{kind} pairs"] for kind in KINDS)

    @property
    def repeated_unions(self) -> float | None:
        """Share of pairs whose region another pair of the image needed before."""
        return 1 - self.counts["regions"] / self.num_pairs if self.num_pairs else None

    def top_shares(self, label: int) -> list[tuple[str, float]]:
        """Best actions with an object and their shares, the most frequent first."""
        counts = self.top_actions[label]
        order = np.argsort(-counts, kind="stable")
        total = max(int(counts.sum()), 1)
        return [(self.verbs[verb], counts[verb] / total) for verb in order if counts[verb]]

    def frequent_objects(self) -> list[int]:
        """Objects that have pairs, the most frequent first."""
        totals = self.top_actions.sum(axis=1)
        return [int(label) for label in np.argsort(-totals, kind="stable") if totals[label]]


def quantile(histogram: np.ndarray, share: float) -> float | None:
    """The value below which a share of the counted values lies.

    Args:
        histogram: counts of equal bins of [0, 1].
        share: in [0, 1].
    """
    total = histogram.sum()
    if not total:
        return None
    bin_index = int(np.searchsorted(np.cumsum(histogram), share * total))
    return (min(bin_index, len(histogram) - 1) + 0.5) / len(histogram)


def count_quantile(histogram: np.ndarray, share: float) -> int:
    """The count that a share of the images does not exceed; 0 without images."""
    if not histogram.sum():
        return 0
    return int(np.searchsorted(np.cumsum(histogram), share * histogram.sum()))


def overview_lines(overview: CacheOverview) -> list[str]:
    """Lines for a terminal."""
    counts, images = overview.counts, max(overview.counts["images"], 1)
    per_image = overview.pairs_per_image
    rows = {
        **{name: f"{count:,}" for name, count in counts.items()},
        "megabytes": f"{overview.file_bytes / 1e6:,.1f}",
        "bytes per raw byte": f"{overview.file_bytes / max(overview.raw_bytes, 1):.3f}",
        "pairs per image": f"{overview.num_pairs / images:.1f}, half of the images up to"
        f" {count_quantile(per_image, 0.5)}, at most {max(len(per_image) - 1, 0)}",
        "repeated unions": f"{percent(overview.repeated_unions)} %",
    }
    for kind, histogram in overview.confidence.items():
        ends = [quantile(histogram, share) for share in (0.5, 0.1, 0.9)]
        if ends[0] is not None:
            middle, low, high = (f"{end:.2f}" for end in ends)
            rows[f"confidence, {kind}"] = f"{middle} (median; 80 % from {low} to {high})"
    lines = [overview.title, *(f"  {name:<24}{value}" for name, value in rows.items())]
    labels = overview.frequent_objects()
    if labels:
        width = max(len(overview.objects[label]) for label in labels) + 2
        lines += ["best action by object", f"  {'':<{width}}{'pairs':>10}"]
        for label in labels:
            shares = overview.top_shares(label)[:SHOWN_ACTIONS]
            told = ", ".join(f"{verb} {percent(share, 0)} %" for verb, share in shares)
            total = int(overview.top_actions[label].sum())
            lines.append(f"  {overview.objects[label]:<{width}}{total:>10,}  {told}")
    lines += ["made from", *(f"  {name:<24}{value}" for name, value in overview.parts.items())]
    return lines


def overview_json(overview: CacheOverview) -> dict[str, Any]:
    """The same as JSON."""
    per_image, images = overview.pairs_per_image, overview.counts["images"]
    return {
        "counts": {name.replace(" ", "_"): count for name, count in overview.counts.items()},
        "file_bytes": overview.file_bytes,
        "raw_bytes": overview.raw_bytes,
        "pairs_per_image": {
            "mean": overview.num_pairs / images if images else None,
            "median": count_quantile(per_image, 0.5),
            "max": max(len(per_image) - 1, 0),
            "images_by_pairs": per_image.tolist(),
        },
        "repeated_unions": overview.repeated_unions,
        "confidence": {
            kind: {
                "pairs": int(histogram.sum()),
                **{f"p{share}": quantile(histogram, share / 100) for share in (10, 50, 90)},
            }
            for kind, histogram in overview.confidence.items()
        },
        "top_actions": {
            overview.objects[label]: {
                verb: int(count)
                for verb, count in zip(overview.verbs, overview.top_actions[label], strict=True)
                if count
            }
            for label in overview.frequent_objects()
        },
        "parts": overview.parts,
    }
