"""The look that all charts share: axes, legends, bars, lines and points."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

from evaluation.palette import HATCHES, LINES, MARKERS, Colours
from pipeline.errors import InputError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Inches.
WIDE, NARROW = 10.6, 3.6
# Fills an empty figure, given colours by name and whether it is for phones, and sets its size.
Draw = Callable[["Figure", Colours, bool], None]


def require(what: str, *packages: str) -> None:
    """Makes sure that packages of the extra `report` are there for something.

    Raises:
        InputError: one is missing.
    """
    for package in packages:
        try:
            __import__(package)
        except ImportError:
            raise InputError(
                f"{what} needs {package}, which is not installed: pip install 'eoid[report]'"
            ) from None


def drawn(draw: Draw, colours: Colours, narrow: bool = False) -> Figure:
    """A finished figure, laid out."""
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    # Thin hatches, so that a hatched bar keeps its colour.
    with matplotlib.rc_context({"hatch.linewidth": 0.6}):
        figure = Figure()
        draw(figure, colours, narrow)
    for axis in figure.axes:
        axis.set_facecolor("none")
        axis.tick_params(length=0, which="both")
        for side, spine in axis.spines.items():
            spine.set_visible(side in ("left", "bottom"))
            spine.set_color(colours["grid"])
        # What lies inside a panel needs no room around it; only texts may reach beyond.
        for artist in (*axis.patches, *axis.lines, *axis.collections):
            artist.set_in_layout(False)
    # Laid out by hand: saving a figure that has an engine of its own draws it all one time more.
    ConstrainedLayoutEngine(wspace=0.06).execute(figure)
    return figure


def legend(
    figure: Figure, entries: dict[str, str], colours: Colours, shape: str, narrow: bool
) -> None:
    """A legend above everything else.

    Args:
        entries: titles by the name of the colour.
        shape: "bar", "line" or "marker".
    """
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles: list[Patch | Line2D] = []
    for name, title in entries.items():
        if shape == "bar":
            handles.append(Patch(label=title, **bar_style(name, colours)))
        elif shape == "line":
            handles.append(Line2D([], [], label=title, **line_style(name, colours)))
        else:
            handles.append(Line2D([], [], label=title, linestyle="", **marker_style(name, colours)))
    figure.legend(
        handles=handles,
        loc="outside upper left",
        ncols=(2 if narrow else len(handles)),
        frameon=False,
        fontsize=9.5,
        labelcolor=colours["ink"],
        handlelength=2.2 if shape == "line" else 1.4,
        columnspacing=1.6,
        borderaxespad=0.2,
    )


def bar_style(name: str, colours: Colours) -> dict[str, Any]:
    """Colour and hatch of a bar; the hatch is drawn in the ground's colour."""
    return {
        "facecolor": colours[name],
        "hatch": HATCHES.get(name),
        "edgecolor": colours["card"],
        "linewidth": 0,
    }


def line_style(name: str, colours: Colours) -> dict[str, Any]:
    """Colour and dashes of a line."""
    return {"linestyle": LINES[name], "color": colours[name], "linewidth": 1.6}


def marker_style(name: str, colours: Colours) -> dict[str, Any]:
    """Colour and shape of a point; a thin rim parts points that lie on each other."""
    return {
        "marker": MARKERS[name],
        "color": colours[name],
        "markersize": 10 if MARKERS[name] == "*" else 6,
        "markeredgecolor": colours["card"],
        "markeredgewidth": 0.6,
    }


def label_axis(
    axis: Axes,
    colours: Colours,
    x: str = "",
    y: str = "",
    across: Literal["x", "y", "both"] = "both",
) -> None:
    """Grid (across the given directions) and labels of an axis as all charts have them."""
    axis.grid(True, axis=across, color=colours["grid"], linewidth=0.7)
    axis.set_axisbelow(True)
    axis.tick_params(labelcolor=colours["muted"], labelsize=8)
    if x:
        axis.set_xlabel(x, color=colours["muted"], fontsize=8.5)
    if y:
        axis.set_ylabel(y, color=colours["muted"], fontsize=8.5)


def title_axis(axis: Axes, colours: Colours, title: str, size: float = 10.5) -> None:
    """A panel's title."""
    name_axis(axis, colours, title, size, fontweight="bold")


def name_axis(axis: Axes, colours: Colours, title: str, size: float, **style: Any) -> None:
    """A plain title. Its height is given: else every tick is looked at for one above the panel."""
    axis.set_title(title, loc="left", color=colours["ink"], fontsize=size, y=1.0, **style)


def title_figure(figure: Figure, colours: Colours, title: str) -> None:
    """What the whole of a picture shows, where no page around it says so."""
    figure.suptitle(title, x=0.01, ha="left", fontsize=11, color=colours["ink"])


def legend_above(axis: Axes, colours: Colours, columns: int) -> None:
    """A panel's own legend, on the right of its title."""
    axis.legend(
        loc="lower right",
        bbox_to_anchor=(1.0, 1.0),
        borderaxespad=0.1,
        ncols=columns,
        frameon=False,
        fontsize=8,
        handletextpad=0.4,
        columnspacing=1.2,
        labelcolor=colours["ink"],
    )
