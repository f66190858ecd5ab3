"""Fields of configuration dataclasses that carry their meaning, choices and range.

Checks, command-line options, `--set` and the commented configuration file are all made from them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any, get_type_hints

from pipeline.utils.errors import InputError

# End of a choice that stands for all values with its beginning.
ANY_NAME = "NAME"


@dataclass(frozen=True)
class Setting:
    """What is known about a field besides its name, type and default.

    Attributes:
        help: its meaning, one or two sentences.
        choices: the values of a string; () for any. One such as "timm:NAME" stands for all values
            that begin with "timm:".
        low, high: bounds of a number; None for none.
        low_open, high_open: the bound itself is outside.
        group: heading in `--help` and configuration files; "" for that of its dataclass.
        option: name of the command-line option where it differs from the field's.
        default_text: replaces the default in texts, where that follows from other inputs.
    """

    help: str
    choices: tuple[str, ...] = ()
    low: float | None = None
    high: float | None = None
    low_open: bool = False
    high_open: bool = False
    group: str = ""
    option: str = ""
    default_text: str = ""

    def check(self, name: str, value: Any) -> None:
        """Raises:
        InputError: the value is none of the choices, outside the range, or not a number.
        """
        if self.choices and not is_choice(value, self.choices):
            raise InputError(f"{name}: expected one of {', '.join(self.choices)}, found {value}")
        # Written so that NaN, for which every comparison is false, is refused.
        low_holds = self.low is None or (value > self.low if self.low_open else value >= self.low)
        high_holds = self.high is None or (
            value < self.high if self.high_open else value <= self.high
        )
        if not (low_holds and high_holds):
            raise InputError(f"{name}: expected {self.describe_range()}, found {value}")
        if isinstance(value, float) and not math.isfinite(value):
            raise InputError(f"{name}: expected a finite number, found {value}")

    def describe_range(self) -> str:
        """The range in words; "" for none."""
        if self.low is None:
            return ""
        if self.high is None:
            return f"{'a number above' if self.low_open else 'at least'} {self.low}"
        low = f"{'above' if self.low_open else 'from'} {self.low}"
        return f"a number {low} to {'below ' if self.high_open else ''}{self.high}"


def is_choice(value: Any, choices: Sequence[str]) -> bool:
    """Whether a value is one of the choices, see `Setting`."""
    prefixes = tuple(one.removesuffix(ANY_NAME) for one in choices if one.endswith(ANY_NAME))
    return value in choices or (isinstance(value, str) and value.startswith(prefixes))


def setting(default: Any, help: str, **attributes: Any) -> Any:
    """A dataclass field with a default and the attributes of `Setting`."""
    return field(default=default, metadata={"setting": Setting(help, **attributes)})


def check_settings(config: Any) -> None:
    """Checks all fields of a dataclass instance that are settings; None passes.

    Raises:
        InputError: a value is none of its choices or outside its range.
    """
    for one in fields(config):
        value = getattr(config, one.name)
        if "setting" in one.metadata and value is not None:
            one.metadata["setting"].check(one.name, value)


def list_settings(config: type) -> dict[str, tuple[Setting, type]]:
    """The fields of a dataclass that can be set: name to setting and type, `None` left out."""
    hints = get_type_hints(config)
    found = {}
    for one in fields(config):
        described: Setting | None = one.metadata.get("setting")
        if described is not None:
            hint = hints[one.name]
            kinds = [kind for kind in getattr(hint, "__args__", (hint,)) if kind is not type(None)]
            found[one.name] = (described, kinds[0])
    return found


def check_share(name: str, value: float) -> None:
    """Checks a value that is a share of the images below 1, and their number from 1 on.

    Raises:
        InputError: a number from 1 on is not whole.
    """
    if value >= 1 and value % 1:
        raise InputError(f"{name}: expected a fraction below 1 or a whole number, found {value:g}")
