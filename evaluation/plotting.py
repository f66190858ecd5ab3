"""What all pictures of figures share: matplotlib when it is there, one look, whole files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import InputError
from pipeline.files import refuse_existing, replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

KINDS = (".png", ".svg", ".pdf")
INK, MUTED, GRID = "#20242c", "#6b7280", "#e3e6ea"
# Okabe and Ito's colours, told apart by colour-blind people.
BLUE, ORANGE, GREEN, PURPLE = "#0072b2", "#e69f00", "#009e73", "#cc79a7"
DOTS_PER_INCH = 150


def check_picture(file: Path, overwrite: bool) -> None:
    """Tells what would keep a picture from being written, before the work for it is done.

    Raises:
        InputError: matplotlib is missing, the name has an unknown ending, or the file is there.
    """
    if file.suffix.lower() not in KINDS:
        raise InputError(f"{file}: expected a name that ends in {', '.join(KINDS)}")
    refuse_existing(file, overwrite)
    try:
        __import__("matplotlib")
    except ImportError:
        raise InputError(
            "a picture needs matplotlib, which is not installed: pip install 'eoid[report]'"
        ) from None


def new_figure(width: float, height: float) -> Figure:
    """An empty figure; inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained", facecolor="white")


def plain_axis(axis: Axes, title: str, across: str = "x") -> None:
    """Gives an axis the house's look; `across` is the direction of what is measured."""
    axis.set_title(title, loc="left", color=INK, fontsize=10, fontweight="bold")
    axis.grid(True, axis="x" if across == "x" else "y", color=GRID, linewidth=0.8)
    axis.set_axisbelow(True)
    axis.tick_params(length=0, labelcolor=INK, labelsize=8.5)
    for side, spine in axis.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(GRID)


def save_picture(file: Path, figure: Figure) -> None:
    """Writes a figure, whole or not at all; the ending decides the kind."""
    kind = file.suffix.lower().removeprefix(".")
    with replacing(file) as temporary:
        figure.savefig(temporary, format=kind, dpi=DOTS_PER_INCH)
