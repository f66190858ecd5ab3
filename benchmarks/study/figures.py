"""Charts of experiments: mean and standard deviation over seeds, and every seed."""

from __future__ import annotations

from pathlib import Path
from statistics import mean, stdev
from textwrap import fill
from typing import Any

from matplotlib.figure import Figure

# Title, colour, marker, and offset of the rows in a chart of rows.
GROUPS: dict[str, tuple[str, str, str, float]] = {
    "unseen": ("mAP of unseen classes", "#b86b00", "o", -0.12),
    "seen": ("mAP of seen classes", "#7389a3", "s", 0.12),
}
# Inches.
WIDTH, ROW_HEIGHT, MARGIN, CURVE_HEIGHT, DPI = 8.0, 0.42, 1.5, 4.2, 150
TITLE_WIDTH = 70


def draw_experiment(file: Path, content: dict[str, Any]) -> None:
    """Draws an experiment's JSON file, see `write_experiment`, as a PNG file: a curve if it has a
    horizontal axis, else a row for each variant."""
    rows = [row for row in content["rows"] if row["values"].get("full")]
    if any("curves" in row for row in rows):
        _draw_training_curves(file, content["title"], rows)
        return
    is_curve = content["axis"] is not None
    height = CURVE_HEIGHT if is_curve else ROW_HEIGHT * len(rows) + MARGIN
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    axis = figure.add_subplot()
    if is_curve:
        rows = sorted(rows, key=_x_position)
    for group, (title, colour, marker, offset) in GROUPS.items():
        shown = [(number, row) for number, row in enumerate(rows) if group in row["values"]]
        values = [list(row["values"][group].values()) for _, row in shown]
        means = [mean(one) for one in values]
        spreads = [stdev(one) if len(one) > 1 else 0.0 for one in values]
        places = [_x_position(row) if is_curve else number + offset for number, row in shown]
        dots = [(place, value) for place, one in zip(places, values, strict=True) for value in one]
        xs, ys = zip(*dots, strict=True) if dots else ((), ())
        style = {"color": colour, "marker": marker, "capsize": 3, "label": title}
        if is_curve:
            axis.errorbar(places, means, yerr=spreads, **style)
        else:
            axis.errorbar(means, places, xerr=spreads, linestyle="", **style)
            xs, ys = ys, xs
        axis.plot(xs, ys, ".", color=colour, alpha=0.45)
    scale = "mAP, %: mean and deviation over seeds"
    axis.grid(axis="both" if is_curve else "x", alpha=0.3)
    if is_curve:
        axis.set(xlabel=content["axis"], ylabel=scale)
        axis.set_ylim(bottom=0)
    else:
        axis.set(xlabel=scale, xlim=(0, 100), ylim=(len(rows) - 0.5, -0.5))
        axis.set_yticks(range(len(rows)), [row["label"] for row in rows])
    axis.spines[["top", "right"]].set_visible(False)
    _add_title(figure, content["title"])
    figure.legend(loc="outside lower center", ncols=len(GROUPS), frameon=False)
    _save(figure, file)


def _draw_training_curves(file: Path, title: str, rows: list[dict[str, Any]]) -> None:
    """Draws the mAP of unseen and of seen classes over the steps, a line for each row and seed."""
    figure = Figure(figsize=(WIDTH, CURVE_HEIGHT), layout="constrained")
    for axis, group in zip(figure.subplots(1, len(GROUPS), sharey=True), GROUPS, strict=True):
        for number, row in enumerate(rows):
            for order, curve in enumerate(row.get("curves", {}).values()):
                label = {"label": row["label"]} if group == "unseen" and not order else {}
                axis.plot(curve["step"], curve[group], color=f"C{number}", **label)
        axis.set_title(GROUPS[group][0], fontsize="medium")
        axis.set(xlabel="step", xlim=(0, None), ylim=(0, 100))
        # The numbers of long trainings are wide.
        axis.locator_params(axis="x", nbins=5)
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    _add_title(figure, title)
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    _save(figure, file)


def _add_title(figure: Figure, title: str) -> None:
    # Beside long labels of rows the axis is narrower than the title.
    figure.suptitle(fill(title, TITLE_WIDTH), x=0.01, ha="left", fontweight="bold")


def _save(figure: Figure, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=DPI)


def _x_position(row: dict[str, Any]) -> float:
    """The row's position on the axis, by default the teacher's accuracy."""
    return mean(row["values"]["teacher_accuracy"].values()) if row["x"] is None else row["x"]
