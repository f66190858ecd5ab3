"""Charts of training and precision-recall curves, AP by frequency, and the confusion matrix."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from evaluation.analysis.class_tables import ClassRow
from evaluation.analysis.comparison import ComparisonEntry
from evaluation.analysis.confusion import VerbConfusion
from evaluation.analysis.training_log import LEARNING_RATE, TrainingLog
from evaluation.report.charts.bars import group_rows
from evaluation.report.charts.figure import (
    PANEL_WIDTH,
    Chart,
    Panel,
    line_style,
    make_chart,
    marker_style,
)
from evaluation.report.charts.palette import LIGHT
from evaluation.tables import format_percent, join_names
from pipeline.utils.text import count_noun

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# In inches.
CURVE_HEIGHT, SCATTER_HEIGHT, LARGE_WIDTH = 2.3, 3.1, 7.2
# Curves with fewer points are not smoothed.
MIN_SMOOTHED_POINTS = 60
MAX_CONFUSED_VERBS = 24
# A matrix with more columns does not fit into a panel.
MAX_PANEL_COLUMNS = 14
# Text remains readable on the darkest cell, in light and dark mode.
MAX_CELL_ALPHA = 0.55
MIN_NUMBERED_SHARE = 0.01


class Curve(NamedTuple):
    """Precision at every recall that the detections of an entry reach, and the AP."""

    entry: ComparisonEntry
    recall: np.ndarray
    precision: np.ndarray
    ap: float | None


def training_curves(logs: Sequence[tuple[ComparisonEntry, TrainingLog]]) -> Chart:
    """Chart with a panel for each loss term and the learning rate, and a line for each run."""

    def draw(axis: Axes, name: str) -> None:
        # Drawn in reverse order, so that the line of the first entry is on top.
        for entry, log in reversed(logs):
            if name in log.series:
                _plot_series(axis, log.steps, log.series[name], entry.style)
        axis.set_title(name)
        axis.set_xlabel("step")
        axis.set_ylim(bottom=0)
        axis.locator_params(nbins=4)
        if name == LEARNING_RATE:
            axis.yaxis.set_major_formatter("{x:g}")

    names = dict.fromkeys(name for _, log in logs for name in log.series)
    panels = [Panel(CURVE_HEIGHT, partial(draw, name=name)) for name in names]
    last_values = "; ".join(
        f"{entry.title} after {count_noun(int(log.steps[-1]), 'steps')}: "
        + ", ".join(f"{name} {values[-1]:.3g}" for name, values in log.series.items())
        for entry, log in logs
    )
    title = "Training curves"
    legend = {entry.style: entry.title for entry, _ in logs}
    return make_chart("training", title, f"{title}. {last_values}.", panels, legend, "line")


def _plot_series(axis: Axes, steps: np.ndarray, values: np.ndarray, style: str) -> None:
    """Draws a line; a long series smoothed, with the raw values behind."""
    if len(values) > MIN_SMOOTHED_POINTS:
        axis.plot(steps, values, color=LIGHT[style], linewidth=0.6, alpha=0.25)
        width = len(values) // 40
        # Padded with the edge values, so that the smoothed line is as long as the raw one.
        padded = np.pad(values, width, mode="edge")
        values = np.convolve(padded, np.full(2 * width + 1, 1 / (2 * width + 1)), mode="valid")
    axis.plot(steps, values, marker="o" if len(values) == 1 else None, **line_style(style))


def precision_recall_curves(panels: Mapping[str, Sequence[Curve]]) -> Chart:
    """Chart of precision against recall.

    Args:
        panels: a curve for each entry, by the title of a panel.
    """

    def draw(axis: Axes, panel_title: str, curves: Sequence[Curve]) -> None:
        for curve in reversed(curves):
            # Precision is defined from the first detection on; the line starts at recall 0.
            recall = np.append(0 * curve.recall[:1], curve.recall)
            precision = np.append(curve.precision[:1], curve.precision)
            axis.plot(100 * recall, 100 * precision, **line_style(curve.entry.style))
        if not any(curve.recall.any() for curve in curves):
            axis.text(50, 50, "no true positives", ha="center", color=LIGHT["muted"])
        axis.set_title(panel_title, weight="normal")
        axis.set(xlim=(-2, 102), ylim=(0, 104), xlabel="recall", ylabel="precision")
        axis.set_xticks([0, 50, 100])
        axis.set_yticks([0, 50, 100])

    numbers = [
        f"{panel_title.replace(chr(10), ', ')}: "
        + ", ".join(f"{curve.entry.title} AP {format_percent(curve.ap)}" for curve in curves)
        for panel_title, curves in panels.items()
    ]
    title = "Precision against recall"
    return make_chart(
        "precision-recall",
        title,
        f"{title}. {'; '.join(numbers)}.",
        [
            Panel(CURVE_HEIGHT + 0.15, partial(draw, panel_title=panel_title, curves=curves))
            for panel_title, curves in panels.items()
        ],
        {curve.entry.style: curve.entry.title for curves in panels.values() for curve in curves},
        "line",
    )


def ap_by_frequency(rows: Sequence[ClassRow], entries: Sequence[ComparisonEntry]) -> Chart:
    """Chart of AP against the number of training instances, for the first two entries.

    Args:
        rows: at least one, with `num_training` known.
    """
    from matplotlib.ticker import LogFormatter

    groups = group_rows(rows)
    counts = [row.num_training or 0 for row in rows]

    def draw(axis: Axes, index: int, entry: ComparisonEntry) -> None:
        for group, members in reversed(groups.items()):
            points = [
                (row.num_training, 100 * value)
                for row in members
                if (value := row.values[index]) is not None
            ]
            axis.plot(*np.array(points).reshape(-1, 2).T, **marker_style(group))
        if min(counts):
            axis.set(xscale="log", xlim=(0.7 * min(counts), 1.5 * max(counts)))
        else:
            # Linear up to 1, as a logarithmic axis cannot show interactions without instances.
            axis.set_xscale("symlog", linthresh=1, linscale=0.3)
            axis.set_xlim(-0.3, 1.6 * max(*counts, 1))
        axis.xaxis.set_major_formatter("{x:,.0f}")
        # The default writes formulas. These are shown where the axis is shorter than a decade.
        axis.xaxis.set_minor_formatter(LogFormatter(minor_thresholds=(1, 0.4)))
        axis.set(ylim=(-4, 104), xlabel="training instances", ylabel="AP", title=entry.title)

    panels, means = [], []
    for index, entry in enumerate(entries[:2]):
        panels.append(Panel(SCATTER_HEIGHT, partial(draw, index=index, entry=entry)))
        for group, members in groups.items():
            values = [value for row in members if (value := row.values[index]) is not None]
            if values:
                means.append(
                    f"{entry.title}, mean of {group} {format_percent(float(np.mean(values)))}"
                )
    title = "AP against training instances"
    alt = f"{title}, from {min(counts):,} to {max(counts):,}. {'; '.join(means)}."
    legend = {group: group for group in groups}
    return make_chart("training-instances", title, alt, panels, legend, "marker")


def confusion_matrices(
    confusions: Sequence[tuple[str, VerbConfusion]], verbs: Sequence[str], unseen: Sequence[int]
) -> Chart:
    """Confusion matrices of labelled and predicted verbs, in shares of the row.

    Each has at most `MAX_CONFUSED_VERBS` verbs, those that are confused most often.

    Args:
        confusions: with the entries' titles.
        verbs: names.
        unseen: verbs to mark with a star.
    """
    columns = min(len(verbs), MAX_CONFUSED_VERBS)
    width = PANEL_WIDTH if columns <= MAX_PANEL_COLUMNS else LARGE_WIDTH
    title = "Confusion among verbs"
    return make_chart(
        "confusion",
        title,
        f"{title}. {' '.join(_describe_confusion(*item, verbs) for item in confusions)}",
        [
            Panel(width, partial(_draw_confusion, confusion, verbs, unseen, entry_title), width)
            for entry_title, confusion in confusions
        ],
        {},
    )


def _draw_confusion(
    confusion: VerbConfusion, verbs: Sequence[str], unseen: Sequence[int], title: str, axis: Axes
) -> None:
    from matplotlib.colors import LinearSegmentedColormap, to_rgba
    from matplotlib.patches import Rectangle

    shown = _select_verbs(confusion, unseen)
    names = [f"★ {verbs[verb]}" if verb in unseen else verbs[verb] for verb in shown]
    shares = confusion.row_shares[shown]
    # Rows without a detected pair are all zero, so they have no share of other verbs either.
    others = 1 - shares[:, shown].sum(axis=1) - (confusion.counts[shown].sum(axis=1) == 0)
    cells, columns = shares[:, shown], list(names)
    if len(shown) < len(verbs):
        cells, columns = np.column_stack([cells, others]), [*columns, "others"]
    ends = [to_rgba(LIGHT["accent"], alpha) for alpha in (0, MAX_CELL_ALPHA)]
    colours = LinearSegmentedColormap.from_list("shares", ends)
    axis.pcolormesh(cells, cmap=colours, vmin=0, vmax=1)
    size = 5.5 if len(columns) <= MAX_PANEL_COLUMNS else 7
    for (row, column), share in np.ndenumerate(cells):
        if row == column:
            corner = (column, row)
            axis.add_patch(Rectangle(corner, 1, 1, fill=False, edgecolor=LIGHT["muted"], lw=0.8))
        if share >= MIN_NUMBERED_SHARE:
            place = (column + 0.5, row + 0.5)
            axis.annotate(f"{100 * share:.0f}", place, ha="center", va="center", fontsize=size)
    axis.set_xticks(np.arange(len(columns)) + 0.5, columns, rotation=90)
    axis.set_yticks(np.arange(len(shown)) + 0.5, names)
    axis.tick_params(labelcolor=LIGHT["text"], labelsize=size + 1.5)
    axis.set(xlabel="predicted", ylabel="labelled", title=title, aspect="equal")
    axis.invert_yaxis()
    axis.grid(visible=False)


def _describe_confusion(title: str, confusion: VerbConfusion, verbs: Sequence[str]) -> str:
    confusions = [
        f"{verbs[labelled]} predicted as {verbs[predicted]} ({pairs:.0f})"
        for labelled, predicted, pairs in confusion.most_frequent(5)
    ]
    correct = np.trace(confusion.counts) / max(confusion.num_found, 1)
    return (
        f"{title}: of {confusion.num_found} detected labelled pairs,"
        f" {100 * correct:.0f} % have a correct verb."
        f" Most frequent confusions: {join_names(confusions) or 'none'}."
    )


def _select_verbs(confusion: VerbConfusion, unseen: Sequence[int]) -> list[int]:
    """The labelled or predicted verbs that are confused most often, the unseen ones first."""
    used = np.flatnonzero(confusion.counts.sum(axis=0) + confusion.counts.sum(axis=1))
    errors = confusion.counts - np.diag(np.diag(confusion.counts))
    num_errors = errors.sum(axis=0) + errors.sum(axis=1)
    selected = sorted(used.tolist(), key=lambda verb: (-num_errors[verb], verb))
    return sorted(selected[:MAX_CONFUSED_VERBS], key=lambda verb: (verb not in unseen, verb))
