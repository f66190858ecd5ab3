"""Charts by verb: every contestant's AP, and the student beside its teacher."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from evaluation.action_rows import Action
from evaluation.charts.canvas import Chart, make_chart
from evaluation.charts.look import (
    NARROW,
    WIDE,
    bar_style,
    label_axis,
    legend,
    marker_style,
    title_axis,
)
from evaluation.contestants import Contestant
from evaluation.palette import Colours
from evaluation.wording import percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Inches: height of a bar, of the gap between actions, of a panel's title and axis, of a legend.
BAR, GAP, ROOM, LEGEND = 0.115, 0.13, 0.62, 0.35
ROW = 0.21
MOST_SPOKEN = 15


def action_bars(
    actions: Sequence[Action],
    contestants: Sequence[Contestant],
    name: str = "actions",
    title: str = "AP of every action",
    panel: str = "Actions",
) -> Chart:
    """AP of every action, one bar for each contestant; unseen actions in a panel of their own.

    Args:
        name, title: of the chart.
        panel: title of the panel where no action is unseen.
    """

    def height(rows: Sequence[Action]) -> float:
        return len(rows) * (BAR * len(contestants) + GAP) + ROOM

    def draw(figure: Figure, colours: Colours, narrow: bool) -> None:
        for axis, rows in _panels(figure, actions, height, narrow, colours, panel):
            _bars_panel(axis, rows, contestants, colours)
        legend(figure, {one.style: one.title for one in contestants}, colours, "bar", narrow)

    return make_chart(name, title, f"{title}{_spoken(actions, contestants)}", draw)


def teacher_and_student(
    actions: Sequence[Action], student: Contestant, teacher: Contestant
) -> Chart:
    """The student's and the teacher's AP of every action, joined by a line.

    Args:
        actions: at least one; their `values` are the student's and the teacher's, none is None.
    """
    gains = [(100 * ((row.values[0] or 0.0) - (row.values[1] or 0.0)), row.name) for row in actions]
    better = [gain for gain in gains if gain[0] > 0]
    alt = (
        f"{student.title} beside {teacher.title.lower()}, AP by action: the student is ahead in"
        f" {len(better)} of {len(gains)}."
    )
    ahead, behind = max(gains), min(gains)
    alt += f" Furthest ahead: {ahead[1]} ({ahead[0]:+.1f})."
    alt += f" Least: {behind[1]} ({behind[0]:+.1f})."

    def draw(figure: Figure, colours: Colours, narrow: bool) -> None:
        for axis, rows in _panels(
            figure, actions, lambda rows: len(rows) * ROW + ROOM, narrow, colours
        ):
            values = 100 * np.array([row.values for row in rows], dtype=np.float64)
            places = np.arange(len(rows))
            axis.hlines(places, *values.T, color=colours["muted"], linewidth=1.4, zorder=1)
            for column, one in enumerate((student, teacher)):
                style = marker_style(one.style, colours) | {"markersize": 8}
                axis.plot(values[:, column], places, linestyle="", clip_on=False, **style)
            _name_rows(axis, rows, colours)
        entries = {one.style: one.title for one in (student, teacher)}
        legend(figure, entries, colours, "marker", narrow)

    return make_chart("teacher", "Teacher and student", alt, draw)


def _spoken(actions: Sequence[Action], contestants: Sequence[Contestant]) -> str:
    """The numbers; of many actions only the unseen ones', the best and the worst."""
    told = list(actions)
    if len(told) > MOST_SPOKEN:
        unseen = [action for action in told if action.unseen][:MOST_SPOKEN]
        told = list(dict.fromkeys([*unseen, *told[:3], *told[-3:]]))
    numbers = "; ".join(
        f"{action.name}{' (unseen)' if action.unseen else ''} "
        + ", ".join(
            f"{one.title} {percent(value)}"
            for one, value in zip(contestants, action.values, strict=True)
        )
        for action in told
    )
    which = "" if len(told) == len(actions) else f", some of {len(actions)}"
    return f"{which}: {numbers}."


def _panels(
    figure: Figure,
    actions: Sequence[Action],
    height: Callable[[Sequence[Action]], float],
    narrow: bool,
    colours: Colours,
    panel: str = "Actions",
) -> Iterator[tuple[Axes, list[Action]]]:
    """Panels of unseen and seen actions, in two columns where there is room; rows stay as thick
    in a shorter column.

    Args:
        height: inches that a panel with some rows takes.
        panel: title where no action is unseen.
    """
    seen = "Seen" if any(action.unseen for action in actions) else panel
    columns = [list(actions)] if narrow else _two_columns(actions)
    first_of = {action.unseen: action for action in reversed(actions)}
    panels = [
        [rows for unseen in (True, False) if (rows := [r for r in column if r.unseen == unseen])]
        for column in columns
    ]
    heights = [[height(rows) for rows in column] for column in panels]
    total = max((sum(column) for column in heights), default=ROOM)
    figure.set_size_inches(NARROW if narrow else WIDE, total + LEGEND)
    grid = figure.add_gridspec(1, max(1, len(columns)))
    for place, column in enumerate(panels):
        ratios = [*heights[place], max(total - sum(heights[place]), 1e-3)]
        cells = grid[place].subgridspec(len(ratios), 1, height_ratios=ratios)
        for row, rows in enumerate(column):
            axis = figure.add_subplot(cells[row])
            title = "★ Unseen" if rows[0].unseen else seen
            title += " (continued)" if rows[0] is not first_of[rows[0].unseen] else ""
            title_axis(axis, colours, title)
            yield axis, rows


def _two_columns(actions: Sequence[Action]) -> list[list[Action]]:
    """Halves of about equal length, split between unseen and seen where that is near the middle."""
    middle = len(actions) // 2
    boundary = sum(action.unseen for action in actions)
    cut = boundary if 0 < boundary < len(actions) and abs(boundary - middle) <= 1 else middle
    return [half for half in (list(actions[:cut]), list(actions[cut:])) if half]


def _bars_panel(
    axis: Axes, rows: Sequence[Action], contestants: Sequence[Contestant], colours: Colours
) -> None:
    share = BAR * len(contestants) / (BAR * len(contestants) + GAP)
    thickness = share / len(contestants)
    for place, contestant in enumerate(contestants):
        offsets = np.arange(len(rows)) - share / 2 + thickness * (place + 0.5)
        values = [100 * (row.values[place] or 0.0) for row in rows]
        axis.barh(offsets, values, 0.84 * thickness, **bar_style(contestant.style, colours))
        for offset, row in zip(offsets, rows, strict=True):
            value = row.values[place]
            if value is not None:
                axis.text(
                    100 * value + 1,
                    offset,
                    percent(value),
                    va="center_baseline",
                    fontsize=6.8,
                    color=colours["muted"],
                )
    _name_rows(axis, rows, colours)


def _name_rows(axis: Axes, rows: Sequence[Action], colours: Colours) -> None:
    axis.set_yticks(np.arange(len(rows)), [row.name for row in rows])
    axis.set_ylim(len(rows) - 0.5, -0.5)
    axis.set_xlim(0, 108)
    axis.set_xticks([0, 25, 50, 75, 100])
    label_axis(axis, colours, across="x")
    axis.tick_params(axis="y", labelcolor=colours["ink"], labelsize=9.5)
