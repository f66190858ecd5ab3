"""What all charts share: one drawing becomes SVG that follows the page, and a PNG.

For the page a chart is drawn in stand-in colours, and the style sheet gives every stand-in its real
colour, so charts follow light and dark; once for wide windows and once for phones. The PNG has the
light colours.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

from evaluation.palette import HATCHES, LIGHT, LINES, MARKERS, Colours, variable
from pipeline.errors import InputError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Inches.
WIDE, NARROW = 10.6, 3.6
PNG_DPI = 160
STAND_INS = {name: f"#0a{index:04x}" for index, name in enumerate(LIGHT)}


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


def make_chart(
    name: str, title: str, alt: str, draw: Callable[[Figure, Colours, bool], None]
) -> Chart:
    """Makes a chart.

    Args:
        draw: fills an empty figure, given colours by name and whether it is for phones; sets its
            size, `WIDE` or `NARROW` inches wide.
    """
    wide, narrow = (
        _svg(_drawn(draw, STAND_INS, narrow), f"{name}-{'narrow' if narrow else 'wide'}", alt)
        for narrow in (False, True)
    )
    buffer = io.BytesIO()
    _drawn(draw, LIGHT, False).savefig(buffer, format="png", dpi=PNG_DPI, facecolor=LIGHT["card"])
    return Chart(name, title, alt, wide, narrow, buffer.getvalue())


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


def label_axis(axis: Axes, colours: Colours, x: str = "", y: str = "") -> None:
    """Grid and labels of an axis as all charts have them."""
    axis.grid(True, color=colours["grid"], linewidth=0.7)
    axis.set_axisbelow(True)
    axis.tick_params(labelcolor=colours["muted"], labelsize=8)
    if x:
        axis.set_xlabel(x, color=colours["muted"], fontsize=8.5)
    if y:
        axis.set_ylabel(y, color=colours["muted"], fontsize=8.5)


def title_axis(axis: Axes, colours: Colours, title: str, size: float = 10.5) -> None:
    """A panel's title."""
    axis.set_title(title, loc="left", color=colours["ink"], fontsize=size, fontweight="bold")


def _drawn(draw: Callable[[Figure, Colours, bool], None], colours: Colours, narrow: bool) -> Figure:
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    # Thin hatches, so that a hatched bar keeps its colour.
    with matplotlib.rc_context({"hatch.linewidth": 0.6}):
        layout = ConstrainedLayoutEngine(wspace=0.06)
        figure = Figure(layout=layout)
        draw(figure, colours, narrow)
    for axis in figure.axes:
        axis.set_facecolor("none")
        axis.tick_params(length=0, which="both")
        for side, spine in axis.spines.items():
            spine.set_visible(side in ("left", "bottom"))
            spine.set_color(colours["grid"])
    # Laid out once here: saving a figure that still has an engine draws it all one time more.
    layout.execute(figure)
    figure.set_layout_engine("none")
    return figure


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
    for colour, stand_in in STAND_INS.items():
        svg = svg.replace(stand_in, f"var({variable(colour)})")
    box = re.search(r'viewBox="([^"]*)"', svg)
    assert box is not None, "matplotlib writes a viewBox"
    opening = f'<svg viewBox="{box.group(1)}" class="chart" role="img" aria-label="{escape(alt)}">'
    return opening + svg[svg.index(">") + 1 :]
