"""Charts of bars and rows: AP by class and action, student and teacher, kinds of errors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import count
from typing import TYPE_CHECKING

import numpy as np

from evaluation.analysis.class_tables import ClassRow
from evaluation.analysis.comparison import ComparisonEntry
from evaluation.analysis.error_kinds import ERROR_KINDS, ERROR_TITLES, ErrorCounts
from evaluation.report.charts.figure import Chart, Panel, bar_style, make_chart, marker_style
from evaluation.report.charts.palette import LIGHT
from evaluation.tables import format_percent
from pipeline.utils.text import count_noun

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# In inches: a bar, the gap between rows of bars, a row of points, title and axis of a panel.
BAR_HEIGHT, BAR_GAP, POINT_ROW_HEIGHT, PANEL_MARGIN = 0.12, 0.075, 0.21, 0.6
# Rows are spread over at most three panels, each with at least six rows if there are enough.
MAX_PANELS, MIN_PANEL_ROWS = 3, 6
MAX_ROWS_IN_ALT = 15
# With more interactions than this, only the extremes have named bars.
MAX_NAMED_CLASSES = 60
NUM_EXTREMES = 8
# Bars of errors have no number in smaller shares, in percent.
MIN_LABELLED_SHARE = 10


def action_bars(
    actions: Sequence[ClassRow],
    entries: Sequence[ComparisonEntry],
    name: str = "actions",
    title: str = "AP of every action",
) -> Chart:
    """Bar chart of the AP of every action, with one bar for each entry.

    Args:
        name, title: of the chart.
    """
    styles = [entry.style for entry in entries]
    panels = [
        _bar_panel(panel_title, rows, styles) for panel_title, rows in split_rows(actions, title)
    ]
    legend = {entry.style: entry.title for entry in entries}
    return make_chart(name, title, _describe_actions(title, actions, entries), panels, legend)


def _describe_actions(
    title: str, actions: Sequence[ClassRow], entries: Sequence[ComparisonEntry]
) -> str:
    """The numbers as text; of many actions only the unseen, the best and the worst ones."""
    described = list(actions)
    if len(described) > MAX_ROWS_IN_ALT:
        unseen = [action for action in described if action.unseen][:MAX_ROWS_IN_ALT]
        described = list(dict.fromkeys([*unseen, *described[:3], *described[-3:]]))
        title += f", some of {len(actions)}"
    numbers = [
        f"{action.name}{' (unseen)' if action.unseen else ''} "
        + ", ".join(
            f"{entry.title} {format_percent(value)}"
            for entry, value in zip(entries, action.values, strict=True)
        )
        for action in described
    ]
    return f"{title}: {'; '.join(numbers)}."


def teacher_student_chart(
    actions: Sequence[ClassRow], student: ComparisonEntry, teacher: ComparisonEntry
) -> Chart:
    """AP of every action as two points, the student's and the teacher's, joined by a line.

    Args:
        actions: at least one; their `values` are the student's and the teacher's AP, not None.
    """
    title = "Teacher and student"
    gains = sorted(
        (100 * ((row.values[0] or 0.0) - (row.values[1] or 0.0)), row.name) for row in actions
    )
    (smallest, worst), (largest, best) = gains[0], gains[-1]
    alt = (
        f"AP by action of {student.title} and {teacher.title.lower()}: the student is better in"
        f" {sum(gain > 0 for gain, _ in gains)} of {len(gains)}. Largest gain over the teacher:"
        f" {best} ({largest:+.1f}), smallest: {worst} ({smallest:+.1f})."
    )

    def draw(axis: Axes, panel_title: str, rows: Sequence[ClassRow]) -> None:
        values = 100 * np.array([row.values for row in rows], dtype=np.float64)
        y = np.arange(len(rows))
        axis.hlines(y, *values.T, color=LIGHT["muted"], linewidth=1.4, zorder=1)
        for column, entry in enumerate((student, teacher)):
            axis.plot(values[:, column], y, clip_on=False, **marker_style(entry.style))
        _label_rows(axis, panel_title, rows)

    panels = [
        Panel(
            POINT_ROW_HEIGHT * len(rows) + PANEL_MARGIN,
            partial(draw, panel_title=panel_title, rows=rows),
        )
        for panel_title, rows in split_rows(actions, title)
    ]
    legend = {entry.style: entry.title for entry in (student, teacher)}
    return make_chart("teacher", title, alt, panels, legend, "marker")


def class_bars(rows: Sequence[ClassRow], entry: ComparisonEntry) -> Chart:
    """Bar chart of the AP of every interaction, seen and unseen ones in different colours.

    Of more than `MAX_NAMED_CLASSES` interactions, the chart has the outline of all values and named
    bars of the extremes.

    Args:
        rows: unseen ones first, each kind by falling AP; the first of `values` is drawn.
        entry: whose values these are.
    """
    title = "AP of every interaction"
    rows = [row for row in rows if row.values[0] is not None]
    groups = group_rows(rows)
    panels, alts = [], []
    if len(rows) <= MAX_NAMED_CLASSES:
        for panel_title, members in split_rows(rows, title):
            panels.append(_bar_panel(panel_title, members, [_group_of(members[0])]))
    for group, members in groups.items():
        values = 100 * np.array([row.values[0] for row in members], dtype=np.float64)
        best, worst = (
            f"{row.name} ({format_percent(row.values[0])})" for row in (members[0], members[-1])
        )
        alts.append(
            f"{count_noun(len(members), f'{group} interactions')}, mean {values.mean():.1f}, from"
            f" {best} down to {worst}"
        )
        if len(rows) > MAX_NAMED_CLASSES:
            split = len(members) - min(NUM_EXTREMES, len(members) // 2)
            star = "★ " if group == "unseen" else ""
            height = _bars_height(NUM_EXTREMES, 1)
            panels += [
                Panel(height, partial(_draw_outline, values=values, group=group)),
                _bar_panel(f"{star}Best {group}", members[:split][:NUM_EXTREMES], [group]),
                _bar_panel(f"{star}Worst {group}", members[split:], [group]),
            ]
    alt = f"AP of {entry.title.lower()} by interaction: {'; '.join(alts)}."
    return make_chart("classes", title, alt, panels, {group: group for group in groups})


def group_rows(rows: Sequence[ClassRow]) -> dict[str, list[ClassRow]]:
    """The rows of the groups "unseen" and "seen", without empty groups."""
    groups: dict[str, list[ClassRow]] = {"unseen": [], "seen": []}
    for row in rows:
        groups[_group_of(row)].append(row)
    return {group: members for group, members in groups.items() if members}


def _group_of(row: ClassRow) -> str:
    return "unseen" if row.unseen else "seen"


def split_rows(rows: Sequence[ClassRow], title: str) -> list[tuple[str, list[ClassRow]]]:
    """Titles and rows of panels of unseen and of seen rows, of about equal length.

    Args:
        title: of the panels if no row is unseen.
    """
    groups = group_rows(rows)
    for size in count(MIN_PANEL_ROWS):
        numbers = {group: -(-len(members) // size) for group, members in groups.items()}
        if sum(numbers.values()) <= MAX_PANELS:
            break
    titles = {"unseen": "★ Unseen", "seen": "Seen" if "unseen" in groups else title}
    panels = []
    for group, members in groups.items():
        size = -(-len(members) // numbers[group])
        for start in range(0, len(members), size):
            continued = " (continued)" if start else ""
            panels.append((titles[group] + continued, members[start : start + size]))
    return panels


def _bars_height(num_rows: int, num_bars: int) -> float:
    return num_rows * (BAR_HEIGHT * num_bars + BAR_GAP) + PANEL_MARGIN


def _bar_panel(title: str, rows: Sequence[ClassRow], styles: Sequence[str]) -> Panel:
    """A panel with a bar for each row and style."""

    def draw(axis: Axes) -> None:
        share = len(styles) * BAR_HEIGHT / (len(styles) * BAR_HEIGHT + BAR_GAP)
        for index, style in enumerate(styles):
            values = [row.values[index] for row in rows]
            y = np.arange(len(rows)) + share * ((index + 0.5) / len(styles) - 0.5)
            widths = [100 * (value or 0.0) for value in values]
            bars = axis.barh(y, widths, 0.9 * share / len(styles), **bar_style(style))
            labels = ["" if value is None else format_percent(value) for value in values]
            axis.bar_label(bars, labels, padding=2, fontsize=6.8, color=LIGHT["muted"])
        _label_rows(axis, title, rows)

    return Panel(_bars_height(len(rows), len(styles)), draw)


def _label_rows(axis: Axes, title: str, rows: Sequence[ClassRow]) -> None:
    axis.set_title(title)
    axis.set_yticks(range(len(rows)), [row.name for row in rows])
    axis.tick_params(axis="y", labelcolor=LIGHT["text"], labelsize=8.5)
    axis.set_ylim(len(rows) - 0.5, -0.5)
    axis.set_xlim(0, 111)
    axis.set_xticks([0, 25, 50, 75, 100])
    axis.grid(visible=False, axis="y")


def _draw_outline(axis: Axes, values: np.ndarray, group: str) -> None:
    """Draws all AP of a group as a falling outline."""
    axis.stairs(values, fill=True, **bar_style(group))
    axis.axhline(values.mean(), color=LIGHT["text"], linewidth=0.9, linestyle="--")
    axis.set(xlim=(0, len(values)), ylim=(0, 102), xlabel="interactions by falling AP", ylabel="AP")
    star = "★ " if group == "unseen" else ""
    axis.set_title(f"{star}All {len(values)} {group}, mean {values.mean():.1f}")


def error_bars(groups: Mapping[str, Sequence[tuple[str, ErrorCounts]]]) -> Chart:
    """Chart of the kinds of errors as shares of all errors, one stacked bar for each entry.

    Args:
        groups: titles and counts of the entries, by group of interactions: "unseen", "seen" or
            "all".
    """

    def draw(axis: Axes, group: str, rows: Sequence[tuple[str, ErrorCounts]]) -> None:
        left = np.zeros(len(rows))
        for kind, name in enumerate(ERROR_KINDS):
            shares = 100 * np.array([counts.shares[kind] for _, counts in rows])
            bars = axis.barh(range(len(rows)), shares, 0.7, left, **bar_style(name))
            labels = [f"{share:.0f}" if share >= MIN_LABELLED_SHARE else "" for share in shares]
            box = {"boxstyle": "round,pad=0.18", "facecolor": LIGHT["card"], "edgecolor": "none"}
            for text in axis.bar_label(bars, labels, label_type="center", fontsize=8):
                text.set_bbox(box if text.get_text() else None)
            left += shares
        titles = [
            f"{title}\n{counts.num_wrong:,} of {counts.num_wrong + counts.num_correct:,} wrong"
            for title, counts in rows
        ]
        axis.set_title({"unseen": "★ Unseen", "seen": "Seen", "all": "All interactions"}[group])
        axis.set_yticks(range(len(rows)), titles)
        axis.tick_params(axis="y", labelcolor=LIGHT["text"], labelsize=8.5)
        axis.set(ylim=(len(rows) - 0.5, -0.5), xlim=(0, 100), xlabel="% of the errors")
        axis.grid(visible=False, axis="y")

    panels = [
        Panel(0.43 * len(rows) + 0.8, partial(draw, group=group, rows=rows))
        for group, rows in groups.items()
    ]
    numbers = [
        f"{title}, {group}: {_describe_errors(counts)}"
        for group, rows in groups.items()
        for title, counts in rows
    ]
    title = "Kinds of errors"
    return make_chart("errors", title, f"{title}. {'; '.join(numbers)}.", panels, ERROR_TITLES)


def _describe_errors(counts: ErrorCounts) -> str:
    if not counts.num_wrong:
        return "no errors"
    return f"{counts.num_wrong} errors, " + ", ".join(
        f"{ERROR_TITLES[name]} {100 * share:.0f} %"
        for name, share in zip(ERROR_KINDS, counts.shares, strict=True)
    )
