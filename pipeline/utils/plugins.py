"""Classes of the user's own modules, named on the command line as `module:Class`.

Naming a class is the permission to run its code. A command must therefore take names of classes
from its own options and configuration file only, never from a cache, a manifest or a run folder.
"""

from __future__ import annotations

import importlib
import json
import re
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from inspect import Parameter, signature
from pathlib import Path
from typing import Any, get_type_hints

from pipeline.utils.errors import InputError
from pipeline.utils.files import sha256_of_file, sha256_of_json
from pipeline.utils.schema import convert

# An optional folder, the module with its packages, and the class.
CLASS_NAME = re.compile(r"(?:(.*)/)?([^\W\d]\w*(?:\.[^\W\d]\w*)*):([^\W\d]\w*)")


def is_class_name(name: str) -> bool:
    """Whether it is `module:Class`, `folder/module:Class` or `folder/module.py:Class`."""
    return CLASS_NAME.fullmatch(name) is not None


def absolute_class_name(name: str, base: str | Path | None = None) -> str:
    """The name with the absolute path of its folder, for processes with other working folders.

    Args:
        base: the folder that relative ones refer to, by default the current one.
    """
    folder, module, kind = _split(name)
    return f"{Path(base or '.', folder).absolute()}/{module}:{kind}"


def confirm_class(
    option: str,
    stored: str | None,
    given: str | None,
    is_class: Callable[[str], bool] = is_class_name,
) -> str | None:
    """The name with which a stored command is repeated: that of the user, who has to name a class.

    A cache may come from anywhere, so its settings alone make no code run.

    Args:
        option: the option of the command, such as "--detector".
        stored: its value in the settings of the cache.
        given: its value now. The folder of a class may be another one.
        is_class: whether a name is that of a user's class.

    Raises:
        InputError: a class is stored that the user does not name, or another name is given.
    """
    # The settings of a cache may be of any type; they are checked later.
    is_own = is_class(str(stored or ""))
    if given == stored or (given is None and not is_own):
        return stored
    if is_own and is_class(str(given)) and _split(str(stored))[1:] == _split(str(given))[1:]:
        return given
    reason = " of the cache, whose code runs only if you name it" if is_own else ""
    raise InputError(f"{option}: expected {stored or 'none'}{reason}, found {given or 'none'}")


def load_class(option: str, name: str) -> type:
    """Imports a class.

    The module is searched for where Python searches, then in the folder of its name, by default the
    current one.

    Args:
        option: the option that named the class, such as "--detector".
        name: see `is_class_name`.

    Raises:
        InputError: the module cannot be imported, or lacks the class.
    """
    folder, module_name, kind_name = _split(name)
    path = str(folder.absolute())
    # Behind the installed packages, of which a file in the folder must not replace one by chance.
    # It stays there, because the module may import its neighbours later.
    if path not in sys.path:
        sys.path.append(path)
    importlib.invalidate_caches()
    try:
        module = importlib.import_module(module_name)
    # The code of a module may raise anything.
    except Exception as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        where = "" if "importlib" in frame.filename else f" in {frame.filename}:{frame.lineno}"
        found = " ".join(f"{type(error).__name__}: {error}".split())
        raise InputError(
            f"{option}: expected a module that can be imported, found {module_name}"
            f" ({found}{where})"
        ) from None
    kind = getattr(module, kind_name, None)
    if not isinstance(kind, type):
        file = getattr(module, "__file__", None) or module_name
        raise InputError(f"{option}: expected a class of {file}, found {kind_name}")
    return kind


def create_object(
    option: str, kind: type, arguments: Sequence[Any], settings: Mapping[str, str]
) -> Any:
    """An object of a class, which gets `arguments` and the settings as keyword arguments.

    A setting is converted to the type of its parameter: the annotated one, or that of the default.

    Args:
        option: the option of the settings, such as "--detector-set".

    Raises:
        InputError: a setting is unknown, missing or of another type. Errors of the class itself
            are passed on.
    """
    parameters = signature(kind).parameters
    try:
        hints = get_type_hints(kind.__init__)  # type: ignore[misc]
    # Annotations may name what only type checkers import.
    except NameError:
        hints = {}
    values = {}
    for name, text in settings.items():
        default = parameters[name].default if name in parameters else None
        expected = hints.get(name, str if default in (None, Parameter.empty) else type(default))
        values[name] = convert(_parse(text, expected), expected, option, name, strict=False)
    try:
        signature(kind).bind(*arguments, **values)
    except TypeError as error:
        known = ", ".join(list(parameters)[len(arguments) :]) or "none"
        raise InputError(
            f"{option}: expected the settings of {kind.__qualname__} ({known}), found others"
            f" ({error})"
        ) from None
    return kind(*arguments, **values)


def parse_settings(option: str, settings: Sequence[str]) -> dict[str, str]:
    """`KEY=VALUE` texts as values by key; of a key that is given again the last value.

    Raises:
        InputError: a text has another form.
    """
    values: dict[str, str] = {}
    for text in settings:
        key, separator, value = (part.strip() for part in text.partition("="))
        if not key.isidentifier() or not separator:
            raise InputError(f"{option}: expected KEY=VALUE, found {text}")
        values[key] = value
    return values


def absolute_settings(settings: Sequence[str]) -> tuple[str, ...]:
    """`KEY=VALUE` texts with absolute paths in place of the names of files and folders."""
    pairs = (text.partition("=") for text in settings)
    return tuple(
        f"{key}{separator}{Path(value).absolute() if _exists(value) else value}"
        for key, separator, value in pairs
    )


def settings_with_digests(settings: Mapping[str, str]) -> dict[str, str]:
    """Settings for a fingerprint, with the SHA-256 of files and folders in place of their names."""

    def content(path: Path) -> str:
        if path.is_file():
            return sha256_of_file(path)
        files = sorted(each for each in path.rglob("*") if each.is_file())
        return sha256_of_json(
            [[str(each.relative_to(path)), sha256_of_file(each)] for each in files]
        )

    return {
        key: content(Path(value)) if _exists(value) else value
        for key, value in sorted(settings.items())
    }


def _exists(value: str) -> bool:
    return bool(value) and Path(value).exists()


def _parse(text: str, expected: Any) -> Any:
    """The JSON list or object that a text contains, unless a text is expected; else the text."""
    if expected is not str and text.startswith(("[", "{")):
        with suppress(ValueError):
            return json.loads(text)
    return text


def _split(name: str) -> tuple[Path, str, str]:
    match = CLASS_NAME.fullmatch(name)
    assert match is not None, "is_class_name is checked before"
    folder, module, kind = match.groups()
    return Path("." if folder is None else folder or "/"), module.removesuffix(".py"), kind
