"""Chart style; figures as SVG, PNG or a file."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from evaluation.report.charts.palette import (
    HATCHES,
    LIGHT,
    LINE_STYLES,
    MARKERS,
    Colours,
    css_variable,
)
from pipeline.utils.errors import InputError
from pipeline.utils.files import atomic_write, refuse_existing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Inches.
WIDE_INCHES, NARROW_INCHES = 10.6, 3.6
# Fills an empty figure, given colours by name and whether it is for phones, and sets its size.
DrawFunction = Callable[["Figure", Colours, bool], None]


def require_packages(what: str, *packages: str) -> None:
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


def render_figure(draw: DrawFunction, colours: Colours, narrow: bool = False) -> Figure:
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


def add_legend(
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
        labelcolor=colours["text"],
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
    return {"linestyle": LINE_STYLES[name], "color": colours[name], "linewidth": 1.6}


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


def set_panel_title(axis: Axes, colours: Colours, title: str, size: float = 10.5) -> None:
    """A panel's title."""
    set_plain_panel_title(axis, colours, title, size, fontweight="bold")


def set_plain_panel_title(
    axis: Axes, colours: Colours, title: str, size: float, **style: Any
) -> None:
    """A plain title. Its height is given: else every tick is looked at for one above the panel."""
    axis.set_title(title, loc="left", color=colours["text"], fontsize=size, y=1.0, **style)


def set_figure_title(figure: Figure, colours: Colours, title: str) -> None:
    """What the whole of a picture shows, where no page around it says so."""
    figure.suptitle(title, x=0.01, ha="left", fontsize=11, color=colours["text"])


def add_panel_legend(axis: Axes, colours: Colours, columns: int) -> None:
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
        labelcolor=colours["text"],
    )


PNG_DPI = 160


@dataclass(frozen=True)
class Chart:
    """A picture of numbers.

    Attributes:
        name: short, for file and ids.
        title: for people.
        alt: what the picture says, for those who do not see it.
        wide, narrow: `<svg>` elements for wide windows and for phones.
        png: the wide one as a PNG file's bytes.
    """

    name: str
    title: str
    alt: str
    wide: str
    narrow: str
    png: bytes


def make_chart(name: str, title: str, alt: str, draw: DrawFunction) -> Chart:
    """Makes a chart; see `Chart`."""
    wide = render_figure(draw, LIGHT)
    narrow = _svg(render_figure(draw, LIGHT, narrow=True), f"{name}-narrow", alt)
    buffer = io.BytesIO()
    wide.savefig(buffer, format="png", dpi=PNG_DPI, facecolor=LIGHT["card"])
    return Chart(name, title, alt, _svg(wide, f"{name}-wide", alt), narrow, buffer.getvalue())


def _svg(figure: Figure, name: str, alt: str) -> str:
    """The figure as an element that scales with the page and has ids of its own."""
    import matplotlib

    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    for pattern, replacement in (
        (r"<metadata>.*?</metadata>", ""),
        (r"<style.*?</style>", ""),
        (r"<!--.*?-->", ""),
        (r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-"),
        (r"xlink:href", "href"),
        (r"'DejaVu Sans'[^;\"]*", "inherit"),
    ):
        svg = re.sub(pattern, replacement, svg, flags=re.DOTALL)
    for colour, value in LIGHT.items():
        svg = svg.replace(value, f"var({css_variable(colour)})")
    box = re.search(r'viewBox="([^"]*)"', svg)
    assert box is not None, "matplotlib writes a viewBox"
    opening = f'<svg viewBox="{box.group(1)}" class="chart" role="img" aria-label="{escape(alt)}">'
    return opening + svg[svg.index(">") + 1 :]


CHART_SUFFIXES = (".png", ".svg", ".pdf")
FILE_DPI = 150


def check_chart_file(file: Path, overwrite: bool) -> None:
    """Tells what would keep a picture from being written, before the work for it is done.

    Raises:
        InputError: matplotlib is missing, the name has an unknown ending, or the file is there.
    """
    if file.suffix.lower() not in CHART_SUFFIXES:
        raise InputError(f"{file}: expected a name that ends in {', '.join(CHART_SUFFIXES)}")
    refuse_existing(file, overwrite)
    require_packages("a picture", "matplotlib")


def save_chart(file: Path, draw: DrawFunction) -> None:
    """Draws and writes a chart, whole or not at all; the ending decides the kind."""
    figure = render_figure(draw, LIGHT)
    kind = file.suffix.lower().removeprefix(".")
    with atomic_write(file) as temporary:
        figure.savefig(temporary, format=kind, dpi=FILE_DPI, facecolor=LIGHT["card"])
