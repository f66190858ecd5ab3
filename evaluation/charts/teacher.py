"""A teacher's own evaluation as a picture: groups of interactions, and every verb."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from evaluation.charts.look import label_axis, legend_above, title_axis, title_figure
from evaluation.charts.picture import save_picture
from evaluation.palette import BLUE, GREEN, ORANGE, PURPLE, Colours
from evaluation.teacher_scores import TeacherScores, VerbScores
from evaluation.wording import percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

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

    def draw(figure: Figure, colours: Colours, narrow: bool) -> None:
        figure.set_size_inches(WIDTH, sum(heights) + 0.3)
        title_figure(figure, colours, scores.title)
        grid = figure.add_gridspec(2, 1, height_ratios=heights)
        _draw_groups(figure.add_subplot(grid[0]), groups, colours)
        cells = grid[1].subgridspec(1, len(columns))
        for place, rows in enumerate(columns):
            axis = figure.add_subplot(cells[place])
            _draw_verbs(axis, rows, "Verbs, % (★ unseen)" if place == 0 else "", colours)
            if place == len(columns) - 1:
                legend_above(axis, colours, columns=4 if len(columns) == 1 else 2)

    save_picture(file, draw)


def _draw_groups(
    axis: Axes, groups: Sequence[tuple[str, float | None, float | None]], colours: Colours
) -> None:
    title_axis(axis, colours, "mAP, %")
    label_axis(axis, colours, across="x")
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
                color=colours["muted"],
            )
    axis.set_yticks(places, [title for title, *_ in groups])
    axis.set_ylim(len(groups) - 0.4, -0.6)
    axis.set_xlim(0, 108)
    legend_above(axis, colours, columns=2)


def _draw_verbs(axis: Axes, verbs: Sequence[VerbScores], title: str, colours: Colours) -> None:
    title_axis(axis, colours, title)
    label_axis(axis, colours)
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
