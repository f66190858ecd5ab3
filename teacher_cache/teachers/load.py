"""Loads teachers by name: those of this package, and users' own by `module:Class`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from pipeline.utils import plugins
from pipeline.utils.errors import InputError
from pipeline.utils.plugins import absolute_class_name, is_class_name, load_class
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
        folder: where `module` may be found besides the installed packages.
    """

    name: str = DEFAULT_TEACHER
    settings: tuple[tuple[str, str], ...] = ()
    folder: str | None = None


def parse_settings(texts: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """Names and values of `--teacher-set KEY=VALUE`; see `pipeline.utils.plugins`."""
    return tuple(plugins.parse_settings(SETTINGS, texts).items())


def load_teacher(config: TeacherConfig, device: torch.device) -> Teacher:
    """Loads a teacher. The code of a user's own runs, which the user must have named.

    Raises:
        InputError: there is no such class, or its settings or weights are wrong.
    """
    settings = dict(config.settings)
    teacher = find_teacher_class(config).from_settings(settings, device)
    teacher.settings = settings
    return teacher


def find_teacher_class(config: TeacherConfig) -> type[Teacher]:
    """Imports a teacher's class.

    Raises:
        InputError: there is no such module or class, or it is no `Teacher`.
    """
    name = TEACHERS.get(config.name, config.name)
    if not is_class_name(name):
        expected = f"{', '.join(TEACHERS)} or module:Class"
        raise InputError(f"{OPTION}: expected {expected}, found {config.name}")
    found = load_class(OPTION, absolute_class_name(name, config.folder))
    if not issubclass(found, Teacher):
        expected = f"a subclass of {Teacher.__name__}"
        raise InputError(f"{OPTION}: expected {expected}, found {config.name}")
    return found
