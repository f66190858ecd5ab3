"""Running a benchmark as a program: bad input is one line and exit code 2, as of the commands."""

import argparse
import json
from collections.abc import Callable
from typing import Any, NoReturn

import click

from pipeline.utils.cli import run_command
from pipeline.utils.config_fields import list_settings
from student.config import RECIPE_PARTS


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


def recipe_setting(text: str) -> tuple[str, Any]:
    """NAME=VALUE on the command line: a field of the recipe, and a value in JSON."""
    name, equals, value = text.partition("=")
    kinds = {
        name: kind
        for part in RECIPE_PARTS.values()
        for name, (_, kind) in list_settings(part).items()
    }
    if not equals or name not in kinds:
        expected = "NAME=VALUE with a setting's name, such as hidden_dim=64"
        raise argparse.ArgumentTypeError(f"expected {expected}, found {text}")
    try:
        found = json.loads(value)
    except json.JSONDecodeError:
        found = None
    kind = kinds[name]
    # A bool is an int of Python, and an int a valid float.
    if type(found) is not kind and not (kind is float and type(found) is int):
        raise argparse.ArgumentTypeError(
            f'{name}: expected a value of type {kind.__name__} in JSON, such as 1, true or "text",'
            f" found {value}"
        )
    return name, found
