"""Training and precision-recall curves, average precision by frequency, the confusion matrix."""

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

MIN_SMOOTHED_POINTS = 60


@dataclass(frozen=True, eq=False)
class CurvePanel:
    """Precision-recall curves of one interaction.

    Attributes:
        name: of the interaction.
        reason: why it was chosen, such as "best unseen".
        unseen: no label of it in training.
        num_positives: annotated triplets.
        curves: of each entry, with its AP.
    """

    name: str
    reason: str
    unseen: bool
    num_positives: int
    curves: tuple[tuple[ComparisonEntry, PrecisionRecallCurve, float | None], ...]


def training_curves(logs: Sequence[tuple[ComparisonEntry, TrainingLog]]) -> Chart:
    """A small panel for each loss part and the learning rate, one line for each run."""
    names = list(dict.fromkeys(name for _, log in logs for name in log.series))

    def draw(figure: Figure, colours: Colours, narrow: bool) -> None:
        columns = 2 if narrow else min(4, len(names))
        rows = -(-len(names) // columns)
        figure.set_size_inches(
            NARROW_INCHES if narrow else WIDE_INCHES, rows * (1.45 if narrow else 1.75) + 0.6
        )
        axes = figure.subplots(rows, columns, squeeze=False, sharex=True).ravel()
        for axis, name in zip(axes, names, strict=False):
            # The first entry's line on top of the others.
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
        # The lowest panel of each column names the axis.
        for index in range(max(0, len(names) - columns), len(names)):
            axes[index].set_xlabel("step", color=colours["muted"], fontsize=8.5)
            axes[index].tick_params(labelbottom=True)
        entries = {one.style: one.title for one, _ in logs}
        add_legend(figure, dict(sorted(entries.items(), key=_style_order)), colours, "line", narrow)

    ends = "; ".join(
        f"{one.title} after {int(log.steps[-1])} steps: "
        + ", ".join(f"{name} {values[-1]:.3g}" for name, values in log.series.items())
        for one, log in logs
    )
    return make_chart("training", "Training curves", f"Training curves. {ends}.", draw)


def precision_recall_curves(panels: Sequence[CurvePanel]) -> Chart:
    """Precision against recall, a panel for each interaction, a line for each entry."""

    def draw(figure: Figure, colours: Colours, narrow: bool) -> None:
        columns = min(2 if narrow else 3, len(panels))
        rows = -(-len(panels) // columns)
        figure.set_size_inches(
            NARROW_INCHES if narrow else WIDE_INCHES, rows * (1.95 if narrow else 2.5) + 0.5
        )
        axes = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
        for axis, panel in zip(axes.ravel(), panels, strict=False):
            for one, curve, _ in reversed(panel.curves):
                # Precision counts from the first detection on; a line needs a start.
                recall = np.append(0.0, curve.recall)
                precision = np.append(curve.precision[:1], curve.precision)
                if len(curve.recall):
                    style = line_style(one.style, colours)
                    axis.plot(100 * recall, 100 * precision, **style)
            if all(curve.recall[-1:].sum() == 0 for _, curve, _ in panel.curves):
                axis.text(
                    50,
                    50,
                    "nobody finds any",
                    ha="center",
                    va="center",
                    fontsize=8.5,
                    color=colours["muted"],
                )
            star = "★ " if panel.unseen else ""
            name = f"{star}{panel.name}\n{panel.reason}, {panel.num_positives} labelled"
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
        entries = {one.style: one.title for panel in panels for one, _, _ in panel.curves}
        add_legend(figure, dict(sorted(entries.items(), key=_style_order)), colours, "line", narrow)

    said = "; ".join(
        f"{panel.name} ({panel.reason}): "
        + ", ".join(f"{one.title} AP {format_percent(value)}" for one, _, value in panel.curves)
        for panel in panels
    )
    title = "Precision against recall"
    return make_chart("precision-recall", title, f"{title} of {len(panels)}: {said}.", draw)


def _style_order(entry: tuple[str, str]) -> int:
    return list(LINE_STYLES).index(entry[0])


def _plot_series(
    axis: Axes, steps: np.ndarray, values: np.ndarray, role: str, colours: Colours
) -> None:
    style = line_style(role, colours)
    if len(values) <= MIN_SMOOTHED_POINTS:
        axis.plot(steps, values, marker="o" if len(values) == 1 else None, **style)
        return
    width = len(values) // 40
    # Edges are repeated, so that the smoothed line neither starts nor ends early.
    padded = np.pad(values, width, mode="edge")
    smooth = np.convolve(padded, np.full(2 * width + 1, 1 / (2 * width + 1)), mode="valid")
    axis.plot(steps, values, color=colours[role], linewidth=0.6, alpha=0.25)
    axis.plot(steps, smooth, **style)


def ap_by_frequency(rows: Sequence[ClassRow], entries: Sequence[ComparisonEntry]) -> Chart:
    """AP against the number of training instances, a panel for each of the first two entries.

    Args:
        rows: with `num_training` known.
    """
    shown = entries[:2]
    fewest = min((row.num_training or 0 for row in rows), default=0)
    most = max((row.num_training or 0 for row in rows), default=1)

    def draw(figure: Figure, colours: Colours, narrow: bool) -> None:
        columns = 1 if narrow else len(shown)
        lines = -(-len(shown) // columns)
        figure.set_size_inches(NARROW_INCHES if narrow else WIDE_INCHES, 3.1 * lines + 0.4)
        axes = figure.subplots(lines, columns, squeeze=False, sharey=True).ravel()
        for axis, (place, one) in zip(axes, enumerate(shown), strict=True):
            for kind in ("seen", "unseen"):
                own = [row for row in rows if row.unseen == (kind == "unseen")]
                points = [
                    (row.num_training, 100 * value)
                    for row in own
                    if (value := row.values[place]) is not None
                ]
                style = marker_style(kind, colours)
                axis.plot(*np.array(points).reshape(-1, 2).T, linestyle="", **style)
            if fewest:
                axis.set_xscale("log")
                axis.set_xlim(0.7 * fewest, 1.5 * most)
            else:
                # Linear up to 1, so that interactions without any instance have a place.
                axis.set_xscale("symlog", linthresh=1, linscale=0.3)
                axis.set_xlim(-0.3, 1.6 * most)
            axis.xaxis.set_major_formatter("{x:,.0f}")
            axis.set_ylim(-4, 104)
            label_axis(axis, colours, "training instances", "AP")
            set_panel_title(axis, colours, one.title)
        add_legend(figure, {kind: kind for kind in present_groups(rows)}, colours, "marker", narrow)

    alt = f"AP against training instances. {_describe_frequency(rows, shown)}"
    return make_chart("training-instances", "AP against training instances", alt, draw)


def _describe_frequency(rows: Sequence[ClassRow], entries: Sequence[ComparisonEntry]) -> str:
    """Means of the seen interactions with few and with many instances, and of the unseen ones."""
    seen = sorted(row.num_training or 0 for row in rows if not row.unseen)
    middle = seen[len(seen) // 2] if seen else 0
    groups = {
        "unseen": [row for row in rows if row.unseen],
        f"seen with fewer than {middle:,} instances": [
            row for row in rows if not row.unseen and (row.num_training or 0) < middle
        ],
        f"seen with {middle:,} or more": [
            row for row in rows if not row.unseen and (row.num_training or 0) >= middle
        ],
    }
    said = []
    for place, one in enumerate(entries):
        means = []
        for name, members in groups.items():
            values = [value for row in members if (value := row.values[place]) is not None]
            if values:
                means.append(f"{name} {format_percent(float(np.mean(values)))}")
        said.append(f"{one.title}, mean AP: {', '.join(means)}")
    return ". ".join(said) + "."


MAX_CONFUSED_VERBS = 24
# Ink stays readable on the darkest cell, in light and dark.
MAX_CELL_ALPHA = 0.55
# Matrices of at most so many columns stand side by side.
MAX_SIDE_BY_SIDE = 14


def confusion_matrix(
    confusion: VerbConfusion, verbs: Sequence[str], unseen: Sequence[int], title: str, name: str
) -> Chart:
    """Said verbs of every labelled verb as shares of the row; of many verbs, those most confused.

    Args:
        verbs: names, underscores for spaces.
        unseen: verbs to star.
        title: whose it is.
        name: the chart's.
    """
    shown = _select_verbs(confusion, unseen)
    names = [verbs[verb].replace("_", " ") for verb in shown]
    starred = [f"★ {n}" if verb in unseen else n for verb, n in zip(shown, names, strict=True)]
    shares = confusion.row_shares[shown]
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

    told = [
        f"{verbs[labelled].replace('_', ' ')} taken for {verbs[said].replace('_', ' ')}"
        f" ({pairs:.0f})"
        for labelled, said, pairs in confusion.most_frequent(5)
    ]
    right = np.trace(confusion.counts) / max(confusion.num_found, 1)
    alt = (
        f"{title}: of {confusion.num_found} labelled pairs that were found,"
        f" {100 * right:.0f} % have a right verb."
        f" Most frequent confusions: {join_names(told) if told else 'none'}."
    )
    return make_chart(name, f"Confusion among verbs: {title}", alt, draw)


def _select_verbs(confusion: VerbConfusion, unseen: Sequence[int]) -> list[int]:
    """Verbs that were labelled or said; of many, the most confused ones; the unseen ones first."""
    used = np.flatnonzero(confusion.counts.sum(axis=0) + confusion.counts.sum(axis=1))
    off = confusion.counts - np.diag(np.diag(confusion.counts))
    confused = off.sum(axis=0) + off.sum(axis=1)
    most = sorted(used.tolist(), key=lambda verb: (-confused[verb], verb))[:MAX_CONFUSED_VERBS]
    return sorted(most, key=lambda verb: (verb not in unseen, verb))
