"""Charts as inline SVG that take their colours from the page, so they follow light and dark.

Each chart is drawn with matplotlib in stand-in colours; the page's style sheet gives every stand-in
its real colour (`--ink`, `--muted`, `--grid`, `--distilled`, ...).
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

import numpy as np

from evaluation.comparison import Action, Contestant, Role
from evaluation.training_log import LEARNING_RATE, TrainingLog
from evaluation.wording import percent
from pipeline.errors import InputError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, MUTED, GRID = "#010101", "#020202", "#030303"
ROLE_COLOURS: dict[Role, str] = {
    "distilled": "#0a0001",
    "control": "#0a0002",
    "all_labels": "#0a0003",
    "teacher": "#0a0004",
    "predictions": "#0a0005",
}
STYLES = {
    INK: "var(--ink)",
    MUTED: "var(--muted)",
    GRID: "var(--grid)",
    **{colour: f"var(--{role.replace('_', '-')})" for role, colour in ROLE_COLOURS.items()},
}
# Inches: page widths; height of a bar, of the gap between actions, of a panel's title and axis.
WIDE, NARROW = 10.6, 3.9
BAR, GAP, ROOM = 0.115, 0.13, 0.62
SMOOTHED_POINTS = 60


def require_report_packages() -> None:
    """Makes sure that the packages of the extra `report` are there.

    Raises:
        InputError: one is missing.
    """
    for package in ("jinja2", "matplotlib"):
        try:
            __import__(package)
        except ImportError:
            raise InputError(
                f"a report needs {package}, which is not installed: pip install 'eoid[report]'"
            ) from None


def action_bars(
    actions: Sequence[Action], contestants: Sequence[Contestant], narrow: bool, alt: str
) -> str:
    """AP of every action, one bar for each contestant; unseen actions in a panel of their own.

    Args:
        narrow: for phones, panels below each other.
        alt: what the picture says, for those who do not see it.

    Returns:
        an `<svg>` element.
    """
    columns = [list(actions)] if narrow else _two_columns(actions)
    first_of = {action.unseen: action for action in reversed(actions)}
    figure = _figure()
    panels = [
        [[row for row in rows if row.unseen == unseen] for unseen in (True, False)]
        for rows in columns
    ]
    heights = [[_panel_height(rows, contestants) for rows in column if rows] for column in panels]
    total = max(sum(column) for column in heights)
    figure.set_size_inches(NARROW if narrow else WIDE, total)
    grid = figure.add_gridspec(1, len(columns))
    for place, column in enumerate(panels):
        # What is left below a shorter column keeps its bars as thick as the others.
        ratios = [*heights[place], max(total - sum(heights[place]), 1e-3)]
        cells = grid[place].subgridspec(len(ratios), 1, height_ratios=ratios)
        for row, rows in enumerate(filter(None, column)):
            axis = figure.add_subplot(cells[row])
            _bars_panel(axis, rows, contestants)
            title = "★ Unseen" if rows[0].unseen else "Seen"
            title += " (continued)" if rows[0] is not first_of[rows[0].unseen] else ""
            axis.set_title(title, loc="left", color=INK, fontsize=10.5, fontweight="bold")
    return _svg(figure, f"bars-{'narrow' if narrow else 'wide'}", alt)


def training_curves(logs: Sequence[tuple[Contestant, TrainingLog]], narrow: bool, alt: str) -> str:
    """A small panel for each loss part and the learning rate, one line for each run.

    Returns:
        an `<svg>` element.
    """
    names = list(dict.fromkeys(name for _, log in logs for name in log.series))
    columns = 2 if narrow else min(4, len(names))
    rows = -(-len(names) // columns)
    figure = _figure()
    figure.set_size_inches(NARROW if narrow else WIDE, rows * (1.45 if narrow else 1.75) + 0.3)
    axes = figure.subplots(rows, columns, squeeze=False, sharex=True).ravel()
    for axis, name in zip(axes, names, strict=False):
        # The first contestant's line on top of the others.
        for contestant, log in reversed(logs):
            if name in log.series:
                _curve(axis, log.steps, log.series[name], ROLE_COLOURS[contestant.role])
        axis.set_title(name, loc="left", color=INK, fontsize=9)
        axis.set_ylim(bottom=0)
        axis.grid(True, color=GRID, linewidth=0.7)
        axis.locator_params(nbins=4)
        axis.tick_params(labelcolor=MUTED, labelsize=8)
        if name == LEARNING_RATE:
            axis.yaxis.set_major_formatter("{x:g}")
    for axis in axes[len(names) :]:
        axis.set_axis_off()
    # The lowest panel of each column names the axis.
    for index in range(max(0, len(names) - columns), len(names)):
        axes[index].set_xlabel("step", color=MUTED, fontsize=8.5)
        axes[index].tick_params(labelbottom=True)
    return _svg(figure, f"curves-{'narrow' if narrow else 'wide'}", alt)


def _figure() -> Figure:
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    return Figure(layout=ConstrainedLayoutEngine(wspace=0.06))


def _two_columns(actions: Sequence[Action]) -> list[list[Action]]:
    """Halves of about equal length, split between unseen and seen where that is near the middle."""
    middle = len(actions) // 2
    boundary = sum(action.unseen for action in actions)
    cut = boundary if 0 < boundary < len(actions) and abs(boundary - middle) <= 1 else middle
    return [half for half in (list(actions[:cut]), list(actions[cut:])) if half]


def _panel_height(rows: Sequence[Action], contestants: Sequence[Contestant]) -> float:
    """Inches."""
    return len(rows) * (BAR * len(contestants) + GAP) + ROOM


def _bars_panel(axis: Axes, rows: Sequence[Action], contestants: Sequence[Contestant]) -> None:
    share = BAR * len(contestants) / (BAR * len(contestants) + GAP)
    thickness = share / len(contestants)
    for place, contestant in enumerate(contestants):
        offsets = np.arange(len(rows)) - share / 2 + thickness * (place + 0.5)
        values = [100 * (row.values[place] or 0.0) for row in rows]
        axis.barh(offsets, values, 0.84 * thickness, color=ROLE_COLOURS[contestant.role])
        for offset, row in zip(offsets, rows, strict=True):
            value = row.values[place]
            if value is not None:
                axis.text(
                    *(100 * value + 1, offset, percent(value)),
                    va="center_baseline",
                    fontsize=6.8,
                    color=MUTED,
                )
    axis.set_yticks(np.arange(len(rows)), [row.name for row in rows])
    axis.set_ylim(len(rows) - 0.5, -0.5)
    axis.set_xlim(0, 108)
    axis.set_xticks([0, 25, 50, 75, 100])
    axis.grid(True, axis="x", color=GRID, linewidth=0.7)
    axis.set_axisbelow(True)
    axis.tick_params(axis="y", labelcolor=INK, labelsize=9.5)
    axis.tick_params(axis="x", labelcolor=MUTED, labelsize=8)


def _curve(axis: Axes, steps: np.ndarray, values: np.ndarray, colour: str) -> None:
    if len(values) <= SMOOTHED_POINTS:
        marker = "o" if len(values) == 1 else None
        axis.plot(steps, values, color=colour, linewidth=1.6, marker=marker)
        return
    width = len(values) // 40
    # Edges are repeated, so that the smoothed line neither starts nor ends early.
    padded = np.pad(values, width, mode="edge")
    smooth = np.convolve(padded, np.full(2 * width + 1, 1 / (2 * width + 1)), mode="valid")
    axis.plot(steps, values, color=colour, linewidth=0.6, alpha=0.25)
    axis.plot(steps, smooth, color=colour, linewidth=1.6)


def _svg(figure: Figure, name: str, alt: str) -> str:
    """The figure as an element that scales with the page and has ids of its own."""
    import matplotlib

    for axis in figure.axes:
        axis.set_facecolor("none")
        axis.tick_params(length=0)
        for side, spine in axis.spines.items():
            spine.set_visible(side in ("left", "bottom"))
            spine.set_color(GRID)
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    for pattern, replacement in (
        (r"<metadata>.*?</metadata>", ""),
        (r"<style.*?</style>", ""),
        (r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-"),
        (r"xlink:href", "href"),
        (r"'DejaVu Sans'[^;\"]*", "inherit"),
    ):
        svg = re.sub(pattern, replacement, svg, flags=re.DOTALL)
    for stand_in, style in STYLES.items():
        svg = svg.replace(stand_in, style)
    box = re.search(r'viewBox="([^"]*)"', svg)
    assert box is not None, "matplotlib writes a viewBox"
    opening = (
        f'<svg viewBox="{box.group(1)}" class="chart" role="img" aria-label="{escape(alt)}">'
        f"<title>{escape(alt)}</title>"
    )
    return opening + svg[svg.index(">") + 1 :]
