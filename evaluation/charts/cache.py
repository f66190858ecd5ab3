"""What a teacher cache holds, as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from evaluation.cache_overview import KINDS, CacheOverview
from evaluation.charts.look import label_axis, title_axis, title_figure
from evaluation.charts.picture import save_picture
from evaluation.palette import BLUE, ORANGE, Colours
from evaluation.wording import percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Inches.
WIDTH, TOP, ROW, ROOM = 10.5, 2.9, 0.26, 0.7
MOST_OBJECTS, MOST_BARS, CONFIDENCE_BINS = 40, 60, 20
SHADES = (BLUE, "#56b4e9", "#a6d5f2")
# A segment shorter than this has no room for its action's name, in percent.
NAMED = 9


def draw_cache(file: Path, overview: CacheOverview) -> None:
    """Draws pairs per image, the teacher's confidence and its best actions by object."""
    labels = overview.frequent_objects()[:MOST_OBJECTS]
    bottom = ROW * max(len(labels), 1) + ROOM
    title = f"{overview.title}: {overview.counts['images']:,} images, {overview.num_pairs:,} pairs"

    def draw(figure: Figure, colours: Colours, narrow: bool) -> None:
        figure.set_size_inches(WIDTH, TOP + bottom + 0.3)
        title_figure(figure, colours, title)
        grid = figure.add_gridspec(2, 2, height_ratios=[TOP, bottom])
        _draw_pairs_per_image(figure.add_subplot(grid[0, 0]), overview, colours)
        _draw_confidence(figure.add_subplot(grid[0, 1]), overview, colours)
        _draw_actions(figure.add_subplot(grid[1, :]), overview, labels, colours)

    save_picture(file, draw)


def _draw_pairs_per_image(axis: Axes, overview: CacheOverview, colours: Colours) -> None:
    unions = percent(overview.repeated_unions)
    title_axis(axis, colours, f"Images by pairs ({unions} % of unions repeat)")
    label_axis(axis, colours, "pairs of an image", across="y")
    counts = overview.pairs_per_image
    width = -(-max(len(counts), 1) // MOST_BARS)
    padded = np.pad(counts, (0, -len(counts) % width))
    bars = padded.reshape(-1, width).sum(axis=1)
    starts = np.arange(len(bars)) * width
    axis.bar(starts, bars, 0.9 * width, align="edge" if width > 1 else "center", color=BLUE)
    axis.locator_params(integer=True)


def _draw_confidence(axis: Axes, overview: CacheOverview, colours: Colours) -> None:
    title_axis(axis, colours, "Pairs by probability of the best action, %")
    label_axis(axis, colours, across="y")
    edges = np.linspace(0, 1, CONFIDENCE_BINS + 1)
    for kind, colour, shift in zip(KINDS, (BLUE, ORANGE), (0, 0.5), strict=True):
        counts = overview.confidence[kind]
        if counts.sum():
            shares = counts.reshape(CONFIDENCE_BINS, -1).sum(axis=1) / counts.sum()
            bar = 0.45 / CONFIDENCE_BINS
            left = edges[:-1] + (0.05 + 0.9 * shift) / CONFIDENCE_BINS
            axis.bar(left, 100 * shares, bar, align="edge", color=colour, label=kind)
    axis.set_xlim(0, 1)
    if axis.get_legend_handles_labels()[0]:
        axis.legend(frameon=False, fontsize=8.5, loc="upper left", labelcolor=colours["ink"])


def _draw_actions(axis: Axes, overview: CacheOverview, labels: list[int], colours: Colours) -> None:
    title_axis(axis, colours, "Best action by object, % of its pairs")
    label_axis(axis, colours, across="x")
    for place, label in enumerate(labels):
        start = 0.0
        shares = overview.top_shares(label)
        for rank, (verb, share) in enumerate(shares[: len(SHADES)]):
            axis.barh(place, 100 * share, 0.8, start, color=SHADES[rank])
            if 100 * share >= NAMED:
                ink = "white" if rank == 0 else colours["ink"]
                axis.text(start + 1, place, verb, color=ink, fontsize=7.5, va="center_baseline")
            start += 100 * share
        rest = 100 * sum(share for _, share in shares[len(SHADES) :])
        axis.barh(place, rest, 0.8, start, color=colours["grid"])
    names = [
        f"{overview.objects[label]} ({overview.top_actions[label].sum():,})" for label in labels
    ]
    axis.set_yticks(np.arange(len(labels)), names)
    axis.set_ylim(max(len(labels), 1) - 0.4, -0.6)
    axis.set_xlim(0, 100)
