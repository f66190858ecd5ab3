"""Command settings in `build.json` and `manifest.json`: conversion to JSON and back."""

from __future__ import annotations

from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from pipeline.toy import TOY
from pipeline.utils.errors import InputError
from pipeline.utils.files import read_json
from teacher_cache.reader.format import PLAN, TOY_IN_CACHES

COMMAND_KEY, MERGED_FROM_KEY = "command", "merged_from"
# Fields that contain a model's name or a path. Paths are stored as absolute ones, so that the
# settings can be used from any working directory.
NAME_OR_PATH_FIELDS = ("clip_model", "clip_weights", "detector_weights", "vocabulary")
# Fields that are stored only with another value than their default, so that `build.json` keeps the
# bytes that it had before these fields existed.
OPTIONAL_FIELDS = (
    "detector_settings",
    "teacher_settings",
    "teacher",
    "sentences",
    "retry_failed",
)
# A field of older rescored caches. It is gone, and with this value it had no effect.
REMOVED_FIELD = ("fitted_to", None)
# Fields whose keys in format 1 differ from their present names.
STORED_NAMES = {"extraction": "asking"}
# The toy detector's name in format 1.
STORED_VALUES = {("detector", TOY): TOY_IN_CACHES}
FIELD_VALUES = {(name, stored): value for (name, value), stored in STORED_VALUES.items()}
FIELD_NAMES = {stored: name for name, stored in STORED_NAMES.items()}
Config = TypeVar("Config")


def to_settings(command: str, config: Any) -> dict[str, Any]:
    """The configuration of a command as a JSON object with absolute paths.

    Args:
        command: subcommand of `eoid-cache`.
        config: a dataclass of plain values, paths, tuples and further such dataclasses.
    """
    defaults = {each.name: each.default for each in fields(config) if each.name in OPTIONAL_FIELDS}
    values = {
        STORED_NAMES.get(name, name): _replaced(name, value, STORED_VALUES)
        for name, value in asdict(config).items()
        if name not in defaults or value != defaults[name]
    }
    return {COMMAND_KEY: command, **_to_json(values)}


def from_settings(settings: dict[str, Any], kind: type[Config], file: Path) -> Config:
    """The configuration of which `to_settings` made these settings.

    Args:
        settings: the JSON object.
        kind: class of the configuration.
        file: named in errors.

    Raises:
        InputError: the settings do not fit the class, as those of another version may not.
    """
    values = {
        FIELD_NAMES.get(name, name): _replaced(name, value, FIELD_VALUES)
        for name, value in settings.items()
        if name not in (COMMAND_KEY, MERGED_FROM_KEY) and (name, value) != REMOVED_FIELD
    }
    try:
        return _from_json(values, kind)
    except (TypeError, ValueError, KeyError) as error:
        raise InputError(
            f"{file}: settings: expected those of {kind.__name__}, found others ({error})"
        ) from None


def read_settings(folder: Path, manifest: dict[str, Any]) -> dict[str, Any]:
    """The settings of a finished cache; empty if neither its manifest nor its plan has any."""
    if "settings" not in manifest and (folder / PLAN).is_file():
        manifest = read_json(folder / PLAN)
    settings = manifest.get("settings") if isinstance(manifest, dict) else None
    return settings if isinstance(settings, dict) else {}


def absolute_if_exists(name: str) -> str:
    """The absolute path of an existing file or folder; other strings, such as a model's name,
    unchanged. "toy" is always the name, because datasets are often in a folder `toy`."""
    return str(Path(name).absolute()) if name != TOY and Path(name).exists() else name


def _replaced(name: str, value: Any, values: dict[tuple[str, str], str]) -> Any:
    return values.get((name, value), value) if isinstance(value, str) else value


def _to_json(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            key: absolute_if_exists(entry)
            if key in NAME_OR_PATH_FIELDS and entry is not None
            else _to_json(entry)
            for key, entry in value.items()
        }
    if isinstance(value, tuple):
        return [_to_json(entry) for entry in value]
    return str(value.absolute()) if isinstance(value, Path) else value


def _from_json(value: Any, kind: Any) -> Any:
    """Converts a JSON value to the type of a field: a dataclass, tuple, path or plain value."""
    if get_origin(kind) in (Union, UnionType):
        if value is None and NoneType in get_args(kind):
            return None
        (kind,) = (each for each in get_args(kind) if each is not NoneType)
    if isinstance(kind, type) and is_dataclass(kind):
        hints = get_type_hints(kind)
        unknown = value.keys() - {each.name for each in fields(kind)}
        if unknown:
            raise KeyError(", ".join(sorted(unknown)))
        return kind(**{name: _from_json(entry, hints[name]) for name, entry in value.items()})
    if get_origin(kind) is tuple:
        return tuple(_from_json(entry, get_args(kind)[0]) for entry in value)
    return Path(value) if kind is Path else value
