"""Settings of a command: `--config FILE`, `--set KEY=VALUE`, and the commented configuration file.

A setting is an option of the command, shown in `--help` or hidden there because it is rarely
needed. The command line wins over `--set`, `--set` over the file, the file over the default.
"""

from __future__ import annotations

import json
import logging
import math
import os
import platform
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from functools import wraps
from pathlib import Path
from typing import Any

import click
import cloup
from click.core import ParameterSource

from pipeline.utils.config_fields import Setting, is_choice
from pipeline.utils.errors import InputError, bad_field
from pipeline.utils.logging import get_logger, log_to_stderr

# Options that say where settings come from; they are no settings themselves.
SOURCES = ("config", "set")
# Where a context keeps the settings of each source until all are read.
VALUES = "pipeline.utils.cli_options"
TOML_WIDTH = 100
# Largest number of settings that are all named in the error about an unknown one.
MAX_NAMES = 20


class Option(cloup.Option):
    """An option whose default, where it is given as a text, stands in `--help` as it is."""

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        record = super().get_help_record(ctx)
        if record is None or not isinstance(self.show_default, str):
            return record
        return record[0], record[1].replace(f"({self.show_default})", self.show_default)


class PathType(click.Path):
    """`click.Path` that converts to `Path` and refuses an empty text, as unset variables of a shell
    give; as a path that would be the current folder. `path_type=str` keeps a "./"."""

    def __init__(self, path_type: type = Path, **attributes: Any) -> None:
        super().__init__(path_type=path_type, **attributes)

    def convert(
        self, value: Any, parameter: click.Parameter | None, context: click.Context | None
    ) -> Any:
        if not os.fspath(value):
            self.fail("expected a path, found an empty text.", parameter, context)
        return super().convert(value, parameter, context)


class SettingChoice(click.Choice):
    """The choices of a `Setting`, of which one may stand for all values with its beginning."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return value if is_choice(value, self.choices) else super().convert(value, param, ctx)


class FieldOption(Option):
    """An option of a dataclass field, whose name is a key as well as the option's."""


class FloatRange(click.FloatRange):
    """A range of finite numbers; click's own passes NaN, and infinity where it has no bound."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"expected a {describe_type(self)}, found {value}.", param, ctx)
        return number


def option(*names: str, **attributes: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """`click.option` with an `Option` and short names of number types."""
    for kind, metavar in ((click.IntRange, "INT"), (click.FloatRange, "FLOAT")):
        if isinstance(attributes.get("type"), kind):
            attributes.setdefault("metavar", metavar)
    return cloup.option(*names, **{"cls": Option, **attributes})


def config_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds `--config FILE` and `--set KEY=VALUE`, which set any option, and `logging_options`."""
    command = logging_options(command)
    for decorator in (
        option(
            "--set",
            multiple=True,
            metavar="KEY=VALUE",
            is_eager=True,
            expose_value=False,
            callback=_apply_assignments,
            help=(
                "Set a setting by its name, as in the TOML file. Can be given several times; it"
                " wins over --config."
            ),
        ),
        option(
            "--config",
            type=PathType(dir_okay=False),
            is_eager=True,
            expose_value=False,
            callback=_apply_file,
            help="TOML file with settings; the command line wins.",
        ),
    ):
        command = decorator(command)
    return command


def logging_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds `--verbose` and `--quiet`, and shows log records on stderr while the command runs."""

    @option("--verbose", is_flag=True, help="Also print debug messages, with logger names.")
    @option("--quiet", is_flag=True, help="Print only warnings and results, no progress.")
    @wraps(command)
    def with_logging(*args: Any, verbose: bool, quiet: bool, **options: Any) -> Any:
        if verbose and quiet:
            raise click.UsageError("--verbose and --quiet exclude each other.")
        level = logging.DEBUG if verbose else logging.WARNING if quiet else logging.INFO
        with log_to_stderr(level):
            if verbose:
                from importlib.metadata import version

                program = click.get_current_context().command_path
                get_logger(__name__).debug(
                    f"{program} of eoid {version('eoid')}, Python {platform.python_version()}"
                )
            return command(*args, **options)

    return with_logging


def describe_hidden_settings(config_command: str) -> str:
    """The end of the `--help` of a command that hides settings, which `config_command` prints."""
    return (
        f"Settings that are rarely changed are not shown here. `{config_command}` prints all of"
        " them as a TOML file for --config; --set KEY=VALUE sets a single one."
    )


def _apply_file(context: click.Context, _: click.Parameter, path: Path | None) -> None:
    if path is None:
        return
    from pipeline.utils.files import read_toml

    values: dict[str, Any] = {}
    spellings: dict[str, str] = {}
    for key, value in read_toml(path).items():
        if isinstance(value, dict):
            raise bad_field(path, key, "settings outside of tables", "a table")
        option = _find_setting(context, path, key)
        name = option.name or key
        if name in values:
            # TOML itself refuses only the same spelling twice.
            raise bad_field(path, key, "every setting once", f"{spellings[name]} too")
        values[name], spellings[name] = _to_option_value(context, option, path, key, value), key
    _apply(context, "config", values)


def _apply_assignments(
    context: click.Context, _: click.Parameter, assignments: Sequence[str]
) -> None:
    values: dict[str, Any] = {}
    for assignment in assignments:
        key, separator, text = assignment.partition("=")
        key = key.strip()
        if not key or not separator:
            raise InputError(f"--set: expected KEY=VALUE, found {assignment}")
        option = _find_setting(context, "--set", key)
        given: Any = _parse_text(option, text.strip())
        value = _to_option_value(context, option, "--set", key, given)
        name = option.name or key
        if option.multiple:
            value = [*values.get(name, []), *(value if isinstance(value, list) else [value])]
        values[name] = value
    _apply(context, "set", values)


def _apply(context: click.Context, source: str, values: dict[str, Any]) -> None:
    """Makes values the defaults of a command's options, whichever source is read first."""
    read: dict[str, dict[str, Any]] = context.meta.setdefault(VALUES, {})
    read[source] = values
    context.default_map = {
        **(context.default_map or {}),
        **read.get("config", {}),
        **read.get("set", {}),
    }


def settings_of_file(context: click.Context) -> dict[str, Any]:
    """The values of `--config FILE` by parameter name; empty without a file."""
    return dict(context.meta.get(VALUES, {}).get("config", {}))


def setting_rank(context: click.Context, name: str) -> int:
    """Where a parameter's value is from: 3 the command line, 2 `--set`, 1 a file, 0 the default."""
    source = context.get_parameter_source(name)
    if source is ParameterSource.COMMANDLINE:
        return 3
    if source is ParameterSource.DEFAULT_MAP:
        return 2 if name in context.meta.get(VALUES, {}).get("set", {}) else 1
    return 0


def _settings(command: click.Command) -> list[click.Option]:
    """All options but those that only say where settings come from."""
    return [
        option
        for option in command.params
        if isinstance(option, click.Option) and option.name not in SOURCES
    ]


def _key(option: click.Option) -> str:
    """The option's long name, as configuration files have it."""
    return max(option.opts, key=len).lstrip("-")


def _find_setting(context: click.Context, source: object, key: str) -> click.Option:
    """The option with this key: its long name, or the name of its dataclass field."""
    options = {}
    for option in _settings(context.command):
        spellings = [text[2:] for text in option.opts if text.startswith("--")]
        if isinstance(option, FieldOption):
            spellings.append(option.name or "")
        options.update({text.replace("-", "_"): option for text in spellings})
    name = key.replace("-", "_")
    if name in options:
        return options[name]
    expected = f"a setting of {context.command_path}"
    similar = get_close_matches(name, options)
    if not similar and len(options) <= MAX_NAMES:
        similar = sorted(options)
    if similar:
        names = ", ".join(text.replace("_", "-") for text in similar)
        expected += f", such as {names}"
    raise bad_field(source, key, expected, "an unknown one")


def _parse_text(option: click.Option, text: str) -> Any:
    """The value of a `KEY=VALUE` as a configuration file would give it."""
    if option.is_flag:
        return {"true": True, "false": False}.get(text.lower(), text)
    if (option.multiple or option.nargs != 1) and text.startswith("["):
        try:
            return json.loads(text)
        except ValueError:
            raise bad_field("--set", _key(option), 'a list such as ["a", "b"]', text) from None
    return text


def _to_option_value(
    context: click.Context, option: click.Option, source: object, key: str, value: Any
) -> Any:
    """A value, checked as if it had been typed on the command line."""
    if option.is_flag:
        if not isinstance(value, bool):
            raise bad_field(source, key, "true or false", value)
        return value
    takes_list = option.multiple or option.nargs != 1
    values = value if takes_list and isinstance(value, list) else [value]
    if any(isinstance(entry, (bool, dict, list)) for entry in values):
        raise bad_field(source, key, "a list of values" if takes_list else "one value", value)
    texts = [str(entry) for entry in values]
    result = texts if takes_list else texts[0]
    try:
        option.type_cast_value(context, result)
    except click.BadParameter as error:
        expected = describe_type(option.type) or f"{option.type.name} ({error.message})"
        raise bad_field(source, key, expected, value) from None
    return result


def setting_option(
    name: str, described: Setting, kind: type, default: str, hidden: bool
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """The option of a dataclass field made with `setting`; without a value it is None."""
    spelling = (described.option or name).replace("_", "-")
    value_type: click.ParamType | None = None
    if described.choices:
        value_type = SettingChoice(described.choices)
    elif kind in (int, float):
        value_range = click.IntRange if kind is int else FloatRange
        value_type = value_range(
            described.low,  # type: ignore[arg-type]
            described.high,  # type: ignore[arg-type]
            described.low_open,
            described.high_open,
        )
    return option(
        f"--{spelling}/--no-{spelling}" if kind is bool else f"--{spelling}",
        name,
        cls=FieldOption,
        type=value_type,
        default=None,
        show_default=default,
        help=described.help,
        hidden=hidden,
    )


def format_config(
    command: click.Command, title: str, defaults: Mapping[str, Any] | None = None
) -> str:
    """A commented TOML file of all settings of a command, with their defaults.

    Settings that are required or have no fixed default are commented out. `defaults` replaces
    options' own defaults, by the parameters' names.
    """
    context = click.Context(command)
    lines = [f"# {title}"]
    for heading, options in _sections(command):
        lines += ["", "", f"# ---- {heading} ----"]
        for option in options:
            value = (defaults or {}).get(option.name or "", option.get_default(context))
            text = _to_toml(value)
            if text is None and option.is_flag and not option.secondary_opts:
                text = "false"
            comment = textwrap.wrap(_describe(option, text), TOML_WIDTH - 2)
            setting = f"# {_key(option)} = ..." if text is None else f"{_key(option)} = {text}"
            lines += ["", *(f"# {line}" for line in comment), setting]
    return "\n".join(lines) + "\n"


def _describe(option: click.Option, text: str | None) -> str:
    """Meaning, values and, where it is not written out, the default of a setting."""
    value_type, values = option.type, ""
    if option.is_flag:
        values = "true or false"
    elif not isinstance(value_type, (click.types.StringParamType, click.Path)):
        values = describe_type(value_type) or value_type.name
    if option.multiple:
        values = f"{values}, or a list of them" if values else "A text, or a list of texts"
    parts = [option.help or "", values[:1].upper() + values[1:]]
    if option.required:
        parts.append("Required")
    elif text is None and isinstance(option.show_default, str):
        parts.append(f"Default: {option.show_default}")
    return " ".join(f"{part.rstrip('.')}." for part in parts if part)


def describe_type(value_type: click.ParamType) -> str:
    """The values of a choice or number type in words; "" for other types."""
    if isinstance(value_type, click.Choice):
        return f"one of {', '.join(value_type.choices)}"
    if isinstance(value_type, click.types.IntParamType):
        words = ["integer"]
    elif isinstance(value_type, click.types.FloatParamType):
        bounds = getattr(value_type, "min", None), getattr(value_type, "max", None)
        words = ["finite number" if None in bounds else "number"]
    else:
        return ""
    if isinstance(value_type, (click.IntRange, click.FloatRange)):
        if value_type.min is not None:
            words.append(f"{'above' if value_type.min_open else 'at least'} {value_type.min:g}")
        if value_type.max is not None:
            words.append(f"{'below' if value_type.max_open else 'at most'} {value_type.max:g}")
    return ", ".join(words)


def _to_toml(value: Any) -> str | None:
    """A default as a TOML value; None where there is none."""
    if isinstance(value, (bool, int, float, str)):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, (list, tuple)) and value:
        return f"[{', '.join(filter(None, map(_to_toml, value)))}]"
    return None


def _sections(command: click.Command) -> Iterator[tuple[str, list[click.Option]]]:
    """Headings and settings, in the order of `--help`."""
    groups = getattr(command, "option_groups", [])
    grouped = {option.name for group in groups for option in group}
    for group in groups:
        yield group.title, list(group)
    rest = [option for option in _settings(command) if option.name not in grouped]
    if rest:
        yield "Other", rest
