"""Charts by interaction: AP of every one, and AP against the number of training instances."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

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
from evaluation.class_rows import ClassRow
from evaluation.contestants import Contestant
from evaluation.palette import Colours
from evaluation.wording import percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

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

    return make_chart("classes", "AP of every interaction", _spoken(counted, contestant), draw)


def ap_by_training(rows: Sequence[ClassRow], contestants: Sequence[Contestant]) -> Chart:
    """AP against the number of training instances, a panel for each of the first two contestants.

    Args:
        rows: with `training` known.
    """
    shown = contestants[:2]
    fewest = min((row.training or 0 for row in rows), default=0)
    most = max((row.training or 0 for row in rows), default=1)

    def draw(figure: Figure, colours: Colours, narrow: bool) -> None:
        columns = 1 if narrow else len(shown)
        lines = -(-len(shown) // columns)
        figure.set_size_inches(NARROW if narrow else WIDE, 3.1 * lines + 0.4)
        axes = figure.subplots(lines, columns, squeeze=False, sharey=True).ravel()
        for axis, (place, one) in zip(axes, enumerate(shown), strict=True):
            for kind in ("seen", "unseen"):
                own = [row for row in rows if row.unseen == (kind == "unseen")]
                points = [
                    (row.training, 100 * value)
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
            title_axis(axis, colours, one.title)
        legend(figure, {kind: kind for kind in _kinds(rows)}, colours, "marker", narrow)

    alt = f"AP against training instances. {_by_frequency(rows, shown)}"
    return make_chart("training-instances", "AP against training instances", alt, draw)


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


def _spoken(rows: Sequence[ClassRow], contestant: Contestant) -> str:
    said = []
    for kind in _kinds(rows):
        own = [row for row in rows if row.unseen == (kind == "unseen")]
        mean = float(np.mean([row.values[0] for row in own if row.values[0] is not None]))
        ends = f"from {own[0].name} ({percent(own[0].values[0])})"
        ends += f" down to {own[-1].name} ({percent(own[-1].values[0])})"
        said.append(f"{len(own)} {kind} interactions, mean {percent(mean)}, {ends}")
    return f"AP of {contestant.title.lower()} by interaction: {'; '.join(said)}."


def _by_frequency(rows: Sequence[ClassRow], contestants: Sequence[Contestant]) -> str:
    """Means of the seen interactions with few and with many instances, and of the unseen ones."""
    seen = sorted(row.training or 0 for row in rows if not row.unseen)
    middle = seen[len(seen) // 2] if seen else 0
    groups = {
        "unseen": [row for row in rows if row.unseen],
        f"seen with fewer than {middle:,} instances": [
            row for row in rows if not row.unseen and (row.training or 0) < middle
        ],
        f"seen with {middle:,} or more": [
            row for row in rows if not row.unseen and (row.training or 0) >= middle
        ],
    }
    said = []
    for place, one in enumerate(contestants):
        means = []
        for name, members in groups.items():
            values = [value for row in members if (value := row.values[place]) is not None]
            if values:
                means.append(f"{name} {percent(float(np.mean(values)))}")
        said.append(f"{one.title}, mean AP: {', '.join(means)}")
    return ". ".join(said) + "."
