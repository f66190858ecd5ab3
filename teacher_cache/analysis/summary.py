"""Formats cache statistics and teacher scores as text tables, JSON and figures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from evaluation.report.charts.figure import (
    add_panel_legend,
    label_axis,
    save_chart,
    set_figure_title,
    set_panel_title,
)
from evaluation.report.charts.palette import BLUE, GREEN, ORANGE, PURPLE, Colours
from evaluation.tables import METRIC_TITLES, format_percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Number of equal bins of [0, 1] in the histogram of top probabilities.
HISTOGRAM_BINS = 1000
PAIR_KINDS = ("annotated", "proposed")
MAX_TABLE_ACTIONS = 3


@dataclass(frozen=True, eq=False)
class CacheOverview:
    """Statistics of a cache.

    Attributes:
        title: name of the cache folder.
        counts: numbers of images, shards, pairs and regions, by title.
        file_bytes, raw_bytes: total size of the shard files, and of the arrays in them.
        pairs_per_image: (N,) int64, number of images with 0, 1, 2, ... pairs.
        confidence: (`HISTOGRAM_BINS`,) int64 histograms of pairs by the probability of their top
            action, by kind of pairs; pairs without a possible action are not counted.
        top_actions: (O, V) int64, number of pairs by object and top action.
        objects, verbs: names without underscores.
        parts: parts of the fingerprint, by name.
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
        return sum(self.counts[f"{kind} pairs"] for kind in PAIR_KINDS)

    @property
    def repeated_unions(self) -> float | None:
        """Share of pairs that have their union region in common with an earlier pair."""
        return 1 - self.counts["regions"] / self.num_pairs if self.num_pairs else None

    def top_shares(self, label: int) -> list[tuple[str, float]]:
        """Top actions of an object's pairs and their shares, most frequent first."""
        counts = self.top_actions[label]
        order = np.argsort(-counts, kind="stable")
        total = max(int(counts.sum()), 1)
        return [(self.verbs[verb], counts[verb] / total) for verb in order if counts[verb]]

    def frequent_objects(self) -> list[int]:
        """Labels of the objects that have pairs, most frequent first."""
        totals = self.top_actions.sum(axis=1)
        return [int(label) for label in np.argsort(-totals, kind="stable") if totals[label]]


def histogram_quantile(histogram: np.ndarray, share: float) -> float | None:
    """Quantile of the values that a histogram counts; None if it is empty.

    Args:
        histogram: counts of equal bins of [0, 1].
        share: share of the values below the quantile, in [0, 1].

    Returns:
        The centre of the quantile's bin.
    """
    total = histogram.sum()
    if not total:
        return None
    bin_index = int(np.searchsorted(np.cumsum(histogram), share * total))
    return (min(bin_index, len(histogram) - 1) + 0.5) / len(histogram)


def count_quantile(histogram: np.ndarray, share: float) -> int:
    """The count that a share of the images does not exceed; 0 if there are no images."""
    if not histogram.sum():
        return 0
    return int(np.searchsorted(np.cumsum(histogram), share * histogram.sum()))


def format_overview(overview: CacheOverview) -> list[str]:
    """Lines of a text table of a cache's statistics."""
    counts, images = overview.counts, max(overview.counts["images"], 1)
    per_image = overview.pairs_per_image
    rows = {
        **{name: f"{count:,}" for name, count in counts.items()},
        "megabytes": f"{overview.file_bytes / 1e6:,.1f}",
        "bytes per raw byte": f"{overview.file_bytes / max(overview.raw_bytes, 1):.3f}",
        "pairs per image": f"{overview.num_pairs / images:.1f}, half of the images up to"
        f" {count_quantile(per_image, 0.5)}, at most {max(len(per_image) - 1, 0)}",
        "repeated unions": f"{format_percent(overview.repeated_unions)} %",
    }
    for kind, histogram in overview.confidence.items():
        quantiles = [histogram_quantile(histogram, share) for share in (0.5, 0.1, 0.9)]
        if quantiles[0] is not None:
            median, low, high = (f"{value:.2f}" for value in quantiles)
            rows[f"confidence, {kind}"] = f"{median} (median; 80 % from {low} to {high})"
    lines = [overview.title, *(f"  {name:<24}{value}" for name, value in rows.items())]
    labels = overview.frequent_objects()
    if labels:
        width = max(len(overview.objects[label]) for label in labels) + 2
        lines += ["best action by object", f"  {'':<{width}}{'pairs':>10}"]
        for label in labels:
            shares = overview.top_shares(label)[:MAX_TABLE_ACTIONS]
            actions = ", ".join(f"{verb} {format_percent(share, 0)} %" for verb, share in shares)
            total = int(overview.top_actions[label].sum())
            lines.append(f"  {overview.objects[label]:<{width}}{total:>10,}  {actions}")
    lines += ["made from", *(f"  {name:<24}{value}" for name, value in overview.parts.items())]
    return lines


def overview_to_json(overview: CacheOverview) -> dict[str, Any]:
    """A cache's statistics as JSON values."""
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
                **{
                    f"p{share}": histogram_quantile(histogram, share / 100)
                    for share in (10, 50, 90)
                },
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


# Sizes of the overview in inches.
CACHE_FIGURE_WIDTH, TOP_ROW_HEIGHT, CACHE_ROW_HEIGHT, CACHE_MARGIN = 10.5, 2.9, 0.26, 0.7
MAX_OBJECTS, MAX_BARS, CONFIDENCE_BINS = 40, 60, 20
SHADES = (BLUE, "#56b4e9", "#a6d5f2")
# Minimum length in percent of a bar segment that can contain its action's name.
MIN_NAMED_PERCENT = 9


def draw_overview(file: Path, overview: CacheOverview) -> None:
    """Draws pairs per image, the teacher's confidence and its top actions by object."""
    labels = overview.frequent_objects()[:MAX_OBJECTS]
    bottom = CACHE_ROW_HEIGHT * max(len(labels), 1) + CACHE_MARGIN
    title = f"{overview.title}: {overview.counts['images']:,} images, {overview.num_pairs:,} pairs"

    def draw(figure: Figure, colours: Colours, narrow: bool) -> None:
        figure.set_size_inches(CACHE_FIGURE_WIDTH, TOP_ROW_HEIGHT + bottom + 0.3)
        set_figure_title(figure, colours, title)
        grid = figure.add_gridspec(2, 2, height_ratios=[TOP_ROW_HEIGHT, bottom])
        _draw_pairs_per_image(figure.add_subplot(grid[0, 0]), overview, colours)
        _draw_confidence(figure.add_subplot(grid[0, 1]), overview, colours)
        _draw_actions(figure.add_subplot(grid[1, :]), overview, labels, colours)

    save_chart(file, draw)


def _draw_pairs_per_image(axis: Axes, overview: CacheOverview, colours: Colours) -> None:
    unions = format_percent(overview.repeated_unions)
    set_panel_title(axis, colours, f"Images by pairs ({unions} % of unions repeat)")
    label_axis(axis, colours, "pairs of an image", across="y")
    counts = overview.pairs_per_image
    width = -(-max(len(counts), 1) // MAX_BARS)
    padded = np.pad(counts, (0, -len(counts) % width))
    bars = padded.reshape(-1, width).sum(axis=1)
    starts = np.arange(len(bars)) * width
    axis.bar(starts, bars, 0.9 * width, align="edge" if width > 1 else "center", color=BLUE)
    axis.locator_params(integer=True)


def _draw_confidence(axis: Axes, overview: CacheOverview, colours: Colours) -> None:
    set_panel_title(axis, colours, "Pairs by probability of the best action, %")
    label_axis(axis, colours, across="y")
    edges = np.linspace(0, 1, CONFIDENCE_BINS + 1)
    for kind, colour, shift in zip(PAIR_KINDS, (BLUE, ORANGE), (0, 0.5), strict=True):
        counts = overview.confidence[kind]
        if counts.sum():
            shares = counts.reshape(CONFIDENCE_BINS, -1).sum(axis=1) / counts.sum()
            bar = 0.45 / CONFIDENCE_BINS
            left = edges[:-1] + (0.05 + 0.9 * shift) / CONFIDENCE_BINS
            axis.bar(left, 100 * shares, bar, align="edge", color=colour, label=kind)
    axis.set_xlim(0, 1)
    if axis.get_legend_handles_labels()[0]:
        axis.legend(frameon=False, fontsize=8.5, loc="upper left", labelcolor=colours["text"])


def _draw_actions(axis: Axes, overview: CacheOverview, labels: list[int], colours: Colours) -> None:
    set_panel_title(axis, colours, "Best action by object, % of its pairs")
    label_axis(axis, colours, across="x")
    for row, label in enumerate(labels):
        start = 0.0
        shares = overview.top_shares(label)
        for rank, (verb, share) in enumerate(shares[: len(SHADES)]):
            axis.barh(row, 100 * share, 0.8, start, color=SHADES[rank])
            if 100 * share >= MIN_NAMED_PERCENT:
                colour = "white" if rank == 0 else colours["text"]
                axis.text(start + 1, row, verb, color=colour, fontsize=7.5, va="center_baseline")
            start += 100 * share
        rest = 100 * sum(share for _, share in shares[len(SHADES) :])
        axis.barh(row, rest, 0.8, start, color=colours["grid"])
    names = [
        f"{overview.objects[label]} ({overview.top_actions[label].sum():,})" for label in labels
    ]
    axis.set_yticks(np.arange(len(labels)), names)
    axis.set_ylim(max(len(labels), 1) - 0.4, -0.6)
    axis.set_xlim(0, 100)


ACTIONS_GROUP = "actions"
# In the order of the table. "actions" excludes `no_interaction`, which has no soft targets.
GROUP_TITLES = {**METRIC_TITLES, ACTIONS_GROUP: "Full, actions only"}


@dataclass(frozen=True)
class VerbScores:
    """Scores of a verb as fractions; None where there is nothing to measure.

    Attributes:
        name: name without underscores.
        unseen: whether all its interactions are unseen.
        num_pairs: number of annotated pairs with this label.
        accuracy: share of these pairs whose top action is one of their labels.
        recall: share of these pairs that are among the proposed ones.
        annotated, proposed: mAP over its interactions, on annotated and on proposed pairs.
    """

    name: str
    unseen: bool
    num_pairs: int
    accuracy: float | None
    recall: float | None
    annotated: float | None
    proposed: float | None


@dataclass(frozen=True)
class TeacherScores:
    """Scores of a teacher.

    Attributes:
        title: dataset, split and numbers of images and pairs.
        annotated, proposed: mAP by group of `GROUP_TITLES`, on annotated and on proposed pairs;
            None for a group without ground truth.
        rates: accuracy and recalls, by title.
        verbs: scores of all verbs except `no_interaction`.
    """

    title: str
    annotated: dict[str, float | None]
    proposed: dict[str, float | None]
    rates: dict[str, float | None]
    verbs: tuple[VerbScores, ...]

    def group_rows(self) -> list[tuple[str, float | None, float | None]]:
        """Title, mAP on annotated and mAP on proposed pairs of each group that has one of them."""
        rows = [
            (title, self.annotated.get(name), self.proposed.get(name))
            for name, title in GROUP_TITLES.items()
        ]
        return [row for row in rows if row[1] is not None or row[2] is not None]


def format_teacher_scores(scores: TeacherScores) -> list[str]:
    """Lines of a text table of a teacher's scores, in percent."""
    lines = [scores.title, "", f"{'mAP':<24}{'annotated pairs':>17}{'proposed pairs':>17}"]
    lines += [
        f"{title:<24}{format_percent(annotated):>17}{format_percent(proposed):>17}"
        for title, annotated, proposed in scores.group_rows()
    ]
    lines.append("")
    lines += [f"{title:<41}{format_percent(share):>17}" for title, share in scores.rates.items()]
    width = max([10, *(len(verb.name) + 2 for verb in scores.verbs)])
    columns = ("pairs", "top-1", "recall", "mAP annot.", "mAP prop.")
    lines += ["", f"{'verb (* unseen)':<{width + 6}}" + "".join(f"{name:>12}" for name in columns)]
    for verb in scores.verbs:
        cells = (verb.accuracy, verb.recall, verb.annotated, verb.proposed)
        name = verb.name + (" *" if verb.unseen else "")
        lines.append(
            f"{name:<{width + 6}}{verb.num_pairs:>12}"
            + "".join(f"{format_percent(cell):>12}" for cell in cells)
        )
    return lines


# Sizes of the scores' figure in inches.
FIGURE_WIDTH, ROW_HEIGHT, MARGIN = 10.5, 0.21, 1.1
# More verbs than this are drawn in two columns.
MAX_COLUMN_ROWS = 40
VERB_MARKERS = (
    ("annotated", "mAP on annotated pairs", BLUE, "o"),
    ("proposed", "mAP on proposed pairs", ORANGE, "s"),
    ("accuracy", "top-1 accuracy on annotated pairs", GREEN, "^"),
    ("recall", "annotated pairs among the proposed", PURPLE, "|"),
)


def draw_teacher_scores(file: Path, scores: TeacherScores) -> None:
    """Draws the mAP of groups as bars, and four scores of each verb as markers in a row."""
    verbs = sorted(scores.verbs, key=lambda verb: (not verb.unseen, -(verb.annotated or 0)))
    columns = [verbs]
    if len(verbs) > MAX_COLUMN_ROWS:
        half = -(-len(verbs) // 2)
        columns = [verbs[:half], verbs[half:]]
    groups = scores.group_rows()
    heights = [
        ROW_HEIGHT * 1.6 * len(groups) + MARGIN,
        ROW_HEIGHT * max(map(len, columns)) + MARGIN,
    ]

    def draw(figure: Figure, colours: Colours, narrow: bool) -> None:
        figure.set_size_inches(FIGURE_WIDTH, sum(heights) + 0.3)
        set_figure_title(figure, colours, scores.title)
        grid = figure.add_gridspec(2, 1, height_ratios=heights)
        _draw_groups(figure.add_subplot(grid[0]), groups, colours)
        cells = grid[1].subgridspec(1, len(columns))
        for column, rows in enumerate(columns):
            axis = figure.add_subplot(cells[column])
            _draw_verbs(axis, rows, "Verbs, % (★ unseen)" if column == 0 else "", colours)
            if column == len(columns) - 1:
                add_panel_legend(axis, colours, columns=4 if len(columns) == 1 else 2)

    save_chart(file, draw)


def _draw_groups(
    axis: Axes, groups: Sequence[tuple[str, float | None, float | None]], colours: Colours
) -> None:
    set_panel_title(axis, colours, "mAP, %")
    label_axis(axis, colours, across="x")
    positions = np.arange(len(groups))
    on_annotated = [annotated for _, annotated, _ in groups]
    on_proposed = [proposed for _, _, proposed in groups]
    for shift, values, colour, label in (
        (-0.2, on_annotated, BLUE, "annotated pairs"),
        (0.2, on_proposed, ORANGE, "proposed pairs"),
    ):
        axis.barh(
            positions + shift,
            [100 * (value or 0) for value in values],
            0.36,
            color=colour,
            label=label,
        )
        for position, value in zip(positions + shift, values, strict=True):
            axis.text(
                100 * (value or 0) + 1,
                position,
                format_percent(value),
                va="center_baseline",
                fontsize=7.5,
                color=colours["muted"],
            )
    axis.set_yticks(positions, [title for title, *_ in groups])
    axis.set_ylim(len(groups) - 0.4, -0.6)
    axis.set_xlim(0, 108)
    add_panel_legend(axis, colours, columns=2)


def _draw_verbs(axis: Axes, verbs: Sequence[VerbScores], title: str, colours: Colours) -> None:
    set_panel_title(axis, colours, title)
    label_axis(axis, colours)
    for name, label, colour, marker in VERB_MARKERS:
        points = [
            (100 * value, row)
            for row, verb in enumerate(verbs)
            if (value := getattr(verb, name)) is not None
        ]
        axis.plot(
            [value for value, _ in points],
            [row for _, row in points],
            linestyle="none",
            marker=marker,
            color=colour,
            # A hollow marker does not cover those below it.
            fillstyle="none" if marker == "^" else "full",
            markersize=8 if marker in "|^" else 5.5,
            markeredgewidth=1.6 if marker in "|^" else 0.5,
            label=label,
            zorder=3,
        )
    axis.set_yticks(
        np.arange(len(verbs)), [f"{'★ ' if verb.unseen else ''}{verb.name}" for verb in verbs]
    )
    axis.set_ylim(len(verbs) - 0.4, -0.6)
    axis.set_xlim(-2, 102)
