"""Options of `eoid-train student` that say what it learns from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

PATH = click.Path(path_type=Path)
OPTIONS = (
    click.option("--data", required=True, type=PATH, help="Dataset folder."),
    click.option("--cache", required=True, type=PATH, help="Teacher cache of its training part."),
    click.option("--split", required=True, help="Zero-shot split: a name or a TOML file."),
    click.option(
        "--extra",
        multiple=True,
        metavar="DATASET:CACHE",
        help="Further training images, labelled or not, with their cache; may be repeated.",
    ),
    click.option(
        "--mix",
        type=click.FloatRange(0, 1, min_open=True, max_open=True),
        help="Share of --extra's images in every step; default: their share of all images.",
    ),
    click.option(
        "--shots",
        type=click.IntRange(min=0),
        help="Labelled pairs of every unseen interaction to train on all the same.",
    ),
    click.option("--shot-seed", type=click.IntRange(min=0), help="Chooses them; default: --seed."),
)


def source_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds these options to a command."""
    for option in reversed(OPTIONS):
        command = option(command)
    return command
