"""Loads teachers by name: those of this package, and users' own by `module:Class`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import torch

from pipeline.utils.errors import InputError
from pipeline.utils.files import sha256_of_file, sha256_of_json
from teacher_cache.teachers.base import Teacher

DEFAULT_TEACHER = "open_clip"
# Modules are imported when a teacher of theirs is used.
TEACHERS = {DEFAULT_TEACHER: "teacher_cache.teachers.clip:ClipTeacher"}


@dataclass(frozen=True)
class TeacherConfig:
    """From which any process loads the same teacher.

    Attributes:
        name: a name of `TEACHERS`, or `module:Class`.
        settings: names and values of the teacher's settings.
        folder: where `module` may be found besides the installed packages.
    """

    name: str = DEFAULT_TEACHER
    settings: tuple[tuple[str, str], ...] = ()
    folder: str | None = None


def parse_settings(texts: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """Names and values of `--teacher-set KEY=VALUE`; of a repeated name the last value.

    Raises:
        InputError: a text has another form.
    """
    settings = {}
    for text in texts:
        name, separator, value = text.partition("=")
        if not name.strip() or not separator:
            raise InputError(f"--teacher-set: expected KEY=VALUE, found {text}")
        settings[name.strip()] = value.strip()
    return tuple(settings.items())


def load_teacher(config: TeacherConfig, device: torch.device) -> Teacher:
    """Loads a teacher. The code of a user's own runs, which the user must have named.

    Raises:
        InputError: there is no such class, or its settings or weights are wrong.
    """
    teacher = find_teacher_class(config).from_settings(dict(config.settings), device)
    teacher.settings = {name: _setting_digest(value) for name, value in config.settings}
    return teacher


def find_teacher_class(config: TeacherConfig) -> type[Teacher]:
    """Imports a teacher's class.

    Raises:
        InputError: there is no such module or class, or it is no `Teacher`.
    """
    module, _, name = TEACHERS.get(config.name, config.name).partition(":")
    expected = f"--teacher: expected {', '.join(TEACHERS)} or module:Class"
    if not module or not name:
        raise InputError(f"{expected}, found {config.name}")
    if config.folder is not None and config.folder not in sys.path:
        # At the end, so that files of the working folder do not replace installed packages.
        sys.path.append(config.folder)
    try:
        found = getattr(import_module(module), name, None)
    except ImportError as error:
        raise InputError(f"{expected}, found {config.name} ({error})") from None
    if not isinstance(found, type) or not issubclass(found, Teacher):
        raise InputError(f"{expected} with a subclass of {Teacher.__name__}, found {config.name}")
    return found


def _setting_digest(value: str) -> str:
    """A setting in the fingerprint: of a file or folder the content, as it may be moved."""
    path = Path(value)
    if path.is_file():
        return sha256_of_file(path)
    if path.is_dir():
        files = sorted(each for each in path.rglob("*") if each.is_file())
        return sha256_of_json(
            [[str(each.relative_to(path)), sha256_of_file(each)] for each in files]
        )
    return value
