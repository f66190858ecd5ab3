"""Charts of bars and rows: AP by class and action, student and teacher, kinds of errors."""

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

# In inches, for the charts by action: height of a bar, of the gap between actions, of the row of an
# action with points, of a panel's title and axis, of the legend.
BAR_HEIGHT, ACTION_GAP, ACTION_ROW_HEIGHT = 0.115, 0.13, 0.21
PANEL_MARGIN, LEGEND_HEIGHT = 0.62, 0.35
MAX_ACTIONS_IN_ALT = 15
# With more interactions than this, only the extremes have named bars.
MAX_NAMED_CLASSES = 60
NUM_EXTREMES = 8
# In inches, for the chart by class: height of a row, of a panel's title and axis, of an overview.
CLASS_ROW_HEIGHT, CLASS_PANEL_MARGIN, OVERVIEW_HEIGHT = 0.185, 0.55, 1.5
# Smaller shares of errors have no number in their bar.
MIN_LABELLED_SHARE = 0.05


@dataclass(frozen=True)
class ErrorRow:
    """A bar of the errors.

    Attributes:
        title: of the entry.
        group: group of interactions: "unseen", "seen" or "all".
        counts: numbers of errors.
    """

    title: str
    group: str
    counts: ErrorCounts


def action_bars(
    actions: Sequence[ActionRow],
    entries: Sequence[ComparisonEntry],
    name: str = "actions",
    title: str = "AP of every action",
    panel: str = "Actions",
) -> Chart:
    """Bar chart of the AP of every action, with one bar for each entry.

    Args:
        name, title: of the chart.
        panel: title of the panel if no action is unseen; else unseen and seen actions have panels.
    """

    def height(rows: Sequence[ActionRow]) -> float:
        return len(rows) * (BAR_HEIGHT * len(entries) + ACTION_GAP) + PANEL_MARGIN

    def draw(figure: Figure, colours: Colours, narrow: bool) -> None:
        for axis, rows in _action_panels(figure, actions, height, narrow, colours, panel):
            _draw_action_bars(axis, rows, entries, colours)
        titles = {entry.style: entry.title for entry in entries}
        add_legend(figure, titles, colours, "bar", narrow)

    return make_chart(name, title, f"{title}{_describe_actions(actions, entries)}", draw)


def teacher_student_chart(
    actions: Sequence[ActionRow], student: ComparisonEntry, teacher: ComparisonEntry
) -> Chart:
    """AP of every action as two points, the student's and the teacher's, joined by a line.

    Args:
        actions: at least one; their `values` are the student's and the teacher's AP, not None.
    """
    gains = [(100 * ((row.values[0] or 0.0) - (row.values[1] or 0.0)), row.name) for row in actions]
    num_better = sum(gain > 0 for gain, _ in gains)
    largest, smallest = max(gains), min(gains)
    alt = (
        f"AP by action of {student.title} and {teacher.title.lower()}: the student is better in"
        f" {num_better} of {len(gains)}. Largest gain over the teacher: {largest[1]}"
        f" ({largest[0]:+.1f}), smallest: {smallest[1]} ({smallest[0]:+.1f})."
    )

    def draw(figure: Figure, colours: Colours, narrow: bool) -> None:
        for axis, rows in _action_panels(
            figure,
            actions,
            lambda rows: len(rows) * ACTION_ROW_HEIGHT + PANEL_MARGIN,
            narrow,
            colours,
        ):
            values = 100 * np.array([row.values for row in rows], dtype=np.float64)
            y = np.arange(len(rows))
            axis.hlines(y, *values.T, color=colours["muted"], linewidth=1.4, zorder=1)
            for column, entry in enumerate((student, teacher)):
                style = marker_style(entry.style, colours) | {"markersize": 8}
                axis.plot(values[:, column], y, linestyle="", clip_on=False, **style)
            _label_rows(axis, rows, colours)
        titles = {entry.style: entry.title for entry in (student, teacher)}
        add_legend(figure, titles, colours, "marker", narrow)

    return make_chart("teacher", "Teacher and student", alt, draw)


def _describe_actions(actions: Sequence[ActionRow], entries: Sequence[ComparisonEntry]) -> str:
    """The numbers as text; of many actions only the unseen, the best and the worst ones."""
    described = list(actions)
    if len(described) > MAX_ACTIONS_IN_ALT:
        unseen = [action for action in described if action.unseen][:MAX_ACTIONS_IN_ALT]
        described = list(dict.fromkeys([*unseen, *described[:3], *described[-3:]]))
    numbers = "; ".join(
        f"{action.name}{' (unseen)' if action.unseen else ''} "
        + ", ".join(
            f"{entry.title} {format_percent(value)}"
            for entry, value in zip(entries, action.values, strict=True)
        )
        for action in described
    )
    selection = "" if len(described) == len(actions) else f", some of {len(actions)}"
    return f"{selection}: {numbers}."


def _action_panels(
    figure: Figure,
    actions: Sequence[ActionRow],
    height: Callable[[Sequence[ActionRow]], float],
    narrow: bool,
    colours: Colours,
    panel: str = "Actions",
) -> Iterator[tuple[Axes, list[ActionRow]]]:
    """Adds panels of unseen and of seen actions, in two columns unless narrow.

    Args:
        height: height in inches of a panel with given rows.
        panel: title of the panel if no action is unseen.

    Yields:
        each panel with its rows.
    """
    seen = "Seen" if any(action.unseen for action in actions) else panel
    columns = [list(actions)] if narrow else _two_columns(actions)
    first_rows = {action.unseen: action for action in reversed(actions)}
    panels = [
        [rows for unseen in (True, False) if (rows := [r for r in column if r.unseen == unseen])]
        for column in columns
    ]
    heights = [[height(rows) for rows in column] for column in panels]
    total = max((sum(column) for column in heights), default=PANEL_MARGIN)
    figure.set_size_inches(NARROW_INCHES if narrow else WIDE_INCHES, total + LEGEND_HEIGHT)
    grid = figure.add_gridspec(1, max(1, len(columns)))
    for index, column in enumerate(panels):
        # The empty last cell fills a shorter column, so that its rows are not higher.
        ratios = [*heights[index], max(total - sum(heights[index]), 1e-3)]
        cells = grid[index].subgridspec(len(ratios), 1, height_ratios=ratios)
        for row, rows in enumerate(column):
            axis = figure.add_subplot(cells[row])
            title = "★ Unseen" if rows[0].unseen else seen
            title += " (continued)" if rows[0] is not first_rows[rows[0].unseen] else ""
            set_panel_title(axis, colours, title)
            yield axis, rows


def _two_columns(actions: Sequence[ActionRow]) -> list[list[ActionRow]]:
    """Two halves of about equal length, split between unseen and seen actions if that is near."""
    middle = len(actions) // 2
    boundary = sum(action.unseen for action in actions)
    cut = boundary if 0 < boundary < len(actions) and abs(boundary - middle) <= 1 else middle
    return [half for half in (list(actions[:cut]), list(actions[cut:])) if half]


def _draw_action_bars(
    axis: Axes, rows: Sequence[ActionRow], entries: Sequence[ComparisonEntry], colours: Colours
) -> None:
    share = BAR_HEIGHT * len(entries) / (BAR_HEIGHT * len(entries) + ACTION_GAP)
    thickness = share / len(entries)
    for index, entry in enumerate(entries):
        offsets = np.arange(len(rows)) - share / 2 + thickness * (index + 0.5)
        values = [100 * (row.values[index] or 0.0) for row in rows]
        axis.barh(offsets, values, 0.84 * thickness, **bar_style(entry.style, colours))
        for offset, row in zip(offsets, rows, strict=True):
            value = row.values[index]
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


def class_bars(rows: Sequence[ClassRow], entry: ComparisonEntry) -> Chart:
    """Bar chart of the AP of every interaction, seen and unseen ones in different colours.

    Of more than `MAX_NAMED_CLASSES` interactions, the chart has the outline of all values and named
    bars of the extremes.

    Args:
        rows: unseen ones first, each kind by falling AP; the first of `values` is drawn.
        entry: whose values these are.
    """
    rows = [row for row in rows if row.values[0] is not None]
    many = len(rows) > MAX_NAMED_CLASSES

    def draw(figure: Figure, colours: Colours, narrow: bool) -> None:
        panels = _extreme_groups(rows) if many else _class_columns(rows, narrow)
        columns = 1 if narrow else 2
        num_lines = -(-len(panels) // columns)
        max_rows = [
            max(len(members) for _, members in panels[line * columns :][:columns])
            for line in range(num_lines)
        ]
        overviews = present_groups(rows) if many else []
        heights = [OVERVIEW_HEIGHT] * len(overviews)
        heights += [CLASS_ROW_HEIGHT * number + CLASS_PANEL_MARGIN for number in max_rows]
        figure.set_size_inches(NARROW_INCHES if narrow else WIDE_INCHES, sum(heights) + 0.35)
        grid = figure.add_gridspec(len(heights), columns, height_ratios=heights)
        for line, group in enumerate(overviews):
            _draw_overview(figure.add_subplot(grid[line, :]), rows, group, colours, narrow)
        for index, (title, members) in enumerate(panels):
            line, column = divmod(index, columns)
            axis = figure.add_subplot(grid[len(overviews) + line, column])
            _draw_named_bars(axis, members, max_rows[line], colours)
            set_panel_title(axis, colours, title)
        titles = {group: group for group in present_groups(rows)}
        add_legend(figure, titles, colours, "bar", narrow)

    return make_chart("classes", "AP of every interaction", _describe_classes(rows, entry), draw)


def present_groups(rows: Sequence[ClassRow]) -> list[str]:
    """Those of the groups "unseen" and "seen" that have rows."""
    return [
        group
        for group in ("unseen", "seen")
        if any(row.unseen == (group == "unseen") for row in rows)
    ]


def _class_columns(rows: Sequence[ClassRow], narrow: bool) -> list[tuple[str, list[ClassRow]]]:
    """Titles and rows of panels of unseen and of seen rows, of about equal length unless narrow."""
    unseen = [row for row in rows if row.unseen]
    seen = [row for row in rows if not row.unseen]
    if narrow:
        panels = [("★ Unseen", unseen), ("Seen", seen)]
    elif not unseen or not seen:
        half = -(-len(rows) // 2)
        title = "★ Unseen" if unseen else "Seen"
        panels = [(title, list(rows[:half])), (f"{title} (continued)", list(rows[half:]))]
    else:
        # If there are fewer unseen rows, seen rows fill their column.
        filling = seen[: max(0, -(-len(rows) // 2) - len(unseen))]
        panels = [("★ Unseen", unseen), ("Seen", seen)]
        if filling:
            panels = [
                ("★ Unseen, then seen", [*unseen, *filling]),
                ("Seen (continued)", seen[len(filling) :]),
            ]
    return [panel for panel in panels if panel[1]]


def _extreme_groups(rows: Sequence[ClassRow]) -> list[tuple[str, list[ClassRow]]]:
    """Titles and rows of panels of the best and of the worst rows of each group."""
    panels = []
    for group in present_groups(rows):
        members = [row for row in rows if row.unseen == (group == "unseen")]
        star = "★ " if group == "unseen" else ""
        num_worst = min(NUM_EXTREMES, len(members) // 2)
        split = len(members) - num_worst
        panels += [
            (f"{star}Best {group}", members[:split][:NUM_EXTREMES]),
            (f"{star}Worst {group}", members[split:]),
        ]
    return [panel for panel in panels if panel[1]]


def _draw_overview(
    axis: Axes, rows: Sequence[ClassRow], group: str, colours: Colours, narrow: bool
) -> None:
    """Draws all AP of a group as a falling outline."""
    members = [row for row in rows if row.unseen == (group == "unseen")]
    values = 100 * np.array([row.values[0] for row in members], dtype=np.float64)
    style = bar_style(group, colours)
    axis.stairs(values, np.arange(len(values) + 1), fill=True, **style)
    mean = float(values.mean())
    axis.axhline(mean, color=colours["text"], linewidth=0.9, linestyle="--")
    axis.set_xlim(0, len(values))
    axis.set_ylim(0, 102)
    label_axis(axis, colours, "interactions by falling AP", "AP")
    star = "★ " if group == "unseen" else ""
    number = f"{len(members)} {group}" if narrow else f"All {len(members)} {group} interactions"
    title = f"{star}{number}, mean {mean:.1f}"
    set_panel_title(axis, colours, title, size=9.5 if narrow else 10.5)


def _draw_named_bars(axis: Axes, rows: Sequence[ClassRow], max_rows: int, colours: Colours) -> None:
    """Draws a bar for each row, as high as in a panel with `max_rows` rows."""
    for group in present_groups(rows):
        members = [y for y, row in enumerate(rows) if row.unseen == (group == "unseen")]
        values = [100 * (rows[y].values[0] or 0.0) for y in members]
        axis.barh(members, values, 0.74, **bar_style(group, colours))
    for y, row in enumerate(rows):
        value = row.values[0]
        axis.text(
            100 * (value or 0.0) + 1,
            y,
            format_percent(value),
            va="center_baseline",
            fontsize=6.8,
            color=colours["muted"],
        )
    names = [f"★ {row.name}" if row.unseen else row.name for row in rows]
    axis.set_yticks(np.arange(len(rows)), names)
    axis.set_ylim(max_rows - 0.5, -0.5)
    axis.set_xlim(0, 110)
    axis.set_xticks([0, 25, 50, 75, 100])
    label_axis(axis, colours, across="x")
    axis.tick_params(axis="y", labelcolor=colours["text"], labelsize=8.5)


def _describe_classes(rows: Sequence[ClassRow], entry: ComparisonEntry) -> str:
    groups = []
    for group in present_groups(rows):
        members = [row for row in rows if row.unseen == (group == "unseen")]
        mean = float(np.mean([row.values[0] for row in members if row.values[0] is not None]))
        best, worst = (
            f"{row.name} ({format_percent(row.values[0])})" for row in (members[0], members[-1])
        )
        groups.append(
            f"{len(members)} {group} interactions, mean {format_percent(mean)}, from {best} down to"
            f" {worst}"
        )
    return f"AP of {entry.title.lower()} by interaction: {'; '.join(groups)}."


def error_bars(rows: Sequence[ErrorRow]) -> Chart:
    """Chart of the kinds of errors as shares of all errors, one stacked bar for each row."""

    def draw(figure: Figure, colours: Colours, narrow: bool) -> None:
        figure.set_size_inches(
            NARROW_INCHES if narrow else WIDE_INCHES, 0.43 * len(rows) + (1.4 if narrow else 0.95)
        )
        axis = figure.subplots()
        y = np.arange(len(rows))
        shares = np.array([row.counts.shares for row in rows]).reshape(-1, len(ERROR_KINDS))
        left = np.zeros(len(rows))
        for kind, name in enumerate(ERROR_KINDS):
            width = 100 * shares[:, kind]
            axis.barh(y, width, 0.7, left, **bar_style(name, colours))
            min_width = 10 if narrow else 100 * MIN_LABELLED_SHARE
            for row in np.flatnonzero(width >= min_width).tolist():
                axis.text(
                    left[row] + width[row] / 2,
                    row,
                    f"{width[row]:.0f}",
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
            left += width
        axis.set_yticks(y, [_error_row_title(row) for row in rows])
        axis.set_ylim(len(rows) - 0.5, -0.5)
        axis.set_xlim(0, 100)
        label_axis(axis, colours, "% of the errors", across="x")
        axis.tick_params(axis="y", labelcolor=colours["text"], labelsize=8 if narrow else 9.5)
        add_legend(figure, ERROR_TITLES, colours, "bar", narrow)

    numbers = "; ".join(f"{row.title}, {row.group}: {_describe_errors(row.counts)}" for row in rows)
    return make_chart("errors", "Kinds of errors", f"Kinds of errors. {numbers}.", draw)


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
