"""Bars: average precision by class and action, student beside teacher, kinds of errors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from evaluation.analysis.class_tables import ActionRow, ClassRow
from evaluation.analysis.comparison import ComparisonEntry
from evaluation.analysis.error_kinds import ERROR_KINDS, ERROR_TITLES, ErrorCounts
from evaluation.report.charts.figure import (
    NARROW_INCHES,
    WIDE_INCHES,
    Chart,
    add_legend,
    bar_style,
    label_axis,
    make_chart,
    marker_style,
    set_panel_title,
)
from evaluation.report.charts.palette import Colours
from evaluation.tables import format_percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Inches: height of a bar, of the gap between actions, of a panel's title and axis, of a legend.
BAR_HEIGHT, ACTION_GAP, PANEL_MARGIN, LEGEND_HEIGHT = 0.115, 0.13, 0.62, 0.35
ACTION_ROW_HEIGHT = 0.21
MAX_ACTIONS_IN_ALT = 15


def action_bars(
    actions: Sequence[ActionRow],
    entries: Sequence[ComparisonEntry],
    name: str = "actions",
    title: str = "AP of every action",
    panel: str = "Actions",
) -> Chart:
    """AP of every action, one bar for each entry; unseen actions in a panel of their own.

    Args:
        name, title: of the chart.
        panel: title of the panel where no action is unseen.
    """

    def height(rows: Sequence[ActionRow]) -> float:
        return len(rows) * (BAR_HEIGHT * len(entries) + ACTION_GAP) + PANEL_MARGIN

    def draw(figure: Figure, colours: Colours, narrow: bool) -> None:
        for axis, rows in _action_panels(figure, actions, height, narrow, colours, panel):
            _draw_action_bars(axis, rows, entries, colours)
        add_legend(figure, {one.style: one.title for one in entries}, colours, "bar", narrow)

    return make_chart(name, title, f"{title}{_describe_actions(actions, entries)}", draw)


def teacher_student_chart(
    actions: Sequence[ActionRow], student: ComparisonEntry, teacher: ComparisonEntry
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
        for axis, rows in _action_panels(
            figure,
            actions,
            lambda rows: len(rows) * ACTION_ROW_HEIGHT + PANEL_MARGIN,
            narrow,
            colours,
        ):
            values = 100 * np.array([row.values for row in rows], dtype=np.float64)
            places = np.arange(len(rows))
            axis.hlines(places, *values.T, color=colours["muted"], linewidth=1.4, zorder=1)
            for column, one in enumerate((student, teacher)):
                style = marker_style(one.style, colours) | {"markersize": 8}
                axis.plot(values[:, column], places, linestyle="", clip_on=False, **style)
            _label_rows(axis, rows, colours)
        entries = {one.style: one.title for one in (student, teacher)}
        add_legend(figure, entries, colours, "marker", narrow)

    return make_chart("teacher", "Teacher and student", alt, draw)


def _describe_actions(actions: Sequence[ActionRow], entries: Sequence[ComparisonEntry]) -> str:
    """The numbers; of many actions only the unseen ones', the best and the worst."""
    told = list(actions)
    if len(told) > MAX_ACTIONS_IN_ALT:
        unseen = [action for action in told if action.unseen][:MAX_ACTIONS_IN_ALT]
        told = list(dict.fromkeys([*unseen, *told[:3], *told[-3:]]))
    numbers = "; ".join(
        f"{action.name}{' (unseen)' if action.unseen else ''} "
        + ", ".join(
            f"{one.title} {format_percent(value)}"
            for one, value in zip(entries, action.values, strict=True)
        )
        for action in told
    )
    which = "" if len(told) == len(actions) else f", some of {len(actions)}"
    return f"{which}: {numbers}."


def _action_panels(
    figure: Figure,
    actions: Sequence[ActionRow],
    height: Callable[[Sequence[ActionRow]], float],
    narrow: bool,
    colours: Colours,
    panel: str = "Actions",
) -> Iterator[tuple[Axes, list[ActionRow]]]:
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
    total = max((sum(column) for column in heights), default=PANEL_MARGIN)
    figure.set_size_inches(NARROW_INCHES if narrow else WIDE_INCHES, total + LEGEND_HEIGHT)
    grid = figure.add_gridspec(1, max(1, len(columns)))
    for place, column in enumerate(panels):
        ratios = [*heights[place], max(total - sum(heights[place]), 1e-3)]
        cells = grid[place].subgridspec(len(ratios), 1, height_ratios=ratios)
        for row, rows in enumerate(column):
            axis = figure.add_subplot(cells[row])
            title = "★ Unseen" if rows[0].unseen else seen
            title += " (continued)" if rows[0] is not first_of[rows[0].unseen] else ""
            set_panel_title(axis, colours, title)
            yield axis, rows


def _two_columns(actions: Sequence[ActionRow]) -> list[list[ActionRow]]:
    """Halves of about equal length, split between unseen and seen where that is near the middle."""
    middle = len(actions) // 2
    boundary = sum(action.unseen for action in actions)
    cut = boundary if 0 < boundary < len(actions) and abs(boundary - middle) <= 1 else middle
    return [half for half in (list(actions[:cut]), list(actions[cut:])) if half]


def _draw_action_bars(
    axis: Axes, rows: Sequence[ActionRow], entries: Sequence[ComparisonEntry], colours: Colours
) -> None:
    share = BAR_HEIGHT * len(entries) / (BAR_HEIGHT * len(entries) + ACTION_GAP)
    thickness = share / len(entries)
    for place, entry in enumerate(entries):
        offsets = np.arange(len(rows)) - share / 2 + thickness * (place + 0.5)
        values = [100 * (row.values[place] or 0.0) for row in rows]
        axis.barh(offsets, values, 0.84 * thickness, **bar_style(entry.style, colours))
        for offset, row in zip(offsets, rows, strict=True):
            value = row.values[place]
            if value is not None:
                axis.text(
                    100 * value + 1,
                    offset,
                    format_percent(value),
                    va="center_baseline",
                    fontsize=6.8,
                    color=colours["muted"],
                )
    _label_rows(axis, rows, colours)


def _label_rows(axis: Axes, rows: Sequence[ActionRow], colours: Colours) -> None:
    axis.set_yticks(np.arange(len(rows)), [row.name for row in rows])
    axis.set_ylim(len(rows) - 0.5, -0.5)
    axis.set_xlim(0, 108)
    axis.set_xticks([0, 25, 50, 75, 100])
    label_axis(axis, colours, across="x")
    axis.tick_params(axis="y", labelcolor=colours["text"], labelsize=9.5)


# So many interactions have a named bar each; of more, an overview and the extremes.
MAX_NAMED_CLASSES = 60
NUM_EXTREMES = 8
# Inches.
CLASS_ROW_HEIGHT, CLASS_PANEL_MARGIN, OVERVIEW_HEIGHT = 0.185, 0.55, 1.5
GROUPS = {"unseen": "unseen", "seen": "seen"}


def class_bars(rows: Sequence[ClassRow], entry: ComparisonEntry) -> Chart:
    """AP of every interaction, seen and unseen ones in different colours.

    Args:
        rows: unseen ones first, each kind by falling AP; the first of `values` is drawn.
    """
    counted = [row for row in rows if row.values[0] is not None]
    many = len(counted) > MAX_NAMED_CLASSES

    def draw(figure: Figure, colours: Colours, narrow: bool) -> None:
        groups = _extreme_groups(counted) if many else _class_columns(counted, narrow)
        columns = 1 if narrow else 2
        lines = -(-len(groups) // columns)
        most = [
            max(len(group) for _, group in groups[line * columns :][:columns])
            for line in range(lines)
        ]
        heights = [CLASS_ROW_HEIGHT * number + CLASS_PANEL_MARGIN for number in most]
        strips = [OVERVIEW_HEIGHT] * len(present_groups(counted)) if many else []
        figure.set_size_inches(
            NARROW_INCHES if narrow else WIDE_INCHES, sum(strips) + sum(heights) + 0.35
        )
        grid = figure.add_gridspec(len(strips) + lines, columns, height_ratios=[*strips, *heights])
        for line, kind in enumerate(present_groups(counted) if many else []):
            _draw_overview(figure.add_subplot(grid[line, :]), counted, kind, colours, narrow)
        for place, (title, group) in enumerate(groups):
            axis = figure.add_subplot(grid[len(strips) + place // columns, place % columns])
            _draw_named_bars(axis, group, most[place // columns], colours)
            set_panel_title(axis, colours, title)
        add_legend(figure, {kind: kind for kind in present_groups(counted)}, colours, "bar", narrow)

    return make_chart("classes", "AP of every interaction", _describe_classes(counted, entry), draw)


def present_groups(rows: Sequence[ClassRow]) -> list[str]:
    there = {row.unseen for row in rows}
    return [kind for kind in GROUPS if (kind == "unseen") in there]


def _class_columns(rows: Sequence[ClassRow], narrow: bool) -> list[tuple[str, list[ClassRow]]]:
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


def _extreme_groups(rows: Sequence[ClassRow]) -> list[tuple[str, list[ClassRow]]]:
    groups = []
    for kind in present_groups(rows):
        own = [row for row in rows if row.unseen == (kind == "unseen")]
        star = "★ " if kind == "unseen" else ""
        number = min(NUM_EXTREMES, len(own) // 2)
        groups += [
            (f"{star}Best {kind}", own[: len(own) - number][:NUM_EXTREMES]),
            (f"{star}Worst {kind}", own[len(own) - number :]),
        ]
    return [group for group in groups if group[1]]


def _draw_overview(
    axis: Axes, rows: Sequence[ClassRow], kind: str, colours: Colours, narrow: bool
) -> None:
    """All AP of one kind as a falling outline."""
    own = [row for row in rows if row.unseen == (kind == "unseen")]
    values = 100 * np.array([row.values[0] for row in own], dtype=np.float64)
    style = bar_style(kind, colours)
    axis.stairs(values, np.arange(len(values) + 1), fill=True, **style)
    mean = float(values.mean())
    axis.axhline(mean, color=colours["text"], linewidth=0.9, linestyle="--")
    axis.set_xlim(0, len(values))
    axis.set_ylim(0, 102)
    label_axis(axis, colours, "interactions by falling AP", "AP")
    star = "★ " if kind == "unseen" else ""
    many = f"{len(own)} {kind}" if narrow else f"All {len(own)} {kind} interactions"
    title = f"{star}{many}, mean {mean:.1f}"
    set_panel_title(axis, colours, title, size=9.5 if narrow else 10.5)


def _draw_named_bars(axis: Axes, rows: Sequence[ClassRow], room_for: int, colours: Colours) -> None:
    places = np.arange(len(rows))
    for kind in present_groups(rows):
        mine = [place for place, row in enumerate(rows) if row.unseen == (kind == "unseen")]
        values = [100 * (rows[place].values[0] or 0.0) for place in mine]
        axis.barh(mine, values, 0.74, **bar_style(kind, colours))
    for place, row in enumerate(rows):
        value = row.values[0]
        axis.text(
            100 * (value or 0.0) + 1,
            place,
            format_percent(value),
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
    axis.tick_params(axis="y", labelcolor=colours["text"], labelsize=8.5)


def _describe_classes(rows: Sequence[ClassRow], entry: ComparisonEntry) -> str:
    said = []
    for kind in present_groups(rows):
        own = [row for row in rows if row.unseen == (kind == "unseen")]
        mean = float(np.mean([row.values[0] for row in own if row.values[0] is not None]))
        ends = f"from {own[0].name} ({format_percent(own[0].values[0])})"
        ends += f" down to {own[-1].name} ({format_percent(own[-1].values[0])})"
        said.append(f"{len(own)} {kind} interactions, mean {format_percent(mean)}, {ends}")
    return f"AP of {entry.title.lower()} by interaction: {'; '.join(said)}."


# Shares that deserve a number.
MIN_LABELLED_SHARE = 0.05


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
            NARROW_INCHES if narrow else WIDE_INCHES, 0.43 * len(rows) + (1.4 if narrow else 0.95)
        )
        axis = figure.subplots()
        places = np.arange(len(rows))
        shares = np.array([row.counts.shares for row in rows]).reshape(-1, len(ERROR_KINDS))
        left = np.zeros(len(rows))
        for kind, name in enumerate(ERROR_KINDS):
            own = 100 * shares[:, kind]
            axis.barh(places, own, 0.7, left, **bar_style(name, colours))
            least = 10 if narrow else 100 * MIN_LABELLED_SHARE
            for place in (place for place, share in enumerate(own) if share >= least):
                axis.text(
                    left[place] + own[place] / 2,
                    place,
                    f"{own[place]:.0f}",
                    ha="center",
                    va="center_baseline",
                    fontsize=8,
                    color=colours["text"],
                    in_layout=False,
                    bbox={
                        "boxstyle": "round,pad=0.18",
                        "facecolor": colours["card"],
                        "edgecolor": "none",
                    },
                )
            left += own
        axis.set_yticks(places, [_error_row_title(row) for row in rows])
        axis.set_ylim(len(rows) - 0.5, -0.5)
        axis.set_xlim(0, 100)
        label_axis(axis, colours, "% of the errors", across="x")
        axis.tick_params(axis="y", labelcolor=colours["text"], labelsize=8 if narrow else 9.5)
        add_legend(
            figure, {name: ERROR_TITLES[name] for name in ERROR_KINDS}, colours, "bar", narrow
        )

    said = "; ".join(f"{row.title}, {row.group}: {_describe_errors(row.counts)}" for row in rows)
    return make_chart("errors", "Kinds of errors", f"Kinds of errors. {said}.", draw)


def _error_row_title(row: ErrorRow) -> str:
    group = "★ unseen" if row.group == "unseen" else row.group
    total = row.counts.num_wrong + row.counts.num_correct
    return f"{row.title}, {group}\n{row.counts.num_wrong:,} of {total:,} wrong"


def _describe_errors(counts: ErrorCounts) -> str:
    if not counts.num_wrong:
        return "no errors"
    return f"{counts.num_wrong} errors, " + ", ".join(
        f"{ERROR_TITLES[name]} {100 * share:.0f} %"
        for name, share in zip(ERROR_KINDS, counts.shares, strict=True)
    )
