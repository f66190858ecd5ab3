"""The `eoid-data` command."""

from __future__ import annotations

from pathlib import Path

import click
import cloup

from pipeline.utils.cli import HELP_SETTINGS, run_command
from pipeline.utils.cli_settings import config_option, option
from pipeline.utils.errors import InputError


@cloup.group(context_settings=HELP_SETTINGS)
def data() -> None:
    """Datasets: write the toy dataset, check a dataset folder."""


@data.command()
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@option("--train", default=3000, show_default=True, help="Number of training images.")
@option("--test", default=500, show_default=True, help="Number of test images.")
@option("--seed", default=0, show_default=True, help="Seed of the images.")
@option("--overwrite", is_flag=True, help="Replace another toy dataset in DIR.")
@config_option
def toy(folder: Path, train: int, test: int, seed: int, overwrite: bool) -> None:
    """Write the toy dataset into DIR, in HICO-DET's layout."""
    from pipeline.toy.generate import write_toy

    written = write_toy(folder, train, test, seed, overwrite)
    if written:
        click.echo(f"wrote the toy dataset in {folder}: {train} training and {test} test images")
    else:
        click.echo(f"{folder}: the toy dataset is already there, nothing to do")


@data.command()
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
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


def main() -> None:
    """Entry point of `eoid-data`."""
    run_command(data)
