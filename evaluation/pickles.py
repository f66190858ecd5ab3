"""Reads pickles of plain data, as V-COCO projects write their detections, without running code.

An unpickler calls what a file names. This one looks nothing up: each name becomes a stand-in that
builds a dictionary or a numpy array from its arguments, or refuses them.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

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
        InputError: the file is missing or damaged, holds something else than a list, or an entry
            holds anything but plain data; the message names it.
    """
    try:
        entries = _PlainDataUnpickler(path.read_bytes()).load()
        if not isinstance(entries, list):
            raise bad_field(path, "file", "a list", entries)
        # Emptied from the end, so that each entry is in memory in one form only.
        entries.reverse()
        while entries:
            yield _to_plain_data(entries.pop())
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except pickle.UnpicklingError as error:
        found = identify_file(path) or error
        raise InputError(f"{path}: expected {PICKLE_EXPECTED}, found {found}") from None
    # A damaged pickle can raise anything in the unpickler.
    except Exception:
        found = identify_file(path) or "a damaged file"
        raise InputError(f"{path}: expected {PICKLE_EXPECTED}, found {found}") from None


class _StandIn:
    """Base class of what stands for a name.

    All are classes with `__setstate__`: the BUILD opcode sets attributes of any other object, and
    a file could so change what a stand-in does for the next file.
    """

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError(f"a state of {type(self).__name__}")


class _Mapping(_StandIn, dict[Any, Any]):
    """Stands for any name that is not numpy's: a dictionary, as `OrderedDict()` and similar are.

    `defaultdict` is called with the name of the factory of its values; other arguments are refused.
    """

    qualified_name = ""

    def __new__(cls, *arguments: Any) -> _Mapping:
        if not all(isinstance(value, type) and issubclass(value, _StandIn) for value in arguments):
            raise pickle.UnpicklingError(f"a call of {cls.qualified_name}")
        return super().__new__(cls)

    def __init__(self, *_: Any) -> None:
        super().__init__()

    def __setstate__(self, state: Any) -> None:
        """Ignores attributes of the object: only its items are data."""


class _Bytes(_StandIn):
    """Stands for `bytes()`, as Python 3 writes empty bytes in the protocols of Python 2."""

    def __new__(cls) -> bytes:  # type: ignore[misc]
        return b""


class _EncodedBytes(_StandIn):
    """Stands for `_codecs.encode`, as Python 3 writes bytes in the protocols of Python 2."""

    def __new__(cls, text: str, _: str) -> bytes:  # type: ignore[misc]
        return text.encode("latin-1")


class _Dtype(_StandIn):
    """Stands for a numpy type; its state holds the byte order."""

    def __init__(self, code: str, *_: Any) -> None:
        self.dtype = np.dtype(code)
        if self.dtype.kind not in ARRAY_KINDS:
            raise pickle.UnpicklingError(f"an array of {code}")

    def __setstate__(self, state: Any) -> None:
        self.dtype = self.dtype.newbyteorder(state[1])

    def decode(self, raw: bytes | str, shape: tuple[int, ...], fortran_order: bool) -> np.ndarray:
        """The array with the given content."""
        # Python 2 wrote bytes as text.
        content = raw.encode("latin-1") if isinstance(raw, str) else raw
        array = np.frombuffer(content, self.dtype)
        return array.reshape(shape, order="F" if fortran_order else "C")


class _Array(_StandIn):
    """Stands for `numpy._reconstruct`, the array of protocols up to 4; its state holds the data."""

    def __init__(self, *_: Any) -> None:
        self.value = np.zeros(0)

    def __setstate__(self, state: Any) -> None:
        shape, dtype, fortran_order, raw = state[-4:]
        self.value = dtype.decode(raw, shape, fortran_order)


class _BufferArray(_Array):
    """Stands for `numpy._frombuffer`, the array of protocol 5."""

    def __init__(self, raw: bytes, dtype: _Dtype, shape: tuple[int, ...], order: str) -> None:
        self.value = dtype.decode(raw, shape, order == "F")


class _Scalar(_StandIn):
    """Stands for `numpy.scalar`, a single number."""

    def __new__(cls, dtype: _Dtype, raw: bytes | str) -> Any:
        return dtype.decode(raw, (), fortran_order=False).item()


NUMPY_STAND_INS: dict[str, type[_StandIn]] = {
    "dtype": _Dtype,
    "_reconstruct": _Array,
    "_frombuffer": _BufferArray,
    "scalar": _Scalar,
}


# The unpickler in Python: the one in C allocates memory for whatever memo index a damaged file has.
class _PlainDataUnpickler(pickle._Unpickler):
    def __init__(self, pickled: bytes) -> None:
        super().__init__(io.BytesIO(pickled), encoding="latin-1")

    def find_class(self, module: str, name: str) -> type[_StandIn]:
        """The stand-in for a name; numpy's modules differ between its versions."""
        if module.split(".")[0] == "numpy" and name in NUMPY_STAND_INS:
            return NUMPY_STAND_INS[name]
        if name == "bytes":
            return _Bytes
        if (module, name) == ("_codecs", "encode"):
            return _EncodedBytes
        return type(name, (_Mapping,), {"qualified_name": f"{module}.{name}"})


def _to_plain_data(value: Any) -> Any:
    """The value with lists and plain dictionaries in place of the stand-ins."""
    if isinstance(value, float | int | str):
        return value
    if isinstance(value, _Array):
        return value.value.tolist()
    if isinstance(value, dict):
        return {key: _to_plain_data(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_to_plain_data(item) for item in value]
    return value
