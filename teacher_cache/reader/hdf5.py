"""Opens the HDF5 files of a cache, and reads and encodes their strings."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from pipeline.utils.errors import InputError
from teacher_cache.reader.format import check_format_version

# Exceptions that h5py raises for damaged bytes.
READ_ERRORS = (
    AttributeError,
    LookupError,
    OSError,
    OverflowError,
    RuntimeError,
    TypeError,
    ValueError,
)
# HDF5's global heap (file format specification, III.E), which holds the strings of attributes:
# a signature with a version and the heap's size, then objects of a number, a reference count, four
# reserved bytes, a size and the content, padded to a multiple of eight bytes. Object 0 is the free
# space; its size includes its own header of 16 bytes.
HEAP_SIGNATURE = b"GCOL\1\0\0\0"
HEAP_HEADER = struct.Struct("<8xQ")
HEAP_OBJECT = struct.Struct("<H2x4xQ")
# The fingerprint is written before all datasets, so its heap is near the start of the file.
HEAP_SEARCH_BYTES = 1 << 16


@contextmanager
def open_cache_file(path: Path, fingerprint: str | None) -> Iterator[h5py.File]:
    """Opens a finished HDF5 file of format 1 for reading.

    Args:
        path: the file.
        fingerprint: fingerprint of its cache; None for files that belong to no cache.

    Raises:
        InputError: the file is of another format version or of another cache, or its heap is
            damaged.
        READ_ERRORS: other damage, found here or while reading; see `damage_error`.
    """
    _check_heap(path)
    # Finished files are never modified, so the lock that HDF5 takes by default (and that some
    # network file systems refuse) protects nothing.
    with h5py.File(path, "r", locking=False) as file:
        check_format_version(path, int(file.attrs.get("format_version", 0)))
        if fingerprint is not None and file.attrs.get("fingerprint") != fingerprint:
            raise InputError(f"{path}: the file belongs to another cache")
        yield file


def damage_error(path: Path, expected: str, why: object) -> InputError:
    """The error for a file that cannot be read."""
    # The text of an OSError contains the path, which the message already names.
    reason = getattr(why, "strerror", None) or why
    return InputError(f"{path}: expected {expected}, found damage ({reason})")


def read_strings(file: h5py.File, name: str) -> Any:
    """The strings of a dataset: a list, nested once for each further dimension."""
    return file[name].asstr()[()].tolist()


def encode_strings(values: Iterable[str]) -> np.ndarray:
    """(N,) fixed-length UTF-8 strings, zero-padded, for a dataset.

    HDF5 stores strings of variable length in a heap, in which a single damaged byte can make it
    loop forever.
    """
    encoded = [value.encode() for value in values]
    width = max([1, *map(len, encoded)])
    return np.array(encoded, dtype=h5py.string_dtype("utf-8", width))


def _check_heap(path: Path) -> None:
    """Refuses heaps with impossible object sizes, on which HDF5 would loop forever.

    Raises:
        InputError: the file has such a heap.
    """
    with open(path, "rb") as raw:
        head = raw.read(HEAP_SEARCH_BYTES)
    start = head.find(HEAP_SIGNATURE)
    while start >= 0 and start + HEAP_HEADER.size <= len(head):
        (heap_size,) = HEAP_HEADER.unpack_from(head, start)
        position, end = start + HEAP_HEADER.size, start + heap_size
        while position + HEAP_OBJECT.size <= min(end, len(head)):
            number, size = HEAP_OBJECT.unpack_from(head, position)
            step = size if number == 0 else HEAP_OBJECT.size + -(-size // 8) * 8
            if step < HEAP_OBJECT.size or position + step > end:
                raise damage_error(path, "a file of the cache", "its string heap is inconsistent")
            position += step
        start = head.find(HEAP_SIGNATURE, start + 1)
