"""Pickles of other projects' detections, read as plain data: nothing in them is imported or called.

Two-stage detectors of the SCG/UPT family write V-COCO detections as a pickle of dictionaries of a
class of their own; others put numpy's arrays and numbers into them. A pickle is a program for a
small stack machine, and its calls are what can run foreign code. The machine here knows the calls
that numpy's data need, takes an object that is made without arguments for the dictionary of its
items, and refuses every other call.
"""

from __future__ import annotations

import pickletools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import InputError, bad_field
from pipeline.files import iterate_json, other_file

ENDINGS = (".pkl", ".pickle")
# How pickles of protocol 2 and later begin.
PROTOCOLS = tuple(bytes([0x80, version]) for version in range(2, 6))
EXPECTED = "a pickle of lists, dictionaries, numbers and numpy arrays"
# Opcodes by what they do.
NUMBERS = ("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT")
TEXTS = (
    "STRING",
    "BINSTRING",
    "SHORT_BINSTRING",
    "UNICODE",
    "BINUNICODE",
    "SHORT_BINUNICODE",
    "BINUNICODE8",
)
BYTES = ("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8")
LITERALS = frozenset((*NUMBERS, *TEXTS, *BYTES))
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
STORES = frozenset(("PUT", "BINPUT", "LONG_BINPUT"))
FETCHES = frozenset(("GET", "BINGET", "LONG_BINGET"))
TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
CALLS = frozenset(("REDUCE", "NEWOBJ"))
IGNORED = frozenset(("PROTO", "FRAME"))


def is_pickle(path: Path) -> bool:
    """Whether a file is a pickle, by its name or its first bytes."""
    if path.suffix.lower() in ENDINGS:
        return True
    try:
        with open(path, "rb") as file:
            return file.read(2) in PROTOCOLS
    except OSError:
        return False


def iterate_entries(path: Path) -> Iterator[Any]:
    """The entries of a file that holds a list, JSON or a pickle.

    Raises:
        InputError: the file is missing, damaged, holds something else than a list, or a pickle
            holds other things than plain data; the thing is named.
    """
    if not is_pickle(path):
        yield from iterate_json(path)
        return
    try:
        found = _run(path.read_bytes())
        if not isinstance(found, list):
            raise bad_field(path, "file", "a list", found)
        # Emptied from its end, so that only one form of each entry is in memory.
        found.reverse()
        while found:
            yield _plain(found.pop())
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except InputError:
        raise
    except (ValueError, LookupError, TypeError, AttributeError, OSError) as error:
        found = other_file(path) or error
        raise InputError(f"{path}: expected {EXPECTED}, found {found}") from None
    except (OverflowError, RecursionError, MemoryError):
        raise InputError(f"{path}: expected {EXPECTED}, found a damaged file") from None


class _Name(str):
    """The name of a class or function, module first; what it names is never looked up."""


class _Dtype:
    """numpy's type of numbers, whose byte order a pickle tells after its name."""

    def __init__(self, code: str) -> None:
        self.dtype = np.dtype(code)
        if self.dtype.kind not in "biuf":
            raise ValueError(f"an array of {code}")


class _Array:
    """An array whose content a pickle tells after its class."""

    value: np.ndarray


def _run(pickled: bytes) -> Any:
    """What a pickle's opcodes build."""
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[Any, Any] = {}
    opcodes: Iterator[tuple[pickletools.OpcodeInfo, Any, Any]] = pickletools.genops(pickled)

    def since_mark() -> list[Any]:
        mark = marks.pop()
        values = stack[mark:]
        del stack[mark:]
        return values

    for opcode, value, _ in opcodes:
        name = opcode.name
        if name in LITERALS:
            stack.append(value)
        elif name in STORES:
            memo[value] = stack[-1]
        elif name in FETCHES:
            stack.append(memo[value])
        elif name == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif name == "MARK":
            marks.append(len(stack))
        elif name == "EMPTY_LIST":
            stack.append([])
        elif name == "EMPTY_DICT":
            stack.append({})
        elif name in CONSTANTS:
            stack.append(CONSTANTS[name])
        elif name in ("APPENDS", "APPEND"):
            values = since_mark() if name == "APPENDS" else [stack.pop()]
            stack[-1].extend(values)
        elif name in ("SETITEMS", "SETITEM"):
            values = since_mark() if name == "SETITEMS" else [stack.pop(-2), stack.pop()]
            stack[-1].update(zip(values[::2], values[1::2], strict=True))
        elif name in ("LIST", "TUPLE"):
            values = since_mark()
            stack.append(values if name == "LIST" else tuple(values))
        elif name == "DICT":
            values = since_mark()
            stack.append(dict(zip(values[::2], values[1::2], strict=True)))
        elif name in TUPLES:
            count = TUPLES[name]
            stack[-count:] = [tuple(stack[-count:])]
        elif name == "GLOBAL":
            stack.append(_Name(value.replace(" ", ".", 1)))
        elif name == "STACK_GLOBAL":
            stack[-2:] = [_Name(".".join(stack[-2:]))]
        elif name in CALLS:
            stack[-2:] = [_made(*stack[-2:])]
        elif name == "BUILD":
            _set_state(stack[-2], stack.pop())
        elif name == "STOP":
            return stack.pop()
        elif name not in IGNORED:
            raise ValueError(f"the opcode {name}")
    raise ValueError("no end")


def _made(name: Any, arguments: Any) -> Any:
    """What stands for a call's result."""
    if not isinstance(name, _Name) or not isinstance(arguments, tuple):
        raise ValueError("a call of something without a name")
    first, last = name.split(".")[0], name.split(".")[-1]
    # So Python 3 writes bytes in the protocols of Python 2.
    if last == "bytes" and not arguments:
        return b""
    if name == "_codecs.encode":
        return arguments[0].encode("latin-1")
    # `defaultdict` is made with the name of what makes its values.
    if all(isinstance(argument, _Name) for argument in arguments):
        return {}
    if first == "numpy":
        if last == "dtype":
            return _Dtype(arguments[0])
        if last == "_reconstruct":
            return _Array()
        if last == "scalar":
            return _numbers(arguments[1], arguments[0], (), False).item()
        if last == "_frombuffer":
            raw, dtype, shape, order = arguments
            return _numbers(raw, dtype, shape, order == "F")
    raise ValueError(f"a call of {name}")


def _set_state(target: Any, state: Any) -> None:
    if isinstance(target, _Dtype):
        target.dtype = target.dtype.newbyteorder(state[1])
    elif isinstance(target, _Array):
        shape, dtype, by_columns, raw = state[-4:]
        target.value = _numbers(raw, dtype, shape, by_columns)
    elif not isinstance(target, dict):
        raise ValueError(f"a state of {type(target).__name__}")


def _numbers(raw: Any, dtype: Any, shape: tuple[int, ...], by_columns: bool) -> np.ndarray:
    # Python 2 has the bytes as text.
    content = raw.encode("latin-1") if isinstance(raw, str) else raw
    array = np.frombuffer(content, dtype.dtype)
    return array.reshape(shape, order="F" if by_columns else "C")


def _plain(value: Any) -> Any:
    """A value with arrays in place of what stands for them."""
    if isinstance(value, float | int | str):
        return value
    if isinstance(value, _Array):
        return value.value
    if isinstance(value, dict):
        return {key: _plain(held) for key, held in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(held) for held in value]
    return value
