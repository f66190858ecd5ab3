"""Bars: average precision by class and action, student beside teacher, kinds of errors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from evaluation.analysis.class_tables import Action, ClassRow
from evaluation.analysis.comparison import Contestant
from evaluation.analysis.error_kinds import ERROR_KINDS, TITLES, ErrorCounts
from evaluation.report.charts.figure import (
    NARROW,
    WIDE,
    Chart,
    bar_style,
    label_axis,
    legend,
    make_chart,
    marker_style,
    title_axis,
)
from evaluation.report.charts.palette import Colours
from evaluation.tables import percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Inches: height of a bar, of the gap between actions, of a panel's title and axis, of a legend.
BAR, GAP, VERB_ROOM, LEGEND = 0.115, 0.13, 0.62, 0.35
VERB_ROW = 0.21
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
        return len(rows) * (BAR * len(contestants) + GAP) + VERB_ROOM

    def draw(figure: Figure, colours: Colours, narrow: bool) -> None:
        for axis, rows in _panels(figure, actions, height, narrow, colours, panel):
            _bars_panel(axis, rows, contestants, colours)
        legend(figure, {one.style: one.title for one in contestants}, colours, "bar", narrow)

    return make_chart(name, title, f"{title}{_verb_description(actions, contestants)}", draw)


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
            figure, actions, lambda rows: len(rows) * VERB_ROW + VERB_ROOM, narrow, colours
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


def _verb_description(actions: Sequence[Action], contestants: Sequence[Contestant]) -> str:
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
    total = max((sum(column) for column in heights), default=VERB_ROOM)
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


# So many interactions have a named bar each; of more, an overview and the extremes.
MOST_NAMED = 60
EXTREMES = 8
# Inches.
ROW, ROOM, STRIP = 0.185, 0.55, 1.5
KINDS = {"unseen": "unseen", "seen": "seen"}


def class_bars(rows: Sequence[ClassRow], contestant: Contestant) -> Chart:
    """AP of every interaction, seen and unseen ones in different colours.

    Args:
        rows: unseen ones first, each kind by falling AP; the first of `values` is drawn.
    """
    counted = [row for row in rows if row.values[0] is not None]
    many = len(counted) > MOST_NAMED

    def draw(figure: Figure, colours: Colours, narrow: bool) -> None:
        groups = _extremes(counted) if many else _columns(counted, narrow)
        columns = 1 if narrow else 2
        lines = -(-len(groups) // columns)
        most = [
            max(len(group) for _, group in groups[line * columns :][:columns])
            for line in range(lines)
        ]
        heights = [ROW * number + ROOM for number in most]
        strips = [STRIP] * len(_kinds(counted)) if many else []
        figure.set_size_inches(NARROW if narrow else WIDE, sum(strips) + sum(heights) + 0.35)
        grid = figure.add_gridspec(len(strips) + lines, columns, height_ratios=[*strips, *heights])
        for line, kind in enumerate(_kinds(counted) if many else []):
            _strip(figure.add_subplot(grid[line, :]), counted, kind, colours, narrow)
        for place, (title, group) in enumerate(groups):
            axis = figure.add_subplot(grid[len(strips) + place // columns, place % columns])
            _named(axis, group, most[place // columns], colours)
            title_axis(axis, colours, title)
        legend(figure, {kind: kind for kind in _kinds(counted)}, colours, "bar", narrow)

    return make_chart(
        "classes", "AP of every interaction", _class_description(counted, contestant), draw
    )


def _kinds(rows: Sequence[ClassRow]) -> list[str]:
    there = {row.unseen for row in rows}
    return [kind for kind in KINDS if (kind == "unseen") in there]


def _columns(rows: Sequence[ClassRow], narrow: bool) -> list[tuple[str, list[ClassRow]]]:
    """All rows, unseen and seen ones apart; in wide windows in two columns of about one length."""
    unseen = [row for row in rows if row.unseen]
    seen = [row for row in rows if not row.unseen]
    if narrow:
        groups = [("★ Unseen", unseen), ("Seen", seen)]
    elif not unseen or not seen:
        half = -(-len(rows) // 2)
        title = "★ Unseen" if unseen else "Seen"
        groups = [(title, list(rows[:half])), (f"{title} (continued)", list(rows[half:]))]
    else:
        # Seen rows stand in both columns where the unseen ones would leave theirs half empty.
        beside = seen[: max(0, -(-len(rows) // 2) - len(unseen))]
        groups = [("★ Unseen", unseen), ("Seen", seen)]
        if beside:
            groups = [
                ("★ Unseen, then seen", [*unseen, *beside]),
                ("Seen (continued)", seen[len(beside) :]),
            ]
    return [group for group in groups if group[1]]


def _extremes(rows: Sequence[ClassRow]) -> list[tuple[str, list[ClassRow]]]:
    groups = []
    for kind in _kinds(rows):
        own = [row for row in rows if row.unseen == (kind == "unseen")]
        star = "★ " if kind == "unseen" else ""
        number = min(EXTREMES, len(own) // 2)
        groups += [
            (f"{star}Best {kind}", own[: len(own) - number][:EXTREMES]),
            (f"{star}Worst {kind}", own[len(own) - number :]),
        ]
    return [group for group in groups if group[1]]


def _strip(axis: Axes, rows: Sequence[ClassRow], kind: str, colours: Colours, narrow: bool) -> None:
    """All AP of one kind as a falling outline."""
    own = [row for row in rows if row.unseen == (kind == "unseen")]
    values = 100 * np.array([row.values[0] for row in own], dtype=np.float64)
    style = bar_style(kind, colours)
    axis.stairs(values, np.arange(len(values) + 1), fill=True, **style)
    mean = float(values.mean())
    axis.axhline(mean, color=colours["ink"], linewidth=0.9, linestyle="--")
    axis.set_xlim(0, len(values))
    axis.set_ylim(0, 102)
    label_axis(axis, colours, "interactions by falling AP", "AP")
    star = "★ " if kind == "unseen" else ""
    many = f"{len(own)} {kind}" if narrow else f"All {len(own)} {kind} interactions"
    title = f"{star}{many}, mean {mean:.1f}"
    title_axis(axis, colours, title, size=9.5 if narrow else 10.5)


def _named(axis: Axes, rows: Sequence[ClassRow], room_for: int, colours: Colours) -> None:
    places = np.arange(len(rows))
    for kind in _kinds(rows):
        mine = [place for place, row in enumerate(rows) if row.unseen == (kind == "unseen")]
        values = [100 * (rows[place].values[0] or 0.0) for place in mine]
        axis.barh(mine, values, 0.74, **bar_style(kind, colours))
    for place, row in enumerate(rows):
        value = row.values[0]
        axis.text(
            100 * (value or 0.0) + 1,
            place,
            percent(value),
            va="center_baseline",
            fontsize=6.8,
            color=colours["muted"],
        )
    names = [f"★ {row.name}" if row.unseen else row.name for row in rows]
    axis.set_yticks(places, names)
    axis.set_ylim(room_for - 0.5, -0.5)
    axis.set_xlim(0, 110)
    axis.set_xticks([0, 25, 50, 75, 100])
    label_axis(axis, colours, across="x")
    axis.tick_params(axis="y", labelcolor=colours["ink"], labelsize=8.5)


def _class_description(rows: Sequence[ClassRow], contestant: Contestant) -> str:
    said = []
    for kind in _kinds(rows):
        own = [row for row in rows if row.unseen == (kind == "unseen")]
        mean = float(np.mean([row.values[0] for row in own if row.values[0] is not None]))
        ends = f"from {own[0].name} ({percent(own[0].values[0])})"
        ends += f" down to {own[-1].name} ({percent(own[-1].values[0])})"
        said.append(f"{len(own)} {kind} interactions, mean {percent(mean)}, {ends}")
    return f"AP of {contestant.title.lower()} by interaction: {'; '.join(said)}."


# Shares that deserve a number.
LEAST_SHARE = 0.05


@dataclass(frozen=True)
class ErrorRow:
    """A bar of the errors: whose, and among which interactions ("unseen", "seen", "all")."""

    title: str
    group: str
    counts: ErrorCounts


def error_bars(rows: Sequence[ErrorRow]) -> Chart:
    """Kinds of errors as shares of all errors, one bar for each row."""

    def draw(figure: Figure, colours: Colours, narrow: bool) -> None:
        figure.set_size_inches(
            NARROW if narrow else WIDE, 0.43 * len(rows) + (1.4 if narrow else 0.95)
        )
        axis = figure.subplots()
        places = np.arange(len(rows))
        shares = np.array([row.counts.shares for row in rows]).reshape(-1, len(ERROR_KINDS))
        left = np.zeros(len(rows))
        for kind, name in enumerate(ERROR_KINDS):
            own = 100 * shares[:, kind]
            axis.barh(places, own, 0.7, left, **bar_style(name, colours))
            least = 10 if narrow else 100 * LEAST_SHARE
            for place in (place for place, share in enumerate(own) if share >= least):
                axis.text(
                    left[place] + own[place] / 2,
                    place,
                    f"{own[place]:.0f}",
                    ha="center",
                    va="center_baseline",
                    fontsize=8,
                    color=colours["ink"],
                    in_layout=False,
                    bbox={
                        "boxstyle": "round,pad=0.18",
                        "facecolor": colours["card"],
                        "edgecolor": "none",
                    },
                )
            left += own
        axis.set_yticks(places, [_row_title(row) for row in rows])
        axis.set_ylim(len(rows) - 0.5, -0.5)
        axis.set_xlim(0, 100)
        label_axis(axis, colours, "% of the errors", across="x")
        axis.tick_params(axis="y", labelcolor=colours["ink"], labelsize=8 if narrow else 9.5)
        legend(figure, {name: TITLES[name] for name in ERROR_KINDS}, colours, "bar", narrow)

    said = "; ".join(f"{row.title}, {row.group}: {_error_description(row.counts)}" for row in rows)
    return make_chart("errors", "Kinds of errors", f"Kinds of errors. {said}.", draw)


def _row_title(row: ErrorRow) -> str:
    group = "★ unseen" if row.group == "unseen" else row.group
    total = row.counts.wrong + row.counts.right
    return f"{row.title}, {group}\n{row.counts.wrong:,} of {total:,} wrong"


def _error_description(counts: ErrorCounts) -> str:
    if not counts.wrong:
        return "no errors"
    return f"{counts.wrong} errors, " + ", ".join(
        f"{TITLES[name]} {100 * share:.0f} %"
        for name, share in zip(ERROR_KINDS, counts.shares, strict=True)
    )
