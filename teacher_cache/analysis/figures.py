"""Figures of a cache's statistics and of its teacher's scores."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from evaluation.tables import format_percent
from pipeline.utils.files import atomic_write
from pipeline.vocabulary import NO_INTERACTION

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from teacher_cache.analysis.evaluate import TeacherScores, VerbScores

BLUE, ORANGE, GREEN, PURPLE = "#0072b2", "#e69f00", "#009e73", "#cc79a7"
# Colours of an object's three most frequent actions, and of all others.
SHADES, OTHERS = (BLUE, "#56b4e9", "#a6d5f2"), "#dcdad3"
# Sizes in inches.
WIDTH, TOP_HEIGHT, BAR_HEIGHT, VERB_HEIGHT, MARGIN = 10.5, 2.9, 0.26, 0.21, 1.1
MAX_OBJECTS, MAX_BARS, HISTOGRAM_BINS = 40, 60, 20
# Minimum length in percent of a bar segment that can contain its action's name.
MIN_NAMED_PERCENT = 9
# More verbs than this are drawn in two columns.
MAX_COLUMN_ROWS = 40
VERB_MARKERS = (
    ("annotated", "mAP on annotated pairs", BLUE, "o"),
    ("proposed", "mAP on proposed pairs", ORANGE, "s"),
    ("accuracy", "top-1 accuracy on annotated pairs", GREEN, "^"),
    ("recall", "annotated pairs among the proposed", PURPLE, "|"),
)


def draw_overview(file: Path, title: str, overview: dict[str, Any]) -> None:
    """Draws pairs per image, the teacher's confidence, its entropy and its top actions by object.

    Args:
        file: the file to write; its suffix decides the format.
        title: title of the figure.
        overview: the statistics, see `inspect.compute_overview`.
    """
    objects = list(overview["top_actions"].items())[:MAX_OBJECTS]
    bottom = BAR_HEIGHT * max(len(objects), 1) + MARGIN
    with _new_figure(file, title, TOP_HEIGHT + bottom) as figure:
        grid = figure.add_gridspec(2, 3, height_ratios=[TOP_HEIGHT, bottom])
        unions = format_percent(overview["repeated_unions"])
        axis = _add_panel(figure, grid[0, 0], f"Images by pairs ({unions} % of unions repeat)", "y")
        _draw_pairs_per_image(axis, np.array(overview["pairs_per_image"]["images_by_pairs"]))
        axis = _add_panel(figure, grid[0, 1], "Pairs by probability of the best action, %", "y")
        confidence = dict(overview["confidence"])
        if overview.get(NO_INTERACTION):
            confidence["annotated, no interaction"] = overview[NO_INTERACTION]["confidence"]
        _draw_histograms(axis, confidence, "probability")
        axis = _add_panel(figure, grid[0, 2], "Pairs by entropy of the probabilities, %", "y")
        _draw_histograms(axis, overview["entropy"], "entropy / maximum of the object")
        axis = _add_panel(figure, grid[1, :], "Best action by object, % of its pairs", "x")
        _draw_actions(axis, objects)


def _draw_pairs_per_image(axis: Axes, counts: np.ndarray) -> None:
    width = -(-len(counts) // MAX_BARS)
    bars = np.pad(counts, (0, -len(counts) % width)).reshape(-1, width).sum(axis=1)
    align: Any = "edge" if width > 1 else "center"
    axis.bar(np.arange(len(bars)) * width, bars, 0.9 * width, align=align, color=BLUE)
    axis.set_xlabel("pairs of an image")
    axis.locator_params(integer=True)


def _draw_histograms(axis: Axes, distributions: dict[str, Any], label: str) -> None:
    width = 0.9 / len(distributions)
    for row, (kind, values) in enumerate(distributions.items()):
        shares = 100 * np.array(values["histogram"]) / max(values["pairs"], 1)
        left = (np.arange(HISTOGRAM_BINS) + 0.05 + width * row) / HISTOGRAM_BINS
        colour = (BLUE, ORANGE, PURPLE)[row]
        name = f"{kind} ({values['pairs']:,})"
        axis.bar(left, shares, width / HISTOGRAM_BINS, align="edge", color=colour, label=name)
    axis.set_xlim(0, 1)
    axis.set_xlabel(label)
    # With a background, as the lines of the grid would cross the text.
    axis.legend(loc="best", edgecolor="none", framealpha=1)


def _draw_actions(axis: Axes, objects: Sequence[tuple[str, dict[str, int]]]) -> None:
    for row, (_, actions) in enumerate(objects):
        total, start = sum(actions.values()), 0.0
        for colour, (verb, count) in zip(SHADES, actions.items(), strict=False):
            share = 100 * count / total
            axis.barh(row, share, 0.8, start, color=colour)
            if share >= MIN_NAMED_PERCENT:
                text_colour = "white" if colour == SHADES[0] else "black"
                axis.text(start + 1, row, verb, color=text_colour, va="center_baseline")
            start += share
        axis.barh(row, 100 - start, 0.8, start, color=OTHERS)
    _label_rows(axis, [f"{name} ({sum(actions.values()):,})" for name, actions in objects])
    axis.set_xlim(0, 100)


def draw_teacher_scores(file: Path, scores: TeacherScores) -> None:
    """Draws the mAP of groups as bars, and four scores of each verb as markers in a row.

    Args:
        file: the file to write; its suffix decides the format.
        scores: the scores.
    """
    verbs = sorted(scores.verbs, key=lambda verb: (not verb.unseen, -np.nan_to_num(verb.annotated)))
    columns = np.array_split(np.arange(len(verbs)), 1 if len(verbs) <= MAX_COLUMN_ROWS else 2)
    heights = [
        BAR_HEIGHT * len(scores.groups) + MARGIN,
        VERB_HEIGHT * max(map(len, columns)) + MARGIN,
    ]
    with _new_figure(file, scores.title, sum(heights)) as figure:
        grid = figure.add_gridspec(2, len(columns), height_ratios=heights)
        _draw_groups(_add_panel(figure, grid[0, :], "mAP, %", "x"), scores.groups)
        for column, indices in enumerate(columns):
            title = "" if column else "Verbs, % (★ unseen)"
            axis = _add_panel(figure, grid[1, column], title, "both")
            _draw_verbs(axis, [verbs[index] for index in indices])
        _add_legend(axis)


def _draw_groups(axis: Axes, groups: Sequence[tuple[str, float | None, float | None]]) -> None:
    on_annotated, on_proposed = [row[1] for row in groups], [row[2] for row in groups]
    for values, kind, colour, shift in (
        (on_annotated, "annotated", BLUE, -0.2),
        (on_proposed, "proposed", ORANGE, 0.2),
    ):
        lengths = [100 * (value or 0) for value in values]
        places = np.arange(len(groups)) + shift
        bars = axis.barh(places, lengths, 0.36, color=colour, label=f"{kind} pairs")
        axis.bar_label(bars, [format_percent(value) for value in values], padding=3)
    _label_rows(axis, [title for title, *_ in groups])
    axis.set_xlim(0, 108)
    _add_legend(axis)


def _draw_verbs(axis: Axes, verbs: Sequence[VerbScores]) -> None:
    for name, label, colour, marker in VERB_MARKERS:
        axis.plot(
            [100 * getattr(verb, name) for verb in verbs],
            np.arange(len(verbs)),
            linestyle="none",
            marker=marker,
            color=colour,
            # A hollow marker does not cover those below it.
            fillstyle="none" if marker == "^" else "full",
            markersize=8 if marker in "|^" else 5.5,
            markeredgewidth=1.6 if marker in "|^" else 0.5,
            label=label,
        )
    _label_rows(axis, [f"{'★ ' if verb.unseen else ''}{verb.name}" for verb in verbs])
    axis.set_xlim(-2, 102)


@contextmanager
def _new_figure(file: Path, title: str, height: float) -> Iterator[Figure]:
    """A figure for the `with` block, written atomically at its end."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"font.size": 8.5, "text.parse_math": False}):
        figure = Figure((WIDTH, height), layout="constrained")
        figure.suptitle(title, x=0.01, ha="left", fontsize=11)
        yield figure
        with atomic_write(file) as temporary:
            figure.savefig(temporary, format=file.suffix.lower().removeprefix("."), dpi=150)


def _add_panel(figure: Figure, place: Any, title: str, grid: Any) -> Axes:
    axis = figure.add_subplot(place)
    axis.set_title(title, loc="left", fontsize="medium", fontweight="bold")
    axis.grid(True, axis=grid, color=OTHERS)
    axis.set_axisbelow(True)
    axis.tick_params(length=0)
    axis.spines[["top", "right"]].set_visible(False)
    return axis


def _label_rows(axis: Axes, names: Sequence[str]) -> None:
    axis.set_yticks(np.arange(len(names)), names)
    axis.set_ylim(max(len(names), 1) - 0.4, -0.6)


def _add_legend(axis: Axes) -> None:
    """Adds a legend of two columns, which leave room for the panel's title on their left."""
    axis.legend(
        loc="lower right",
        bbox_to_anchor=(1, 1),
        borderaxespad=0.1,
        ncols=2,
        frameon=False,
        fontsize=8,
        handletextpad=0.4,
        columnspacing=1.2,
    )
