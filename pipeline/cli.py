"""The `eoid-data` command, and what all commands share: one-line errors, exit codes, --config."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import click

from pipeline.errors import InputError

EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130

device_option = click.option(
    "--device",
    default="auto",
    show_default=True,
    metavar="auto|cpu|cuda[:i]",
    help="Where the models run; auto takes a GPU when there is one.",
)


def config_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds `--config FILE`: a TOML file in which any option may stand; the command line wins."""
    return click.option(
        "--config",
        type=click.Path(dir_okay=False, path_type=Path),
        is_eager=True,
        expose_value=False,
        callback=_take_defaults,
        help="TOML file with options; the command line wins.",
    )(command)


def _take_defaults(context: click.Context, _: click.Parameter, path: Path | None) -> None:
    if path is None:
        return
    from pipeline.toml import read_toml

    values = {key.replace("-", "_"): value for key, value in read_toml(path).items()}
    options = {
        name: parameter
        for parameter in context.command.params
        for name in [parameter.name or ""]
        if name and name != "config"
    }
    for key in values:
        if key not in options:
            raise InputError(
                f"{path}: {key}: expected an option of {context.command_path},"
                f" one of {', '.join(sorted(options))}"
            )
    context.default_map = {**(context.default_map or {}), **values}


def run_command(command: click.Command) -> NoReturn:
    """Runs a command line: bad input is one line on stderr and exit 2, an interrupt exit 130."""
    program = Path(sys.argv[0]).name
    try:
        command.main(standalone_mode=False)
    except (InputError, click.ClickException) as error:
        message = error.format_message() if isinstance(error, click.ClickException) else str(error)
        print(f"{program}: {' '.join(message.split())}", file=sys.stderr)
        sys.exit(EXIT_BAD_INPUT)
    except (KeyboardInterrupt, click.Abort):
        print(f"{program}: interrupted; the same command goes on from here", file=sys.stderr)
        sys.exit(EXIT_INTERRUPTED)
    sys.exit(0)


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
    from pipeline.world.write import write_world

    written = write_world(folder, train, test, seed, overwrite)
    done = "wrote" if written else "already there:"
    click.echo(f"{done} the world in {folder}: {train} training and {test} test pictures")


def main() -> None:
    """Entry point of `eoid-data`."""
    run_command(data)
