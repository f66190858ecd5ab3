"""Running a benchmark as a program: bad input is one line and exit code 2, as of the commands."""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
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


def positive_int(text: str) -> int:
    """A number of at least 1 on the command line."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected at least 1, found {value}")
    return value


def json_file(text: str) -> Path:
    """A file on the command line that is written at the end, after hours perhaps."""
    path = Path(text)
    if path.suffix.lower() != ".json" or path.is_dir():
        found = "a folder of this name" if path.is_dir() else text
        raise argparse.ArgumentTypeError(f"expected a file that ends in .json, found {found}")
    return path


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
