"""Charts of mistakes: kinds of errors, and confusion among verbs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from evaluation.charts.canvas import Chart, make_chart
from evaluation.charts.look import (
    NARROW,
    WIDE,
    bar_style,
    label_axis,
    legend,
    title_axis,
)
from evaluation.confusion import Confusion
from evaluation.error_kinds import TITLES, ErrorCounts
from evaluation.palette import ERROR_KINDS, Colours
from evaluation.wording import listing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_VERBS = 24
# Ink stays readable on the darkest cell, in light and dark.
DARKEST = 0.55
# Matrices of at most so many columns stand side by side.
MOST_BESIDE = 14
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

    said = "; ".join(f"{row.title}, {row.group}: {_spoken(row.counts)}" for row in rows)
    return make_chart("errors", "Kinds of errors", f"Kinds of errors. {said}.", draw)


def confusion_matrix(
    confusion: Confusion, verbs: Sequence[str], unseen: Sequence[int], title: str, name: str
) -> Chart:
    """Said verbs of every labelled verb as shares of the row; of many verbs, those most confused.

    Args:
        verbs: names, underscores for spaces.
        unseen: verbs to star.
        title: whose it is.
        name: the chart's.
    """
    shown = _shown(confusion, unseen)
    names = [verbs[verb].replace("_", " ") for verb in shown]
    starred = [f"★ {n}" if verb in unseen else n for verb, n in zip(shown, names, strict=True)]
    shares = confusion.shares[shown]
    others = 1 - shares[:, shown].sum(axis=1) - (confusion.counts[shown].sum(axis=1) == 0)
    cells, columns = shares[:, shown], list(starred)
    if len(shown) < len(verbs):
        cells, columns = np.column_stack([cells, others]), [*columns, "others"]

    def draw(figure: Figure, colours: Colours, narrow: bool) -> None:
        from matplotlib.patches import Rectangle

        width = NARROW if narrow else WIDE / 2 if len(columns) <= MOST_BESIDE else WIDE
        side = (width - (1.0 if narrow else 1.4)) / max(1, len(columns))
        figure.set_size_inches(width, max(side, 0.16) * len(shown) + (1.2 if narrow else 1.4))
        axis = figure.subplots()
        size = float(np.clip(26 * side, 3.6, 9))
        for (row, column), share in np.ndenumerate(cells):
            corner = (column - 0.5, row - 0.5)
            if share > 0:
                axis.add_patch(
                    Rectangle(corner, 1, 1, color=colours["accent"], alpha=DARKEST * share, lw=0)
                )
            if row == column:
                axis.add_patch(Rectangle(corner, 1, 1, fill=False, edgecolor=colours["muted"]))
            if share >= LEAST_SHARE / 5:
                number = f"{100 * share:.0f}"
                axis.text(
                    column,
                    row,
                    number,
                    ha="center",
                    va="center",
                    fontsize=size,
                    color=colours["ink"],
                    in_layout=False,
                )
        axis.set_xticks(np.arange(len(columns)), columns, rotation=90)
        axis.set_yticks(np.arange(len(shown)), starred)
        axis.set_xlim(-0.5, len(columns) - 0.5)
        axis.set_ylim(len(shown) - 0.5, -0.5)
        label_axis(axis, colours, "said", "labelled")
        axis.grid(False)
        axis.tick_params(labelcolor=colours["ink"], labelsize=max(size, 5.5))
        title_axis(axis, colours, title)

    told = [
        f"{verbs[labelled].replace('_', ' ')} taken for {verbs[said].replace('_', ' ')}"
        f" ({pairs:.0f})"
        for labelled, said, pairs in confusion.worst(5)
    ]
    right = np.trace(confusion.counts) / max(confusion.found, 1)
    alt = (
        f"{title}: of {confusion.found} labelled pairs that were found, {100 * right:.0f} % have a"
        f" right verb. Most frequent confusions: {listing(told) if told else 'none'}."
    )
    return make_chart(name, f"Confusion among verbs: {title}", alt, draw)


def _row_title(row: ErrorRow) -> str:
    group = "★ unseen" if row.group == "unseen" else row.group
    total = row.counts.wrong + row.counts.right
    return f"{row.title}, {group}\n{row.counts.wrong:,} of {total:,} wrong"


def _shown(confusion: Confusion, unseen: Sequence[int]) -> list[int]:
    """Verbs that were labelled or said; of many, the most confused ones; the unseen ones first."""
    used = np.flatnonzero(confusion.counts.sum(axis=0) + confusion.counts.sum(axis=1))
    off = confusion.counts - np.diag(np.diag(confusion.counts))
    confused = off.sum(axis=0) + off.sum(axis=1)
    most = sorted(used.tolist(), key=lambda verb: (-confused[verb], verb))[:MOST_VERBS]
    return sorted(most, key=lambda verb: (verb not in unseen, verb))


def _spoken(counts: ErrorCounts) -> str:
    if not counts.wrong:
        return "no errors"
    return f"{counts.wrong} errors, " + ", ".join(
        f"{TITLES[name]} {100 * share:.0f} %"
        for name, share in zip(ERROR_KINDS, counts.shares, strict=True)
    )
