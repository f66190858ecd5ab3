"""Loads teachers by name: those of this package, and users' own by `module:Class`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module

import torch

from pipeline.utils.errors import InputError
from pipeline.utils.plugins import (
    absolute_class_name,
    create_own,
    find_class,
    is_class_name,
    parse_settings,
    resolve_settings,
)
from teacher_cache.teachers.base import Teacher

OPTION, SETTINGS = "--teacher", "--teacher-set"
DEFAULT_TEACHER = "open_clip"
# Modules are imported when a teacher of theirs is used.
TEACHERS = {
    DEFAULT_TEACHER: "teacher_cache.teachers.clip:ClipTeacher",
    "vlm": "teacher_cache.teachers.vlm:VlmTeacher",
}


@dataclass(frozen=True)
class TeacherConfig:
    """From which any process loads the same teacher.

    Attributes:
        name: a name of `TEACHERS`, or `module:Class`.
        settings: names and values of the teacher's settings.
    """

    name: str = DEFAULT_TEACHER
    settings: tuple[tuple[str, str], ...] = ()

    @classmethod
    def resolve(cls, name: str, settings: Sequence[str]) -> TeacherConfig:
        """The configuration with absolute paths, for processes with other working folders.

        The module of a user's class is imported.

        Args:
            name: `--teacher`.
            settings: texts KEY=VALUE.

        Raises:
            InputError: a text has another form; and see `find_teacher_class`.
        """
        if name not in TEACHERS and is_class_name(name):
            name = absolute_class_name(name)
        values = parse_settings(SETTINGS, settings)
        values = resolve_settings(find_teacher_class(name), values)
        return cls(name, tuple(values.items()))


def load_teacher(config: TeacherConfig, device: torch.device) -> Teacher:
    """Loads a teacher. The code of a user's own runs, which the user must have named.

    Raises:
        InputError: there is no such class, or its settings or weights are wrong.
    """
    kind, settings = find_teacher_class(config.name), dict(config.settings)
    if config.name in TEACHERS:
        return kind.from_settings(settings, device)
    return create_own(kind, [device], settings)


def find_teacher_class(name: str) -> type[Teacher]:
    """Imports a teacher's class.

    Raises:
        InputError: there is no such module or class, or it is no `Teacher`.
    """
    if name in TEACHERS:
        # Not searched for in the current folder, which may have a copy of this package.
        module, _, kind = TEACHERS[name].partition(":")
        return getattr(import_module(module), kind)
    if not is_class_name(name):
        expected = f"{', '.join(TEACHERS)} or module:Class"
        raise InputError(f"{OPTION}: expected {expected}, found {name}")
    return find_class(Teacher, name)
