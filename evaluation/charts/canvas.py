"""One drawing becomes SVG that follows the page, and a PNG.

The SVG's colours are the style sheet's variables, so charts follow light and dark; there is one for
wide windows and one for phones. The PNG has the light colours.
"""

from __future__ import annotations

import io
import re
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

from evaluation.charts.look import Draw, drawn
from evaluation.palette import LIGHT, variable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

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


def make_chart(name: str, title: str, alt: str, draw: Draw) -> Chart:
    """Makes a chart; see `Chart`."""
    wide = drawn(draw, LIGHT)
    narrow = _svg(drawn(draw, LIGHT, narrow=True), f"{name}-narrow", alt)
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
        svg = svg.replace(value, f"var({variable(colour)})")
    box = re.search(r'viewBox="([^"]*)"', svg)
    assert box is not None, "matplotlib writes a viewBox"
    opening = f'<svg viewBox="{box.group(1)}" class="chart" role="img" aria-label="{escape(alt)}">'
    return opening + svg[svg.index(">") + 1 :]
