"""Charts of lines: training curves, and precision against recall."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from evaluation.charts.canvas import Chart, make_chart
from evaluation.charts.look import (
    NARROW,
    WIDE,
    label_axis,
    legend,
    line_style,
    name_axis,
)
from evaluation.contestants import Contestant
from evaluation.palette import LINES, Colours
from evaluation.precision_recall import Curve
from evaluation.training_log import LEARNING_RATE, TrainingLog
from evaluation.wording import percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SMOOTHED_POINTS = 60


@dataclass(frozen=True, eq=False)
class CurvePanel:
    """Precision-recall curves of one interaction.

    Attributes:
        name: of the interaction.
        place: why it was chosen, such as "best unseen".
        unseen: no label of it in training.
        positives: annotated triplets.
        curves: of each contestant, with its AP.
    """

    name: str
    place: str
    unseen: bool
    positives: int
    curves: tuple[tuple[Contestant, Curve, float | None], ...]


def training_curves(logs: Sequence[tuple[Contestant, TrainingLog]]) -> Chart:
    """A small panel for each loss part and the learning rate, one line for each run."""
    names = list(dict.fromkeys(name for _, log in logs for name in log.series))

    def draw(figure: Figure, colours: Colours, narrow: bool) -> None:
        columns = 2 if narrow else min(4, len(names))
        rows = -(-len(names) // columns)
        figure.set_size_inches(NARROW if narrow else WIDE, rows * (1.45 if narrow else 1.75) + 0.6)
        axes = figure.subplots(rows, columns, squeeze=False, sharex=True).ravel()
        for axis, name in zip(axes, names, strict=False):
            # The first contestant's line on top of the others.
            for contestant, log in reversed(logs):
                if name in log.series:
                    _curve(axis, log.steps, log.series[name], contestant.style, colours)
            name_axis(axis, colours, name, 9)
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
        legend(figure, dict(sorted(entries.items(), key=_order)), colours, "line", narrow)

    ends = "; ".join(
        f"{one.title} after {int(log.steps[-1])} steps: "
        + ", ".join(f"{name} {values[-1]:.3g}" for name, values in log.series.items())
        for one, log in logs
    )
    return make_chart("training", "Training curves", f"Training curves. {ends}.", draw)


def precision_recall_curves(panels: Sequence[CurvePanel]) -> Chart:
    """Precision against recall, a panel for each interaction, a line for each contestant."""

    def draw(figure: Figure, colours: Colours, narrow: bool) -> None:
        columns = min(2 if narrow else 3, len(panels))
        rows = -(-len(panels) // columns)
        figure.set_size_inches(NARROW if narrow else WIDE, rows * (1.95 if narrow else 2.5) + 0.5)
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
            name = f"{star}{panel.name}\n{panel.place}, {panel.positives} labelled"
            name_axis(axis, colours, name, 8.5 if narrow else 9.5)
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
        legend(figure, dict(sorted(entries.items(), key=_order)), colours, "line", narrow)

    said = "; ".join(
        f"{panel.name} ({panel.place}): "
        + ", ".join(f"{one.title} AP {percent(value)}" for one, _, value in panel.curves)
        for panel in panels
    )
    title = "Precision against recall"
    return make_chart("precision-recall", title, f"{title} of {len(panels)}: {said}.", draw)


def _order(entry: tuple[str, str]) -> int:
    return list(LINES).index(entry[0])


def _curve(axis: Axes, steps: np.ndarray, values: np.ndarray, role: str, colours: Colours) -> None:
    style = line_style(role, colours)
    if len(values) <= SMOOTHED_POINTS:
        axis.plot(steps, values, marker="o" if len(values) == 1 else None, **style)
        return
    width = len(values) // 40
    # Edges are repeated, so that the smoothed line neither starts nor ends early.
    padded = np.pad(values, width, mode="edge")
    smooth = np.convolve(padded, np.full(2 * width + 1, 1 / (2 * width + 1)), mode="valid")
    axis.plot(steps, values, color=colours[role], linewidth=0.6, alpha=0.25)
    axis.plot(steps, smooth, **style)
