"""Reads pickles of plain data, as V-COCO projects write their detections, without running code.

An unpickler calls what a file names. This one looks nothing up: a name becomes a dictionary, or one
of the few functions that numpy's arrays and numbers need.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from pipeline.utils.errors import InputError, bad_field
from pipeline.utils.files import identify_file

PICKLE_SUFFIXES = (".pkl", ".pickle")
# The first two bytes of pickles of protocol 2 and later.
PICKLE_PREFIXES = tuple(bytes([0x80, version]) for version in range(2, 6))
PICKLE_EXPECTED = "a pickle of lists, dictionaries, numbers and numpy arrays"
# Kinds of numpy types that arrays may have: booleans, integers, floats.
ARRAY_KINDS = "biuf"


def is_pickle(path: Path) -> bool:
    """Whether a file is a pickle, by its name or its first bytes."""
    if path.suffix.lower() in PICKLE_SUFFIXES:
        return True
    try:
        with open(path, "rb") as file:
            return file.read(2) in PICKLE_PREFIXES
    except OSError:
        return False


def iterate_pickle(path: Path) -> Iterator[Any]:
    """The entries of a pickled list.

    Raises:
        InputError: the file holds something else than a list; or see `read_pickle`.
    """
    entries = read_pickle(path)
    if not isinstance(entries, list):
        raise bad_field(path, "file", "a list", entries)
    yield from entries


def read_pickle(path: Path) -> Any:
    """The content of a pickle, with arrays as lists.

    Raises:
        InputError: the file is missing or damaged, or holds anything but plain data; the message
            names it.
    """
    try:
        pickled = _PlainDataUnpickler(path.read_bytes()).load()
        return msgspec.to_builtins(pickled, enc_hook=np.ndarray.tolist)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    # A damaged pickle can raise anything in the unpickler.
    except Exception as error:
        refused = error if isinstance(error, pickle.UnpicklingError) else "a damaged file"
        found = identify_file(path) or refused
        raise InputError(f"{path}: expected {PICKLE_EXPECTED}, found {found}") from None


class _Mapping(dict[Any, Any]):
    """Stands for any name that is not numpy's: a dictionary, as `OrderedDict()` and similar are.

    `defaultdict` is called with the name of the factory of its values; other arguments are refused.
    """

    qualified_name = ""

    def __new__(cls, *arguments: Any) -> _Mapping:
        if not all(isinstance(value, type) for value in arguments):
            raise pickle.UnpicklingError(f"a call of {cls.qualified_name}")
        return super().__new__(cls)

    def __init__(self, *_: Any) -> None:
        super().__init__()

    def __setstate__(self, state: Any) -> None:
        """Ignores attributes of the object: only its items are data."""


def _encode(text: str | bytes, *_: Any) -> bytes:
    """Bytes, which the protocols of Python 2 hold as text."""
    return text.encode("latin-1") if isinstance(text, str) else text


def _dtype(code: str, *_: Any) -> np.dtype[Any]:
    # A copy, because the state that follows changes its byte order.
    dtype = np.dtype(np.dtype(code), copy=True)
    if dtype.kind not in ARRAY_KINDS:
        raise pickle.UnpicklingError(f"an array of {code}")
    return dtype


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "bytes": lambda: b"",
    "encode": _encode,
    "dtype": _dtype,
    # The array of protocols up to 4, whose content is its state.
    "_reconstruct": lambda *_: np.zeros(0),
    # The array of protocol 5.
    "_frombuffer": lambda raw, dtype, shape, order: np.frombuffer(raw, dtype).reshape(
        shape, order=order
    ),
    "scalar": lambda dtype, raw: np.frombuffer(_encode(raw), dtype)[0].item(),
}
FUNCTION_MODULES = ("numpy", "_codecs", "builtins", "__builtin__")


# The unpickler in Python: the one in C allocates memory for whatever memo index a damaged file has.
class _PlainDataUnpickler(pickle._Unpickler):
    def __init__(self, pickled: bytes) -> None:
        super().__init__(io.BytesIO(pickled), encoding="latin-1")

    def find_class(self, module: str, name: str) -> type:
        """A new class for each name, whose call gives its data.

        A file can set attributes of what it names, which must not affect the next file.
        """
        function = FUNCTIONS.get(name)
        if function is None or module.partition(".")[0] not in FUNCTION_MODULES:
            return type(name, (_Mapping,), {"qualified_name": f"{module}.{name}"})
        return type(name, (), {"__new__": lambda cls, *arguments: function(*arguments)})
