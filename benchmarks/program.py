"""Running a benchmark as a program: bad input is one line and exit code 2, as of the commands."""

from collections.abc import Callable
from typing import NoReturn

import click

from pipeline.utils.cli import run_command


def run_main(main: Callable[[], None]) -> NoReturn:
    """Runs the entry point of a benchmark, which reads its options from `sys.argv`."""
    words = click.Argument(["words"], nargs=-1, type=click.UNPROCESSED)
    command = click.Command(
        None,
        callback=lambda words: main(),
        params=[words],
        add_help_option=False,
        context_settings={"ignore_unknown_options": True},
    )
    run_command(command)
