"""Charts of training and precision-recall curves, AP by frequency, and the confusion matrix."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

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


@dataclass(frozen=True, eq=False)
class CurvePanel:
    """Precision-recall curves of one interaction.

    Attributes:
        name: of the interaction.
        rank: among the interactions, such as "best unseen".
        unseen: whether the split holds out the interaction.
        num_positives: number of annotated triplets.
        curves: entry, recall and precision, and AP, for each entry.
    """

    name: str
    rank: str
    unseen: bool
    num_positives: int
    curves: tuple[tuple[ComparisonEntry, tuple[np.ndarray, np.ndarray], float | None], ...]


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
        f"{entry.title} after {int(log.steps[-1])} steps: "
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


def precision_recall_curves(panels: Sequence[CurvePanel]) -> Chart:
    """Chart of precision against recall, with a panel for each interaction."""

    def draw(axis: Axes, panel: CurvePanel) -> None:
        for entry, (recall, precision), _ in reversed(panel.curves):
            # Precision is defined from the first detection on; the line starts at recall 0.
            x, y = np.append(0 * recall[:1], recall), np.append(precision[:1], precision)
            axis.plot(100 * x, 100 * y, **line_style(entry.style))
        if not any(recall.any() for _, (recall, _), _ in panel.curves):
            axis.text(50, 50, "no true positives", ha="center", color=LIGHT["muted"])
        star = "★ " if panel.unseen else ""
        axis.set_title(
            f"{star}{panel.name}\n{panel.rank}, {panel.num_positives} labelled", weight="normal"
        )
        axis.set(xlim=(-2, 102), ylim=(0, 104), xlabel="recall", ylabel="precision")
        axis.set_xticks([0, 50, 100])
        axis.set_yticks([0, 50, 100])

    numbers = "; ".join(
        f"{panel.name} ({panel.rank}): "
        + ", ".join(f"{entry.title} AP {format_percent(ap)}" for entry, _, ap in panel.curves)
        for panel in panels
    )
    title = "Precision against recall"
    return make_chart(
        "precision-recall",
        title,
        f"{title} of {len(panels)}: {numbers}.",
        [Panel(CURVE_HEIGHT + 0.15, partial(draw, panel=panel)) for panel in panels],
        {entry.style: entry.title for panel in panels for entry, _, _ in panel.curves},
        "line",
    )


def ap_by_frequency(rows: Sequence[ClassRow], entries: Sequence[ComparisonEntry]) -> Chart:
    """Chart of AP against the number of training instances, for the first two entries.

    Args:
        rows: at least one, with `num_training` known.
    """
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
            axis.set_xlim(-0.3, 1.6 * max(counts) + 0.1)
        axis.xaxis.set_major_formatter("{x:,.0f}")
        axis.set(ylim=(-4, 104), xlabel="training instances", ylabel="AP", title=entry.title)

    shown = entries[:2]
    panels = [
        Panel(SCATTER_HEIGHT, partial(draw, index=index, entry=entry))
        for index, entry in enumerate(shown)
    ]
    title = "AP against training instances"
    alt = f"{title}. {_describe_frequency(groups, shown)}"
    legend = {group: group for group in groups}
    return make_chart("training-instances", title, alt, panels, legend, "marker")


def _describe_frequency(
    groups: Mapping[str, Sequence[ClassRow]], entries: Sequence[ComparisonEntry]
) -> str:
    """Mean AP of the unseen interactions, and of the seen ones below and above the median count."""
    seen = groups.get("seen", ())
    counts = sorted(row.num_training or 0 for row in seen)
    median = counts[len(counts) // 2] if counts else 0
    described = {
        "unseen": groups.get("unseen", ()),
        f"seen with fewer than {median:,} instances": [
            row for row in seen if (row.num_training or 0) < median
        ],
        f"seen with {median:,} or more": [row for row in seen if (row.num_training or 0) >= median],
    }
    sentences = []
    for index, entry in enumerate(entries):
        means = []
        for name, members in described.items():
            values = [value for row in members if (value := row.values[index]) is not None]
            if values:
                means.append(f"{name} {format_percent(float(np.mean(values)))}")
        sentences.append(f"{entry.title}, mean AP: {', '.join(means)}.")
    return " ".join(sentences)


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
