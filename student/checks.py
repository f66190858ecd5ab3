"""Range checks of settings; every wrong one is a line that names the field."""

from __future__ import annotations

from pipeline.errors import InputError


def one_of(name: str, value: str, choices: tuple[str, ...]) -> None:
    """The value is one of the choices.

    Raises:
        InputError: it is none of them.
    """
    if value not in choices:
        raise InputError(f"{name}: expected one of {', '.join(choices)}, found {value}")


def at_least(name: str, value: float, least: float) -> None:
    """The value is a number that reaches the least one.

    Raises:
        InputError: it is smaller, or not a number.
    """
    if not value >= least:
        raise InputError(f"{name}: expected at least {least}, found {value}")


def between(name: str, value: float, low: float, high: float) -> None:
    """The value is a number from low to high, both included.

    Raises:
        InputError: it lies outside, or is not a number.
    """
    if not low <= value <= high:
        raise InputError(f"{name}: expected a number from {low} to {high}, found {value}")


def below(name: str, value: float, low: float, end: float) -> None:
    """The value is a number from low up to, but not reaching, the end.

    Raises:
        InputError: it lies outside, or is not a number.
    """
    if not low <= value < end:
        raise InputError(f"{name}: expected a number from {low} to below {end}, found {value}")
