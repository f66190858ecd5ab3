"""Style of the charts, and their output as SVG for the page, PNG, or a file."""

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

# Width of charts for wide windows and for phones.
WIDE_INCHES, NARROW_INCHES = 10.6, 3.6
PNG_DPI, FILE_DPI = 160, 150
CHART_SUFFIXES = (".png", ".svg", ".pdf")
# Draws on an empty figure and sets its size; called with the figure, the colours by name, and
# whether the chart is narrow.
DrawFunction = Callable[["Figure", Colours, bool], None]


@dataclass(frozen=True)
class Chart:
    """A finished chart.

    Attributes:
        name: short name, for the PNG file and for ids on the page.
        title: display name.
        alt: content of the chart in words, for screen readers.
        wide, narrow: `<svg>` elements for wide windows and for phones.
        png: content of a PNG file of the wide chart.
    """

    name: str
    title: str
    alt: str
    wide: str
    narrow: str
    png: bytes


def require_packages(what: str, *packages: str) -> None:
    """Checks that packages of the extra `report` are installed.

    Args:
        what: what needs them, for an error message.

    Raises:
        InputError: a package is missing.
    """
    for package in packages:
        try:
            __import__(package)
        except ImportError:
            raise InputError(
                f"{what} needs {package}, which is not installed: pip install '.[report]'"
            ) from None


def render_figure(draw: DrawFunction, colours: Colours, narrow: bool = False) -> Figure:
    """Draws a figure, applies the common style, and lays it out."""
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    # Thin hatch lines, so that the colour of a hatched bar remains visible.
    with matplotlib.rc_context({"hatch.linewidth": 0.6}):
        figure = Figure()
        draw(figure, colours, narrow)
    for axis in figure.axes:
        axis.set_facecolor("none")
        axis.tick_params(length=0, which="both")
        for side, spine in axis.spines.items():
            spine.set_visible(side in ("left", "bottom"))
            spine.set_color(colours["grid"])
        # Only texts can extend beyond a panel. Without the other artists the layout is much faster.
        for artist in (*axis.patches, *axis.lines, *axis.collections):
            artist.set_in_layout(False)
    # Executed once here: a figure with a layout engine of its own is drawn twice when it is saved.
    ConstrainedLayoutEngine(wspace=0.06).execute(figure)
    return figure


def add_legend(
    figure: Figure, entries: dict[str, str], colours: Colours, shape: str, narrow: bool
) -> None:
    """Adds a legend above all panels.

    Args:
        entries: titles by the name of the colour.
        shape: form of the keys: "bar", "line" or "marker".
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
    """Colour and hatch of a bar; the hatch has the colour of the background."""
    return {
        "facecolor": colours[name],
        "hatch": HATCHES.get(name),
        "edgecolor": colours["card"],
        "linewidth": 0,
    }


def line_style(name: str, colours: Colours) -> dict[str, Any]:
    """Colour and line style of a line."""
    return {"linestyle": LINE_STYLES[name], "color": colours[name], "linewidth": 1.6}


def marker_style(name: str, colours: Colours) -> dict[str, Any]:
    """Colour and marker of a point; a thin edge separates points that overlap."""
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
    """Adds the grid, in the given directions, and labels of an axis in the common style."""
    axis.grid(True, axis=across, color=colours["grid"], linewidth=0.7)
    axis.set_axisbelow(True)
    axis.tick_params(labelcolor=colours["muted"], labelsize=8)
    if x:
        axis.set_xlabel(x, color=colours["muted"], fontsize=8.5)
    if y:
        axis.set_ylabel(y, color=colours["muted"], fontsize=8.5)


def set_panel_title(axis: Axes, colours: Colours, title: str, size: float = 10.5) -> None:
    """Adds a panel's title in bold."""
    set_plain_panel_title(axis, colours, title, size, fontweight="bold")


def set_plain_panel_title(
    axis: Axes, colours: Colours, title: str, size: float, **style: Any
) -> None:
    """Adds a panel's title."""
    # With a fixed y, matplotlib does not search all ticks for labels above the panel.
    axis.set_title(title, loc="left", color=colours["text"], fontsize=size, y=1.0, **style)


def set_figure_title(figure: Figure, colours: Colours, title: str) -> None:
    """Adds a title of the whole figure, for charts that are not on a page."""
    figure.suptitle(title, x=0.01, ha="left", fontsize=11, color=colours["text"])


def add_panel_legend(axis: Axes, colours: Colours, columns: int) -> None:
    """Adds a legend of one panel, on the right of its title."""
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


def make_chart(name: str, title: str, alt: str, draw: DrawFunction) -> Chart:
    """Draws the wide and the narrow form of a chart; see `Chart`."""
    wide = render_figure(draw, LIGHT)
    narrow = _svg(render_figure(draw, LIGHT, narrow=True), f"{name}-narrow", alt)
    buffer = io.BytesIO()
    wide.savefig(buffer, format="png", dpi=PNG_DPI, facecolor=LIGHT["card"])
    return Chart(name, title, alt, _svg(wide, f"{name}-wide", alt), narrow, buffer.getvalue())


def _svg(figure: Figure, name: str, alt: str) -> str:
    """The figure as an `<svg>` element for the page.

    Its size and colours come from the page, and its ids start with `name`, so that several elements
    on one page have no ids in common.
    """
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


def check_chart_file(file: Path, overwrite: bool) -> None:
    """Checks, before the work for a chart is done, that its file can be written.

    Raises:
        InputError: matplotlib is not installed, the suffix is unknown, or the file exists.
    """
    if file.suffix.lower() not in CHART_SUFFIXES:
        raise InputError(f"{file}: expected a name that ends in {', '.join(CHART_SUFFIXES)}")
    refuse_existing(file, overwrite)
    require_packages("a chart", "matplotlib")


def save_chart(file: Path, draw: DrawFunction) -> None:
    """Draws a chart and writes it atomically, in the format of the file's suffix."""
    figure = render_figure(draw, LIGHT)
    kind = file.suffix.lower().removeprefix(".")
    with atomic_write(file) as temporary:
        figure.savefig(temporary, format=kind, dpi=FILE_DPI, facecolor=LIGHT["card"])
