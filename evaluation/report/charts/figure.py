"""Style of the charts, and their output as SVG for the page and as PNG."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from PIL import Image

from evaluation.drawing.canvas import tile_images
from evaluation.report.charts.palette import HATCHES, LIGHT, LINE_STYLES, MARKERS, css_variable
from pipeline.utils.errors import InputError
from pipeline.utils.files import refuse_existing

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Inches: a panel fills a phone's window and a third of a wide one.
PANEL_WIDTH, KEY_SIZE = 3.6, (0.3, 0.13)
PNG_COLUMNS, DPI = 3, 160
CHART_SUFFIXES = (".png", ".svg", ".pdf")
SVG_METADATA = dict.fromkeys(("Creator", "Date", "Format", "Type"))
STYLE: Any = {
    "axes.axisbelow": True,
    "axes.edgecolor": LIGHT["grid"],
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.labelcolor": LIGHT["muted"],
    "axes.labelsize": 8.5,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlecolor": LIGHT["text"],
    "axes.titlelocation": "left",
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "figure.constrained_layout.use": True,
    "figure.facecolor": LIGHT["card"],
    "font.size": 8.5,
    "grid.color": LIGHT["grid"],
    "grid.linewidth": 0.7,
    # Thin lines, so that the colour of a hatched bar remains visible.
    "hatch.linewidth": 0.6,
    "legend.fontsize": 8.5,
    "legend.frameon": False,
    "legend.labelcolor": LIGHT["text"],
    "lines.linewidth": 1.6,
    "svg.fonttype": "none",
    # The same file twice for the same chart.
    "svg.hashsalt": "eoid",
    "text.color": LIGHT["text"],
    # Names with two dollar signs are no formulas.
    "text.parse_math": False,
    **{f"{axis}tick.color": LIGHT["grid"] for axis in "xy"},
    **{f"{axis}tick.labelcolor": LIGHT["muted"] for axis in "xy"},
    **{f"{axis}tick.labelsize": 8 for axis in "xy"},
    **{f"{axis}tick.{kind}.size": 0 for axis in "xy" for kind in ("major", "minor")},
}


# Users cannot act on these: the font lacks the letters of some scripts, and draws boxes instead.
warnings.filterwarnings("ignore", message="Glyph .* missing from", category=UserWarning)


@dataclass(frozen=True)
class Panel:
    """Axes of a chart: size in inches, and a function that draws on them."""

    height: float
    draw: Callable[[Axes], None]
    width: float = PANEL_WIDTH


@dataclass(frozen=True)
class Chart:
    """A finished chart.

    Attributes:
        name: short name, for the PNG file and for ids on the page.
        title: display name.
        alt: content of the chart in words, for screen readers.
        panels: `<svg>` elements, which the page lays out in as many columns as fit.
        legend: `<svg>` element and title of each key.
        png: the legend and all panels as a PNG file.
        large: whether the panels are too wide to be shown side by side.
    """

    name: str
    title: str
    alt: str
    panels: tuple[str, ...]
    legend: tuple[tuple[str, str], ...]
    png: bytes
    large: bool = False


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


def make_chart(
    name: str,
    title: str,
    alt: str,
    panels: Sequence[Panel],
    legend: Mapping[str, str],
    shape: Literal["bar", "line", "marker"] = "bar",
) -> Chart:
    """Draws the panels and the legend of a chart.

    Args:
        legend: titles by the name of the style.
        shape: form of the legend's keys.
    """
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        figures = []
        for panel in panels:
            figures.append(Figure(figsize=(panel.width, panel.height)))
            panel.draw(figures[-1].subplots())
        keys = []
        for place, handle in enumerate(legend_handles(legend, shape)):
            key = Figure(figsize=KEY_SIZE)
            key.legend(handles=[handle], labels=[""], loc="center", borderpad=0, handletextpad=0)
            keys.append((_svg(key, f"{name}-key-{place}"), str(handle.get_label())))
        svgs = [_svg(figure, f"{name}-{place}") for place, figure in enumerate(figures)]
        images = [_image(figure) for figure in figures]
        sheet = tile_images(images, PNG_COLUMNS, 0, LIGHT["card"])
        if legend:
            head = Figure(figsize=(sheet.width / DPI, 0.3))
            head.legend(handles=legend_handles(legend, shape), loc="center left", ncols=len(legend))
            sheet = tile_images([_image(head), sheet], 1, 0, LIGHT["card"])
    png = io.BytesIO()
    sheet.save(png, "PNG")
    large = any(panel.width > PANEL_WIDTH for panel in panels)
    return Chart(name, title, alt, tuple(svgs), tuple(keys), png.getvalue(), large)


def legend_handles(entries: Mapping[str, str], shape: str) -> list[Artist]:
    """Handles for matplotlib's legend; see `make_chart`."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    if shape == "bar":
        return [Patch(label=title, **bar_style(style)) for style, title in entries.items()]
    line = shape == "line"
    return [
        Line2D([], [], label=title, **(line_style(style) if line else marker_style(style)))
        for style, title in entries.items()
    ]


def bar_style(name: str) -> dict[str, Any]:
    """Colour and hatch of a bar; the hatch has the colour of the background."""
    return {
        "facecolor": LIGHT[name],
        "hatch": HATCHES.get(name),
        "edgecolor": LIGHT["card"],
        "linewidth": 0,
    }


def line_style(name: str) -> dict[str, Any]:
    """Colour and line style of a line."""
    return {"linestyle": LINE_STYLES[name], "color": LIGHT[name]}


def marker_style(name: str) -> dict[str, Any]:
    """Colour and marker of points without a line; a thin edge separates points that overlap."""
    return {
        "linestyle": "",
        "marker": MARKERS[name],
        "color": LIGHT[name],
        "markersize": 10 if MARKERS[name] == "*" else 6,
        "markeredgecolor": LIGHT["card"],
        "markeredgewidth": 0.6,
    }


def _image(figure: Figure) -> Image.Image:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI)
    return Image.open(buffer).convert("RGB")


def _svg(figure: Figure, name: str) -> str:
    """The figure as an `<svg>` element for the page.

    Its size and colours come from the page, and its ids start with `name`, so that several elements
    on one page have no ids in common.
    """
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata=SVG_METADATA)
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", buffer.getvalue())
    for colour, value in LIGHT.items():
        svg = svg.replace(value, f"var({css_variable(colour)})")
    (box,) = re.findall(r'viewBox="[^"]*"', svg)
    content = svg[svg.index(">", svg.index("<svg")) + 1 :]
    return f"<svg {box}>{content}"


def check_chart_file(file: Path, overwrite: bool) -> None:
    """Checks, before the work for a chart is done, that its file can be written.

    Raises:
        InputError: matplotlib is not installed, the suffix is unknown, or the file exists.
    """
    if file.suffix.lower() not in CHART_SUFFIXES:
        raise InputError(f"{file}: expected a name that ends in {', '.join(CHART_SUFFIXES)}")
    refuse_existing(file, overwrite)
    require_packages("a chart", "matplotlib")
