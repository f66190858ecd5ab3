"""Charts of experiments: mean and standard deviation over seeds, and every seed."""

from __future__ import annotations

from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Any

from benchmarks.study.records import ACCURACY
from evaluation.report.charts.figure import (
    add_legend,
    label_axis,
    marker_style,
    save_chart,
    set_panel_title,
)
from evaluation.report.charts.palette import Colours

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

GROUP_TITLES = {"unseen": "mAP of unseen classes", "seen": "mAP of seen classes"}
# Inches.
WIDTH, ROW_HEIGHT, MARGIN, CURVE_HEIGHT = 8.0, 0.42, 1.5, 4.2
# Characters per line of a title; the labels of the rows need the remaining width.
TITLE_WIDTH = 56


def draw_experiment(file: Path, measured: dict[str, Any]) -> None:
    """Draws the available results of an experiment, see `measure`, as a PNG file.

    Raises:
        InputError: matplotlib is missing.
    """
    rows = [row for row in measured["rows"] if row["mean"]]
    points = [(row, _x_position(row)) for row in rows]
    is_curve = measured["axis"] is not None and all(x is not None for _, x in points)
    count = len(measured["seeds"])
    scale = f"mAP, %: mean and spread of {count} seed{'' if count == 1 else 's'}"

    def draw(figure: Figure, colours: Colours, narrow: bool) -> None:
        figure.set_size_inches(WIDTH, CURVE_HEIGHT if is_curve else ROW_HEIGHT * len(rows) + MARGIN)
        axis = figure.add_subplot()
        set_panel_title(axis, colours, fill(measured["title"], TITLE_WIDTH))
        if is_curve:
            _draw_curve(axis, points, measured["axis"], scale, colours)
        else:
            _draw_rows(axis, rows, scale, colours)
        add_legend(figure, GROUP_TITLES, colours, "marker", narrow)

    save_chart(file, draw)


def _x_position(row: dict[str, Any]) -> float | None:
    return row["mean"].get(ACCURACY) if row["x"] is None else row["x"]


def _draw_curve(axis: Axes, points: list[Any], name: str, scale: str, colours: Colours) -> None:
    label_axis(axis, colours, name, scale)
    points = sorted(points, key=lambda point: point[1])
    for group in GROUP_TITLES:
        shown = [(row, x) for row, x in points if group in row["mean"]]
        xs = [x for _, x in shown]
        for row, x in shown:
            seeds = list(row["values"][group].values())
            _draw_seeds(axis, [x] * len(seeds), seeds, colours[group])
        axis.errorbar(
            xs,
            [row["mean"][group] for row, _ in shown],
            yerr=[row["spread"][group] for row, _ in shown],
            ecolor=colours[group],
            linewidth=1.4,
            **marker_style(group, colours),
        )
    axis.set_ylim(bottom=0)


def _draw_rows(axis: Axes, rows: list[dict[str, Any]], scale: str, colours: Colours) -> None:
    label_axis(axis, colours, scale, across="x")
    for number, row in enumerate(rows):
        for group, shift in (("unseen", -0.12), ("seen", 0.12)):
            if group not in row["mean"]:
                continue
            seeds = list(row["values"][group].values())
            _draw_seeds(axis, seeds, [number + shift] * len(seeds), colours[group])
            axis.errorbar(
                row["mean"][group],
                number + shift,
                xerr=row["spread"][group],
                ecolor=colours[group],
                linestyle="",
                **marker_style(group, colours),
            )
    axis.set_yticks(range(len(rows)), [row["label"] for row in rows])
    axis.set_ylim(len(rows) - 0.5, -0.5)
    axis.set_xlim(0, 100)


def _draw_seeds(axis: Axes, xs: list[float], ys: list[float], colour: str) -> None:
    axis.plot(xs, ys, ".", color=colour, markersize=4, alpha=0.45)
