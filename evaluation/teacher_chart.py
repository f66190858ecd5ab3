"""A teacher's own evaluation as a picture: groups of interactions, and every verb."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from evaluation.plotting import (
    BLUE,
    GREEN,
    GRID,
    INK,
    MUTED,
    ORANGE,
    PURPLE,
    new_figure,
    plain_axis,
    save_picture,
)
from evaluation.teacher_scores import TeacherScores, VerbScores
from evaluation.wording import percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Inches.
WIDTH, ROW, ROOM = 10.5, 0.21, 1.1
# More verbs than this stand in two columns.
LONG = 40
MARKS = (
    ("annotated", "mAP on annotated pairs", BLUE, "o"),
    ("proposed", "mAP on proposed pairs", ORANGE, "s"),
    ("accuracy", "top-1 accuracy on annotated pairs", GREEN, "^"),
    ("recall", "annotated pairs among the proposed", PURPLE, "|"),
)


def draw_teacher(file: Path, scores: TeacherScores) -> None:
    """Draws the groups as bars, and four fractions of every verb as marks on its line."""
    verbs = sorted(scores.verbs, key=lambda verb: (not verb.unseen, -(verb.annotated or 0)))
    columns = [verbs]
    if len(verbs) > LONG:
        half = -(-len(verbs) // 2)
        columns = [verbs[:half], verbs[half:]]
    groups = scores.groups()
    heights = [ROW * 1.6 * len(groups) + ROOM, ROW * max(map(len, columns)) + ROOM]
    figure = new_figure(WIDTH, sum(heights) + 0.3)
    figure.suptitle(scores.title, x=0.01, ha="left", fontsize=11, color=INK)
    grid = figure.add_gridspec(2, 1, height_ratios=heights)
    _draw_groups(figure.add_subplot(grid[0]), groups)
    cells = grid[1].subgridspec(1, len(columns))
    for place, rows in enumerate(columns):
        axis = figure.add_subplot(cells[place])
        _draw_verbs(axis, rows, "Verbs, % (★ unseen)" if place == 0 else "")
        if place == len(columns) - 1:
            _legend(axis, columns=4 if len(columns) == 1 else 2)
    save_picture(file, figure)


def _draw_groups(axis: Axes, groups: Sequence[tuple[str, float | None, float | None]]) -> None:
    plain_axis(axis, "mAP, %")
    places = np.arange(len(groups))
    on_annotated = [annotated for _, annotated, _ in groups]
    on_proposed = [proposed for _, _, proposed in groups]
    for shift, values, colour, label in (
        (-0.2, on_annotated, BLUE, "annotated pairs"),
        (0.2, on_proposed, ORANGE, "proposed pairs"),
    ):
        axis.barh(
            places + shift,
            [100 * (value or 0) for value in values],
            0.36,
            color=colour,
            label=label,
        )
        for place, value in zip(places + shift, values, strict=True):
            axis.text(
                100 * (value or 0) + 1,
                place,
                percent(value),
                va="center_baseline",
                fontsize=7.5,
                color=MUTED,
            )
    axis.set_yticks(places, [title for title, *_ in groups])
    axis.set_ylim(len(groups) - 0.4, -0.6)
    axis.set_xlim(0, 108)
    _legend(axis, columns=2)


def _draw_verbs(axis: Axes, verbs: Sequence[VerbScores], title: str) -> None:
    plain_axis(axis, title)
    axis.grid(True, axis="y", color=GRID, linewidth=0.6)
    for name, label, colour, marker in MARKS:
        held = [
            (place, value)
            for place, verb in enumerate(verbs)
            if (value := getattr(verb, name)) is not None
        ]
        axis.plot(
            [100 * value for _, value in held],
            [place for place, _ in held],
            linestyle="none",
            marker=marker,
            color=colour,
            # A hollow mark shows what lies under it.
            fillstyle="none" if marker == "^" else "full",
            markersize=8 if marker in "|^" else 5.5,
            markeredgewidth=1.6 if marker in "|^" else 0.5,
            label=label,
            zorder=3,
        )
    axis.set_yticks(
        np.arange(len(verbs)), [f"{'★ ' if verb.unseen else ''}{verb.name}" for verb in verbs]
    )
    axis.set_ylim(len(verbs) - 0.4, -0.6)
    axis.set_xlim(-2, 102)


def _legend(axis: Axes, columns: int) -> None:
    """On the right of the axis's title."""
    axis.legend(
        loc="lower right",
        bbox_to_anchor=(1.0, 1.0),
        borderaxespad=0.1,
        ncols=columns,
        frameon=False,
        fontsize=8,
        handletextpad=0.4,
        columnspacing=1.2,
        labelcolor=INK,
    )
