"""Charts of training and precision-recall curves, AP by frequency, and the confusion matrix."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from evaluation.analysis.class_tables import ClassRow
from evaluation.analysis.comparison import ComparisonEntry
from evaluation.analysis.confusion import VerbConfusion
from evaluation.analysis.precision_recall import PrecisionRecallCurve
from evaluation.analysis.training_log import LEARNING_RATE, TrainingLog
from evaluation.report.charts.bars import MIN_LABELLED_SHARE, present_groups
from evaluation.report.charts.figure import (
    NARROW_INCHES,
    WIDE_INCHES,
    Chart,
    add_legend,
    label_axis,
    line_style,
    make_chart,
    marker_style,
    set_panel_title,
    set_plain_panel_title,
)
from evaluation.report.charts.palette import LINE_STYLES, Colours
from evaluation.tables import format_percent, join_names

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Curves with fewer points are not smoothed.
MIN_SMOOTHED_POINTS = 60
MAX_CONFUSED_VERBS = 24
# Text remains readable on the darkest cell, in light and dark mode.
MAX_CELL_ALPHA = 0.55
# Matrices with at most this many columns are placed side by side.
MAX_SIDE_BY_SIDE = 14


@dataclass(frozen=True, eq=False)
class CurvePanel:
    """Precision-recall curves of one interaction.

    Attributes:
        name: of the interaction.
        rank: among the interactions, such as "best unseen".
        unseen: whether the split holds out the interaction.
        num_positives: number of annotated triplets.
        curves: entry, curve and AP, for each entry.
    """

    name: str
    rank: str
    unseen: bool
    num_positives: int
    curves: tuple[tuple[ComparisonEntry, PrecisionRecallCurve, float | None], ...]


def training_curves(logs: Sequence[tuple[ComparisonEntry, TrainingLog]]) -> Chart:
    """Chart with a panel for each loss term and the learning rate, and a line for each run."""
    names = list(dict.fromkeys(name for _, log in logs for name in log.series))

    def draw(figure: Figure, colours: Colours, narrow: bool) -> None:
        columns = 2 if narrow else min(4, len(names))
        rows = -(-len(names) // columns)
        figure.set_size_inches(
            NARROW_INCHES if narrow else WIDE_INCHES, rows * (1.45 if narrow else 1.75) + 0.6
        )
        axes = figure.subplots(rows, columns, squeeze=False, sharex=True).ravel()
        for axis, name in zip(axes, names, strict=False):
            # Drawn in reverse order, so that the line of the first entry is on top.
            for entry, log in reversed(logs):
                if name in log.series:
                    _plot_series(axis, log.steps, log.series[name], entry.style, colours)
            set_plain_panel_title(axis, colours, name, 9)
            axis.set_ylim(bottom=0)
            axis.locator_params(nbins=4)
            label_axis(axis, colours)
            if name == LEARNING_RATE:
                axis.yaxis.set_major_formatter("{x:g}")
        for axis in axes[len(names) :]:
            axis.set_axis_off()
        # Only the lowest panel of each column has a label on its x axis.
        for index in range(max(0, len(names) - columns), len(names)):
            axes[index].set_xlabel("step", color=colours["muted"], fontsize=8.5)
            axes[index].tick_params(labelbottom=True)
        titles = {entry.style: entry.title for entry, _ in logs}
        add_legend(figure, dict(sorted(titles.items(), key=_style_order)), colours, "line", narrow)

    last_values = "; ".join(
        f"{entry.title} after {int(log.steps[-1])} steps: "
        + ", ".join(f"{name} {values[-1]:.3g}" for name, values in log.series.items())
        for entry, log in logs
    )
    return make_chart("training", "Training curves", f"Training curves. {last_values}.", draw)


def precision_recall_curves(panels: Sequence[CurvePanel]) -> Chart:
    """Chart of precision against recall, with a panel for each interaction."""

    def draw(figure: Figure, colours: Colours, narrow: bool) -> None:
        columns = min(2 if narrow else 3, len(panels))
        rows = -(-len(panels) // columns)
        figure.set_size_inches(
            NARROW_INCHES if narrow else WIDE_INCHES, rows * (1.95 if narrow else 2.5) + 0.5
        )
        axes = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
        for axis, panel in zip(axes.ravel(), panels, strict=False):
            for entry, curve, _ in reversed(panel.curves):
                # Precision is defined from the first detection on; the line starts at recall 0.
                recall = np.append(0.0, curve.recall)
                precision = np.append(curve.precision[:1], curve.precision)
                if len(curve.recall):
                    style = line_style(entry.style, colours)
                    axis.plot(100 * recall, 100 * precision, **style)
            if all(curve.recall[-1:].sum() == 0 for _, curve, _ in panel.curves):
                axis.text(
                    50,
                    50,
                    "no true positives",
                    ha="center",
                    va="center",
                    fontsize=8.5,
                    color=colours["muted"],
                )
            star = "★ " if panel.unseen else ""
            name = f"{star}{panel.name}\n{panel.rank}, {panel.num_positives} labelled"
            set_plain_panel_title(axis, colours, name, 8.5 if narrow else 9.5)
            axis.set_xlim(-2, 102)
            axis.set_ylim(0, 104)
            axis.set_xticks([0, 50, 100])
            axis.set_yticks([0, 50, 100])
            label_axis(axis, colours)
        for axis in axes.ravel()[len(panels) :]:
            axis.set_axis_off()
        figure.supxlabel("recall", color=colours["muted"], fontsize=8.5)
        figure.supylabel("precision", color=colours["muted"], fontsize=8.5)
        titles = {entry.style: entry.title for panel in panels for entry, _, _ in panel.curves}
        add_legend(figure, dict(sorted(titles.items(), key=_style_order)), colours, "line", narrow)

    numbers = "; ".join(
        f"{panel.name} ({panel.rank}): "
        + ", ".join(f"{entry.title} AP {format_percent(ap)}" for entry, _, ap in panel.curves)
        for panel in panels
    )
    title = "Precision against recall"
    return make_chart("precision-recall", title, f"{title} of {len(panels)}: {numbers}.", draw)


def _style_order(entry: tuple[str, str]) -> int:
    return list(LINE_STYLES).index(entry[0])


def _plot_series(
    axis: Axes, steps: np.ndarray, values: np.ndarray, name: str, colours: Colours
) -> None:
    """Draws a line in the style of `name`; long series smoothed, with the raw values behind."""
    style = line_style(name, colours)
    if len(values) <= MIN_SMOOTHED_POINTS:
        axis.plot(steps, values, marker="o" if len(values) == 1 else None, **style)
        return
    width = len(values) // 40
    # Padded with the edge values, so that the smoothed line is as long as the raw one.
    padded = np.pad(values, width, mode="edge")
    smooth = np.convolve(padded, np.full(2 * width + 1, 1 / (2 * width + 1)), mode="valid")
    axis.plot(steps, values, color=colours[name], linewidth=0.6, alpha=0.25)
    axis.plot(steps, smooth, **style)


def ap_by_frequency(rows: Sequence[ClassRow], entries: Sequence[ComparisonEntry]) -> Chart:
    """Chart of AP against the number of training instances, for the first two entries.

    Args:
        rows: with `num_training` known.
    """
    shown = entries[:2]
    min_count = min((row.num_training or 0 for row in rows), default=0)
    max_count = max((row.num_training or 0 for row in rows), default=1)

    def draw(figure: Figure, colours: Colours, narrow: bool) -> None:
        columns = 1 if narrow else len(shown)
        lines = -(-len(shown) // columns)
        figure.set_size_inches(NARROW_INCHES if narrow else WIDE_INCHES, 3.1 * lines + 0.4)
        axes = figure.subplots(lines, columns, squeeze=False, sharey=True).ravel()
        for axis, (index, entry) in zip(axes, enumerate(shown), strict=True):
            for group in ("seen", "unseen"):
                points = [
                    (row.num_training, 100 * value)
                    for row in rows
                    if row.unseen == (group == "unseen")
                    and (value := row.values[index]) is not None
                ]
                style = marker_style(group, colours)
                axis.plot(*np.array(points).reshape(-1, 2).T, linestyle="", **style)
            if min_count:
                axis.set_xscale("log")
                axis.set_xlim(0.7 * min_count, 1.5 * max_count)
            else:
                # Linear up to 1, as a logarithmic axis cannot show interactions without instances.
                axis.set_xscale("symlog", linthresh=1, linscale=0.3)
                axis.set_xlim(-0.3, 1.6 * max_count)
            axis.xaxis.set_major_formatter("{x:,.0f}")
            axis.set_ylim(-4, 104)
            label_axis(axis, colours, "training instances", "AP")
            set_panel_title(axis, colours, entry.title)
        titles = {group: group for group in present_groups(rows)}
        add_legend(figure, titles, colours, "marker", narrow)

    alt = f"AP against training instances. {_describe_frequency(rows, shown)}"
    return make_chart("training-instances", "AP against training instances", alt, draw)


def _describe_frequency(rows: Sequence[ClassRow], entries: Sequence[ComparisonEntry]) -> str:
    """Mean AP of the unseen interactions, and of the seen ones below and above the median count."""
    seen = [row for row in rows if not row.unseen]
    counts = sorted(row.num_training or 0 for row in seen)
    median = counts[len(counts) // 2] if counts else 0
    groups = {
        "unseen": [row for row in rows if row.unseen],
        f"seen with fewer than {median:,} instances": [
            row for row in seen if (row.num_training or 0) < median
        ],
        f"seen with {median:,} or more": [row for row in seen if (row.num_training or 0) >= median],
    }
    sentences = []
    for index, entry in enumerate(entries):
        means = []
        for name, members in groups.items():
            values = [value for row in members if (value := row.values[index]) is not None]
            if values:
                means.append(f"{name} {format_percent(float(np.mean(values)))}")
        sentences.append(f"{entry.title}, mean AP: {', '.join(means)}")
    return ". ".join(sentences) + "."


def confusion_matrix(
    confusion: VerbConfusion, verbs: Sequence[str], unseen: Sequence[int], title: str, name: str
) -> Chart:
    """Confusion matrix of labelled and predicted verbs, in shares of the row.

    It has at most `MAX_CONFUSED_VERBS` verbs, those that are confused most often.

    Args:
        verbs: names, with underscores for spaces.
        unseen: verbs to mark with a star.
        title: of the entry.
        name: of the chart.
    """
    names = [verb.replace("_", " ") for verb in verbs]
    shown = _select_verbs(confusion, unseen)
    starred = [f"★ {names[verb]}" if verb in unseen else names[verb] for verb in shown]
    shares = confusion.row_shares[shown]
    # Rows without a detected pair are all zero, so they have no share of other verbs either.
    others = 1 - shares[:, shown].sum(axis=1) - (confusion.counts[shown].sum(axis=1) == 0)
    cells, columns = shares[:, shown], list(starred)
    if len(shown) < len(verbs):
        cells, columns = np.column_stack([cells, others]), [*columns, "others"]

    def draw(figure: Figure, colours: Colours, narrow: bool) -> None:
        from matplotlib.patches import Rectangle

        width = (
            NARROW_INCHES
            if narrow
            else WIDE_INCHES / 2
            if len(columns) <= MAX_SIDE_BY_SIDE
            else WIDE_INCHES
        )
        side = (width - (1.0 if narrow else 1.4)) / max(1, len(columns))
        figure.set_size_inches(width, max(side, 0.16) * len(shown) + (1.2 if narrow else 1.4))
        axis = figure.subplots()
        size = float(np.clip(26 * side, 3.6, 9))
        for (row, column), share in np.ndenumerate(cells):
            corner = (column - 0.5, row - 0.5)
            if share > 0:
                axis.add_patch(
                    Rectangle(
                        corner, 1, 1, color=colours["accent"], alpha=MAX_CELL_ALPHA * share, lw=0
                    )
                )
            if row == column:
                axis.add_patch(Rectangle(corner, 1, 1, fill=False, edgecolor=colours["muted"]))
            if share >= MIN_LABELLED_SHARE / 5:
                number = f"{100 * share:.0f}"
                axis.text(
                    column,
                    row,
                    number,
                    ha="center",
                    va="center",
                    fontsize=size,
                    color=colours["text"],
                    in_layout=False,
                )
        axis.set_xticks(np.arange(len(columns)), columns, rotation=90)
        axis.set_yticks(np.arange(len(shown)), starred)
        axis.set_xlim(-0.5, len(columns) - 0.5)
        axis.set_ylim(len(shown) - 0.5, -0.5)
        label_axis(axis, colours, "predicted", "labelled")
        axis.grid(False)
        axis.tick_params(labelcolor=colours["text"], labelsize=max(size, 5.5))
        set_panel_title(axis, colours, title)

    confusions = [
        f"{names[labelled]} predicted as {names[predicted]} ({pairs:.0f})"
        for labelled, predicted, pairs in confusion.most_frequent(5)
    ]
    correct = np.trace(confusion.counts) / max(confusion.num_found, 1)
    alt = (
        f"{title}: of {confusion.num_found} detected labelled pairs,"
        f" {100 * correct:.0f} % have a correct verb."
        f" Most frequent confusions: {join_names(confusions) if confusions else 'none'}."
    )
    return make_chart(name, f"Confusion among verbs: {title}", alt, draw)


def _select_verbs(confusion: VerbConfusion, unseen: Sequence[int]) -> list[int]:
    """The labelled or predicted verbs that are confused most often, the unseen ones first."""
    used = np.flatnonzero(confusion.counts.sum(axis=0) + confusion.counts.sum(axis=1))
    errors = confusion.counts - np.diag(np.diag(confusion.counts))
    num_errors = errors.sum(axis=0) + errors.sum(axis=1)
    selected = sorted(used.tolist(), key=lambda verb: (-num_errors[verb], verb))
    return sorted(selected[:MAX_CONFUSED_VERBS], key=lambda verb: (verb not in unseen, verb))
