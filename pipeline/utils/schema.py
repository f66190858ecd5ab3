"""Content of JSON and TOML files, checked against annotated types by msgspec.

The errors name the file, the field, what was expected there and what was found. Where msgspec's own
words are not the user's, `Meta(description=...)` of a type says what is expected.
"""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta, inspect

from pipeline.utils.errors import InputError, bad_field
from pipeline.utils.files import read_json

Kind = TypeVar("Kind")

Text = Annotated[str, Meta(pattern=r"\S", description="a text")]
# For names in errors and tables, which are lines.
Line = Annotated[
    str, Meta(pattern=r"\A[^\n\r\0]*[^\s\0][^\n\r\0]*\Z", description="a text of one line")
]
# Arrays have 64 bits per integer.
Number = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1, description="a whole number")]
# Larger counts and sizes are mistakes, and very large ones overflow float arithmetic.
Positive = Annotated[int, Meta(ge=1, le=10**9)]
PositiveFloat = Annotated[float, Meta(gt=0, le=1e9, description="a number above 0")]

MISSING = "nothing (the key is missing)"
WRONG_FIELD = re.compile(r"Object (missing required|contains unknown) field `(.+?)`")
PATH = re.compile(r" - at `(?:key in )?\$(.*)`$")
NUMERAL = re.compile(r"\s*[-+.\d]+\s*")
STEP = re.compile(r"\.([^.\[]+)|\[(\d+|\.\.\.)\]")
NAMES: dict[type, str] = {
    inspect.CustomType: "a path",
    inspect.BoolType: "true or false",
    inspect.DictType: "an object",
    inspect.StructType: "an object",
    inspect.DataclassType: "an object",
    inspect.ListType: "a list",
    inspect.VarTupleType: "a list",
}


def convert(
    value: Any, kind: type[Kind], file: object, where: str = "", strict: bool = True
) -> Kind:
    """The content of a file, or a part of it, as a value of the type `kind`.

    Args:
        value: parsed JSON or TOML.
        kind: a type that msgspec knows, as a class, a struct or an annotated type.
        file: path or name of the file, for errors.
        where: the field of `value` in the file, for errors.
        strict: False also accepts texts for numbers and booleans, as on a command line.

    Raises:
        InputError: a field is missing, unknown or of another type.
    """
    try:
        return msgspec.convert(value, kind, strict=strict, dec_hook=_to_path)
    except msgspec.ValidationError as error:
        raise _to_input_error(str(error), value, kind, file, where, strict) from None


def read_json_as(path: Path | str, kind: type[Kind]) -> Kind:
    """Reads a JSON file whose content has the type `kind`.

    Raises:
        InputError: the file is missing or not JSON, or a field is missing or of another type.
    """
    return convert(read_json(path), kind, path)


def _to_path(kind: type, value: Any) -> Path:
    if kind is not Path or not isinstance(value, str):
        raise ValueError("a path is a text")
    return Path(value)


def _to_input_error(
    message: str, value: Any, kind: Any, file: object, where: str, strict: bool
) -> InputError:
    path = PATH.search(message)
    if path and "..." in path[1]:
        # `_wrong_key` changes mappings.
        value = copy.deepcopy(value)
    info, found = inspect.type_info(kind), value
    for name, index in STEP.findall(path[1] if path else ""):
        if isinstance(info, inspect.Metadata):
            # The description is of the whole value, of which a part is wrong.
            break
        key: Any = name
        if index == "...":
            # msgspec does not say which of the values of a mapping is wrong.
            key = _wrong_key(found, value, kind)
            name = str(key)
        elif index:
            key = int(index)
        where += f".{name}" if name and where else name or f"[{index}]"
        info, found = _descend(info, name, index), found[key]
    field = WRONG_FIELD.search(message)
    if field and isinstance(info, (inspect.StructType, inspect.DataclassType)):
        inner = f"{where}.{field[2]}" if where else field[2]
        if field[1] == "contains unknown":
            expected = f"only {', '.join(one.encode_name for one in info.fields)}"
            return bad_field(file, inner, expected, "an unknown field")
        return bad_field(file, inner, _describe(_descend(info, field[2], "")), MISSING)
    expected = _describe(info)
    if strict and isinstance(found, str) and NUMERAL.fullmatch(found):
        # "expected a whole number, found 128" would not say what is wrong.
        found = repr(found)
    return bad_field(file, where or "content", expected, found)


def _wrong_key(mapping: dict[Any, Any], value: Any, kind: Any) -> Any:
    """The first key of a mapping within `value` whose entry is not of the expected type."""
    entries = dict(mapping)
    for key, entry in entries.items():
        mapping.clear()
        mapping[key] = entry
        try:
            msgspec.convert(value, kind, dec_hook=_to_path)
        except msgspec.ValidationError:
            return key
    raise AssertionError("msgspec reports an error in a mapping without one")


def _descend(info: Any, name: str, index: str) -> Any:
    """The type of a field or an entry; of a union with None, the other type."""
    if isinstance(info, inspect.DictType):
        info = info.value_type
    elif isinstance(info, inspect.TupleType):
        info = info.item_types[int(index)]
    elif name:
        info = next(one.type for one in info.fields if one.encode_name == name)
    else:
        info = info.item_type
    if isinstance(info, inspect.UnionType):
        rest = [one for one in info.types if not isinstance(one, inspect.NoneType)]
        return rest[0] if len(rest) == 1 else info
    return info


def _describe(info: Any) -> str:
    """What is expected of a value, in words."""
    if isinstance(info, inspect.Metadata):
        return str((info.extra_json_schema or {})["description"])
    if isinstance(info, inspect.UnionType):
        types = [each for each in info.types if not isinstance(each, inspect.NoneType)]
        return " or ".join(dict.fromkeys(map(_describe, types)))
    if isinstance(info, inspect.LiteralType):
        return f"one of {', '.join(map(str, info.values))}"
    if isinstance(info, inspect.TupleType):
        return f"a list of {len(info.item_types)} values"
    if isinstance(info, (inspect.IntType, inspect.FloatType)):
        name = "a whole number" if isinstance(info, inspect.IntType) else "a number"
        low = "" if info.ge is None else f" from {info.ge:g} on"
        return f"{name}{low if info.le is None else f' from {info.ge:g} to {info.le:.15g}'}"
    empty = getattr(info, "min_length", None)
    return f"{'a non-empty list' if empty else NAMES.get(type(info), 'a text')}"
