"""The command that made a cache, kept in it so that what is lost can be made again."""

from __future__ import annotations

from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from pipeline.errors import InputError
from pipeline.files import read_json
from teacher_cache.format import PLAN

COMMAND, MERGED_FROM = "command", "merged_from"
# These may name a model or a file; a file must be found from other folders too.
NAMES_OR_FILES = ("clip_model", "clip_weights", "detector_weights", "vocabulary")
# A field of older caches that were rescored, with the value that means what is done today.
GONE = ("fitted_to", None)
Config = TypeVar("Config")


def to_settings(command: str, config: Any) -> dict[str, Any]:
    """The JSON form of a command's configuration, its files named absolutely.

    Args:
        command: of `eoid-cache`.
        config: a dataclass of plain values, paths, tuples and further such dataclasses.
    """
    return {COMMAND: command, **_plain(asdict(config))}


def from_settings(settings: dict[str, Any], kind: type[Config], file: Path) -> Config:
    """The configuration again.

    Args:
        settings: what `to_settings` made.
        kind: the configuration's class.
        file: named in errors.

    Raises:
        InputError: these are the settings of another version of the command.
    """
    known = {
        name: value
        for name, value in settings.items()
        if name not in (COMMAND, MERGED_FROM) and (name, value) != GONE
    }
    try:
        return _typed(known, kind)
    except (TypeError, ValueError, KeyError) as error:
        raise InputError(
            f"{file}: settings: expected those of {kind.__name__}, found others ({error})"
        ) from None


def held_settings(folder: Path, manifest: dict[str, Any]) -> dict[str, Any]:
    """The settings in a finished cache; empty where nobody kept them."""
    if "settings" not in manifest and (folder / PLAN).is_file():
        manifest = read_json(folder / PLAN)
    settings = manifest.get("settings") if isinstance(manifest, dict) else None
    return settings if isinstance(settings, dict) else {}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            key: _plain(_absolute(entry) if key in NAMES_OR_FILES else entry)
            for key, entry in value.items()
        }
    if isinstance(value, tuple):
        return [_plain(entry) for entry in value]
    return str(value.absolute()) if isinstance(value, Path) else value


def _absolute(name: str | None) -> str | None:
    return str(Path(name).absolute()) if name is not None and Path(name).exists() else name


def _typed(value: Any, kind: Any) -> Any:
    if get_origin(kind) in (Union, UnionType):
        if value is None and NoneType in get_args(kind):
            return None
        (kind,) = (each for each in get_args(kind) if each is not NoneType)
    if isinstance(kind, type) and is_dataclass(kind):
        hints = get_type_hints(kind)
        unknown = value.keys() - {each.name for each in fields(kind)}
        if unknown:
            raise KeyError(", ".join(sorted(unknown)))
        return kind(**{name: _typed(entry, hints[name]) for name, entry in value.items()})
    if get_origin(kind) is tuple:
        return tuple(_typed(entry, get_args(kind)[0]) for entry in value)
    return Path(value) if kind is Path else value
