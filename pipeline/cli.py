"""The `eoid-data` command."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import cloup

from pipeline.utils.cli import HELP_SETTINGS, run_command
from pipeline.utils.cli_options import FloatRange, PathType, config_option, option
from pipeline.utils.errors import InputError
from pipeline.utils.text import count_noun


@cloup.group(context_settings=HELP_SETTINGS)
def data() -> None:
    """Datasets: write the toy dataset, check a dataset folder, convert labels."""


@data.command()
@click.argument("folder", metavar="DIR", type=PathType())
@option("--train", default=3000, show_default=True, help="Number of training images.")
@option("--test", default=500, show_default=True, help="Number of test images.")
@option("--seed", default=0, show_default=True, help="Seed of the images.")
@option(
    "--layout",
    type=click.Choice(["hico", "swig"]),
    default="hico",
    show_default=True,
    help="Layout of the files: HICO-DET's or SWIG-HOI's.",
)
@option("--overwrite", is_flag=True, help="Replace another toy dataset in DIR.")
@config_option
def toy(folder: Path, train: int, test: int, seed: int, layout: str, overwrite: bool) -> None:
    """Write the toy dataset into DIR, in HICO-DET's or SWIG-HOI's layout."""
    from pipeline.toy.generate import write_toy

    written = write_toy(folder, train, test, seed, overwrite, layout=layout)
    if written:
        click.echo(
            f"wrote the toy dataset in {folder}: {train} training and"
            f" {count_noun(test, 'test images')}"
        )
    else:
        click.echo(f"{folder}: the toy dataset is already there, nothing to do")


@data.command()
@click.argument("folder", metavar="DIR", type=PathType())
@option("--strict", is_flag=True, help="Refuse annotation issues instead of repairing them.")
@config_option
def check(folder: Path, strict: bool) -> None:
    """Check the dataset in DIR: reads all annotations and annotated images.

    Ends with exit code 2 where something must be corrected. Annotation issues that are repaired
    when the dataset is used are only reported, unless --strict refuses them.
    """
    from pipeline.datasets.check import check_dataset, format_check, summarise_problems
    from pipeline.datasets.dataset import open_dataset

    dataset = open_dataset(folder)
    checks = check_dataset(dataset, strict)
    click.echo(format_check(dataset, checks))
    problem = summarise_problems(checks)
    if problem:
        raise InputError(f"{folder}: {problem}")


@data.command()
@click.argument("form", metavar="FORM", type=click.Choice(["label-studio"]))
@click.argument("export", type=PathType())
@click.argument("out", type=PathType())
@option("--images", type=PathType(), required=True, help="Folder of the images.")
@option(
    "--vocabulary",
    type=PathType(),
    show_default="vocabulary.json in OUT",
    help="Name or file of a vocabulary; a file that does not exist is written with all labels of"
    " EXPORT.",
)
@option(
    "--test-size",
    type=FloatRange(min=0),
    default=0.2,
    show_default=True,
    help="Images of the test part: a fraction below 1, or their number.",
)
@option("--seed", default=0, show_default=True, help="Selects the images of the test part.")
@option("--strict", is_flag=True, help="Refuse what is otherwise repaired or left out.")
@option("--overwrite", is_flag=True, help="Replace the files of a dataset in OUT.")
@config_option
def convert(form: str, export: Path, out: Path, **settings: Any) -> None:
    """Write a dataset folder OUT with the labels of EXPORT, a labelling tool's file.

    FORM is label-studio: the export form JSON. Rectangles are boxes, and relations from a person's
    rectangle to another one are pairs, whose labels are the actions.
    """
    from pipeline.datasets.label_studio import convert_label_studio

    counts = convert_label_studio(export, out, **settings)
    click.echo(f"{out}: " + ", ".join(count_noun(count, name) for name, count in counts.items()))


def main() -> None:
    """Entry point of `eoid-data`."""
    run_command(data)
