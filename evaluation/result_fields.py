"""Fields of results files, read with a check of what they hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.errors import bad_field


def typed_field(
    path: Path | str, value: dict[str, Any], name: str, kind: type, expected: str
) -> Any:
    """A field of a type.

    Args:
        kind: the type.
        expected: what an error says was expected.

    Raises:
        InputError: it is missing or of another type.
    """
    if not isinstance(value.get(name), kind):
        raise bad_field(path, name, expected, value.get(name))
    return value[name]


def numbers(
    path: Path | str, value: dict[str, Any], name: str, optional: bool = False
) -> dict[str, float | None]:
    """A table of numbers by name.

    Args:
        optional: null is a number too.

    Raises:
        InputError: it is missing, no table, or a value is no number.
    """
    table = typed_field(path, value, name, dict, "numbers by name")
    for key, number in table.items():
        if not (isinstance(number, int | float) or (optional and number is None)):
            raise bad_field(path, f"{name}.{key}", "a number", number)
    return table
