"""The `eoid-data` command, and what all commands share: one-line errors, exit codes, --config."""

from __future__ import annotations

from pathlib import Path

import click

from pipeline.utils.cli import config_option, run_command
from pipeline.utils.errors import InputError


@click.group()
def data() -> None:
    """Datasets: draw the embedded world, check a folder."""


@data.command()
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--train", default=3000, show_default=True, help="Number of training pictures.")
@click.option("--test", default=500, show_default=True, help="Number of test pictures.")
@click.option("--seed", default=0, show_default=True, help="Another seed, another world.")
@click.option("--overwrite", is_flag=True, help="Replace another world in DIR.")
@config_option
def world(folder: Path, train: int, test: int, seed: int, overwrite: bool) -> None:
    """Draw the embedded world into DIR, in HICO-DET's layout."""
    from pipeline.toy.generate import write_world

    written = write_world(folder, train, test, seed, overwrite)
    done = "wrote" if written else "already there:"
    click.echo(f"{done} the world in {folder}: {train} training and {test} test pictures")


@data.command()
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--strict", is_flag=True, help="Refuse blemishes of the annotation files.")
@config_option
def check(folder: Path, strict: bool) -> None:
    """Say what is wrong with the dataset in DIR: reads all annotations and annotated pictures.

    Ends with 2 where something must be mended; blemishes that are clipped or dropped in use are
    only told, unless --strict refuses them.
    """
    from pipeline.datasets.check import check_dataset, summary, table
    from pipeline.datasets.dataset import open_dataset

    dataset = open_dataset(folder)
    checks = check_dataset(dataset, strict)
    click.echo(table(dataset, checks))
    problem = summary(checks)
    if problem:
        raise InputError(f"{folder}: {problem}")


def main() -> None:
    """Entry point of `eoid-data`."""
    run_command(data)
