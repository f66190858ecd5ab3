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
from abc import ABC
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from inspect import Parameter, signature
from pathlib import Path
from types import UnionType
from typing import (
    TYPE_CHECKING,
    Any,
    ClassVar,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

from msgspec.inspect import CustomType, type_info

from pipeline.utils.errors import InputError, bad_field
from pipeline.utils.files import sha256_of_file, sha256_of_json
from pipeline.utils.logging import get_logger
from pipeline.utils.schema import Line, convert

if TYPE_CHECKING:
    import torch

logger = get_logger(__name__)

# An optional folder, the module with its packages, and the class.
CLASS_NAME = re.compile(r"(?:(.*)/)?([^\W\d]\w*(?:\.[^\W\d]\w*)*):([^\W\d]\w*)")
# Package of the classes whose errors are not the user's.
OWN_PACKAGE = "teacher_cache"
# Longest message of an error that a line contains.
MAX_REASON = 300


class Plugin(ABC):
    """A frozen model of a build, of this package or a user's own: a teacher or a detector.

    Attributes:
        plugin_kind: "teacher" or "detector". `--KIND` names the class, `--KIND-set` its settings,
            and the names of its parts of a cache's fingerprint begin with it.
        plugin_settings: the settings of a user's own class, as texts.
        name: names the model in fingerprints and messages; the class by default.
        device: the device of the build.
    """

    plugin_kind: ClassVar[str]
    plugin_settings: Mapping[str, str] = {}
    name: str = ""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.name = self.name or type(self).__qualname__

    def fingerprint(self) -> Mapping[str, Any]:
        """What else determines the outputs, as JSON values: digests of weights, a version.

        The name and the settings are in a cache's fingerprint without it, of files and folders the
        content; a value of the same name takes the place of a setting.
        """
        return {}

    def check_attributes(self) -> None:
        """Checks what a user's class has set, after its creation.

        Raises:
            InputError: an attribute has a wrong value.
        """
        convert(self.name, Line, f"--{self.plugin_kind}", f"name of {type(self).__qualname__}")


Kind = TypeVar("Kind", bound=Plugin)


def describe_plugin(plugin: Plugin) -> str:
    """Names a model in errors."""
    return f"{plugin.plugin_kind} {plugin.name}"


def fingerprint_parts(plugin: Plugin, others: Mapping[str, Any]) -> dict[str, Any]:
    """A model's parts of a cache's fingerprint.

    These are `KIND.NAME` of `others` and of what its method `fingerprint` returns, and
    `KIND.settings.NAME` of the settings.

    Raises:
        InputError: the method returns something else than JSON values, or a name of `others`.
    """
    source = describe_plugin(plugin)
    with user_errors(plugin, "fingerprint"):
        own = plugin.fingerprint()
    try:
        # As a reader gets them: lists for tuples.
        own = json.loads(json.dumps(own, allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise bad_field(source, "fingerprint", "JSON values", str(error)) from None
    if not isinstance(own, dict):
        raise bad_field(source, "fingerprint", "values by name", own)
    for name in others.keys() & own.keys():
        raise bad_field(source, f"fingerprint: {name}", "another name", "a reserved one")
    rest = {name: text for name, text in plugin.plugin_settings.items() if name not in own}
    stored = {f"settings.{name}": text for name, text in settings_with_digests(rest).items()}
    values = {**others, **stored, **own}
    return {f"{plugin.plugin_kind}.{name}": value for name, value in values.items()}


@contextmanager
def user_errors(plugin: Plugin, method: str) -> Iterator[None]:
    """Shortens errors of a method of a user's class; those of this package are its own bugs.

    Raises:
        InputError: the body raised an error.
    """
    if type(plugin).__module__.partition(".")[0] == OWN_PACKAGE:
        yield
        return
    with _shorten_errors(f"{describe_plugin(plugin)}: {method}", type(plugin)):
        yield


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
    # The code of a module may raise anything, and a script may end the program.
    except (Exception, SystemExit) as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        where = "" if "importlib" in frame.filename else f" in {frame.filename}:{frame.lineno}"
        raise InputError(
            f"{option}: expected a module that can be imported, found {module_name}"
            f" ({_describe(error)}{where})"
        ) from None
    file = getattr(module, "__file__", None) or module_name
    path_in_folder = Path(path, *module_name.split("."))
    for own in (path_in_folder.with_suffix(".py"), path_in_folder / "__init__.py"):
        if own.is_file() and own.resolve() != Path(file).resolve():
            raise InputError(
                f"{option}: expected the module {own}, found {file}, which has the same name and"
                " comes first; rename one of them"
            )
    kind = getattr(module, kind_name, None)
    if not isinstance(kind, type):
        raise InputError(f"{option}: expected a class of {file}, found {kind_name}")
    return kind


def find_class(base: type[Any], name: str) -> type[Any]:
    """Imports a subclass of `base`, which is `Teacher` or `Detector`.

    Raises:
        InputError: there is no such module or class, it is no subclass, or it lacks a method.
    """
    option = f"--{base.plugin_kind}"
    found = load_class(option, name)
    if not issubclass(found, base):
        expected = f"a subclass of {base.__module__}.{base.__qualname__}"
        raise InputError(f"{option}: expected {expected}, found {name}")
    if missing := ", ".join(sorted(getattr(found, "__abstractmethods__", ()))):
        raise InputError(f"{option}: expected a class with the method {missing}, found {name}")
    return found


def create_own(kind: type[Kind], arguments: Sequence[Any], settings: Mapping[str, str]) -> Kind:
    """An object of a user's class, with its attributes checked.

    Args:
        kind: the class.
        arguments: the first arguments of its constructor.
        settings: the others, as texts; see `create_object`.

    Raises:
        InputError: a setting or an attribute is wrong, or the constructor raises an error.
    """
    option, name = f"--{kind.plugin_kind}", f"{kind.__module__}:{kind.__qualname__}"
    with _shorten_errors(f"{option} {name}", kind):
        created: Kind = create_object(f"{option}-set", kind, arguments, settings)
    if not hasattr(created, "device"):
        raise InputError(
            f"{option}: expected a class whose __init__ calls super().__init__, found {name}"
        )
    created.plugin_settings = settings
    created.check_attributes()
    return created


@contextmanager
def _shorten_errors(where: str, kind: type) -> Iterator[None]:
    """Shortens errors of a user's class to one line that names the place in its module.

    With `--verbose`, the traceback is logged before.

    Raises:
        InputError: the body raised an error, except one for missing memory of a GPU.
    """
    from pipeline.utils.devices import is_out_of_memory

    try:
        yield
    except InputError:
        raise
    # The code of a user's class may raise anything, and end the program.
    except (Exception, SystemExit) as error:
        if is_out_of_memory(error):
            raise
        logger.debug(where, exc_info=True)
        file = getattr(sys.modules.get(kind.__module__), "__file__", None)
        frames = traceback.extract_tb(error.__traceback__)
        frame = next((each for each in reversed(frames) if each.filename == file), frames[-1])
        raise InputError(
            f"{where}: expected no error, found {_describe(error)}"
            f" ({frame.filename}:{frame.lineno}; --verbose prints the traceback)"
        ) from None


def _describe(error: BaseException) -> str:
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return text if len(text) <= MAX_REASON else f"{text[: MAX_REASON - 3]}..."


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
    values: dict[str, Any] = {}
    expected_types = _expected_types(kind, settings)
    for name, text in settings.items():
        # The error about one that the class gets anyway follows.
        if name in list(parameters)[: len(arguments)]:
            values[name] = text
            continue
        expected = expected_types[name]
        if not _is_plain(expected):
            raise InputError(
                f"{option}: expected parameters of {kind.__qualname__} of types such as int, str"
                f" and Path, found {name} of {expected}"
            )
        values[name] = convert(_parse(text, expected), expected, option, name, strict=False)
    try:
        signature(kind).bind(*arguments, **values)
    except TypeError as error:
        known = list(parameters)[len(arguments) :]
        takes_any = any(each.kind is Parameter.VAR_KEYWORD for each in parameters.values())
        # Python's error may be about one that is missing because its name is misspelled.
        others = "" if takes_any else ", ".join(name for name in values if name not in known)
        raise InputError(
            f"{option}: expected the settings of {kind.__qualname__}"
            f" ({', '.join(known) or 'none'}), found {others or f'others ({error})'}"
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


def format_settings(settings: Iterable[tuple[str, str]]) -> tuple[str, ...]:
    """Names and values as `KEY=VALUE` texts."""
    return tuple(f"{name}={value}" for name, value in settings)


def resolve_settings(kind: type, settings: Mapping[str, str]) -> dict[str, str]:
    """Settings of a class with absolute paths in place of the names of files and folders.

    Those are existing ones that parameters without a type, of type `str` or `Path` name.
    """
    expected_types = _expected_types(kind, settings)
    return {
        name: str(Path(text).absolute())
        if set(_alternatives(expected_types[name])) & {str, Path} and _exists(text)
        else text
        for name, text in settings.items()
    }


def settings_with_digests(settings: Mapping[str, str]) -> dict[str, str]:
    """Settings for a fingerprint, with the SHA-256 of files and folders in place of their absolute
    paths."""

    def content(path: Path) -> str:
        if path.is_file():
            return sha256_of_file(path)
        files = sorted(each for each in path.rglob("*") if each.is_file())
        return sha256_of_json(
            [[str(each.relative_to(path)), sha256_of_file(each)] for each in files]
        )

    return {
        key: content(Path(value)) if Path(value).is_absolute() and _exists(value) else value
        for key, value in sorted(settings.items())
    }


def _exists(value: str) -> bool:
    try:
        return bool(value) and Path(value).exists()
    # A text may be longer than a path can be.
    except (OSError, ValueError):
        return False


def _expected_types(kind: type, names: Iterable[str]) -> dict[str, Any]:
    """The types of a class's parameters: the annotated ones, or those of the defaults."""
    parameters = signature(kind).parameters
    try:
        # With `Annotated`, which says more.
        hints = get_type_hints(kind.__init__, include_extras=True)  # type: ignore[misc]
    # Annotations may name what only type checkers import.
    except NameError:
        hints = {}
    types = {}
    for name in names:
        default = parameters[name].default if name in parameters else None
        types[name] = hints.get(name, str if default in (None, Parameter.empty) else type(default))
        # Every text is a text.
        if str in _alternatives(types[name]):
            types[name] = str
    return types


def _alternatives(expected: Any) -> tuple[Any, ...]:
    """The types of a union, or the type itself."""
    return get_args(expected) if get_origin(expected) in (Union, UnionType) else (expected,)


def _is_plain(expected: Any) -> bool:
    """Whether texts can be converted to a type."""
    try:
        info: Any = type_info(expected)
    # A union of several types that msgspec does not know.
    except TypeError:
        return False
    types = getattr(info, "types", (info,))
    return all(not isinstance(each, CustomType) or each.cls is Path for each in types)


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
