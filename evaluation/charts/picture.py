"""A single chart as a file."""

from __future__ import annotations

from pathlib import Path

from evaluation.charts.look import Draw, drawn, require
from evaluation.palette import LIGHT
from pipeline.errors import InputError
from pipeline.files import refuse_existing, replacing

KINDS = (".png", ".svg", ".pdf")
DOTS_PER_INCH = 150


def check_picture(file: Path, overwrite: bool) -> None:
    """Tells what would keep a picture from being written, before the work for it is done.

    Raises:
        InputError: matplotlib is missing, the name has an unknown ending, or the file is there.
    """
    if file.suffix.lower() not in KINDS:
        raise InputError(f"{file}: expected a name that ends in {', '.join(KINDS)}")
    refuse_existing(file, overwrite)
    require("a picture", "matplotlib")


def save_picture(file: Path, draw: Draw) -> None:
    """Draws and writes a chart, whole or not at all; the ending decides the kind."""
    figure = drawn(draw, LIGHT)
    kind = file.suffix.lower().removeprefix(".")
    with replacing(file) as temporary:
        figure.savefig(temporary, format=kind, dpi=DOTS_PER_INCH, facecolor=LIGHT["card"])
