"""Opens the HDF5 files of a cache and memory-maps the arrays of a shard.

HDF5 is used once per shard, to find the offset and shape of every array; numpy then reads the
mapped file. Reading each image through HDF5 would take its global lock and build a selection, which
costs about a hundred times as much as reading the bytes.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from pipeline.utils.errors import InputError
from teacher_cache.reader.format import (
    FAILED_ID,
    FAILED_REASON,
    IMAGE_ID,
    PAIR_DATASETS,
    PAIR_OFFSETS,
    REGION_BOX,
    REGION_EMBEDDING,
    check_format_version,
)

DATASET_DTYPES: dict[str, np.dtype] = {
    PAIR_OFFSETS: np.dtype("<i8"),
    **PAIR_DATASETS,
    REGION_BOX: np.dtype("<f4"),
    REGION_EMBEDDING: np.dtype("<f2"),
}
COMPLETE_SHARD = "a complete shard"
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


@dataclass(frozen=True, eq=False)
class ShardLayout:
    """Contents of a shard and the positions of its arrays in the file.

    Attributes:
        locations: by dataset name, the offset in bytes (0 for an empty array) and the shape.
        images: ids of the images with outputs, in the order of their rows.
        failed: image id -> error, for images that could not be read.
    """

    locations: dict[str, tuple[int, tuple[int, ...]]]
    images: tuple[str, ...]
    failed: dict[str, str]

    @property
    def num_pairs(self) -> int:
        return self.locations["pairs/source"][1][0]

    @property
    def num_regions(self) -> int:
        return self.locations[REGION_BOX][1][0]

    @property
    def embedding_width(self) -> int | None:
        """Numbers per region embedding; 0 without embeddings, None without regions."""
        if not self.num_regions:
            return None
        return self.locations[REGION_EMBEDDING][1][1] if REGION_EMBEDDING in self.locations else 0


def read_layout(path: Path, fingerprint: str) -> ShardLayout:
    """Reads the layout of a shard and checks that its arrays have matching lengths.

    Raises:
        InputError: the shard is missing, damaged, of another format version or of another cache.
    """
    with open_cache_file(path, fingerprint, COMPLETE_SHARD) as file:
        failed = zip(read_strings(file, FAILED_ID), read_strings(file, FAILED_REASON), strict=True)
        layout = ShardLayout(
            locations={
                name: _dataset_location(file[name], dtype)
                for name, dtype in DATASET_DTYPES.items()
                if name != REGION_EMBEDDING or name in file
            },
            images=tuple(read_strings(file, IMAGE_ID)),
            failed=dict(failed),
        )
        lengths = {PAIR_OFFSETS: len(layout.images) + 1}
        lengths |= dict.fromkeys(PAIR_DATASETS, layout.num_pairs)
        lengths |= dict.fromkeys((REGION_BOX, REGION_EMBEDDING), layout.num_regions)
        if any(shape[0] != lengths[name] for name, (_, shape) in layout.locations.items()):
            raise ValueError("its datasets have different lengths")
    return layout


def map_shard(
    path: Path, layout: ShardLayout, num_objects: int | None = None
) -> dict[str, np.ndarray]:
    """The arrays of a shard by name, as read-only views of the memory-mapped file.

    Args:
        path: the shard.
        layout: its layout.
        num_objects: size of the object vocabulary; None where it is not known.

    Raises:
        InputError: the file is missing or shorter than its layout, or an offset, an object label or
            the index of a region is out of range.
    """
    with _expect(path, COMPLETE_SHARD):
        with open(path, "rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        arrays = {
            name: np.ndarray(shape, DATASET_DTYPES[name], buffer=mapped, offset=offset)
            for name, (offset, shape) in layout.locations.items()
        }
        offsets, labels = arrays[PAIR_OFFSETS], arrays["pairs/object_label"]
        max_label = np.iinfo(labels.dtype).max if num_objects is None else num_objects - 1
        offsets_are_valid = (
            offsets[0] == 0 and np.all(np.diff(offsets) >= 0) and offsets[-1] == len(labels)
        )
        for name, is_valid in (
            (PAIR_OFFSETS, offsets_are_valid),
            ("pairs/object_label", _in_range(labels, max_label)),
            ("pairs/region", _in_range(arrays["pairs/region"], len(arrays[REGION_BOX]) - 1)),
        ):
            if not is_valid:
                raise ValueError(f"{name} has an index out of range")
        return arrays


def _in_range(indices: np.ndarray, maximum: int) -> bool:
    return len(indices) == 0 or (int(indices.min()) >= 0 and int(indices.max()) <= maximum)


def _dataset_location(dataset: Any, dtype: np.dtype) -> tuple[int, tuple[int, ...]]:
    # HDF5 allocates no space for empty datasets, so these have no offset.
    offset = dataset.id.get_offset()
    if dataset.dtype != dtype or (offset is None and dataset.size):
        raise ValueError(f"{dataset.name} is not a contiguous array of {dtype}")
    return offset or 0, dataset.shape


@contextmanager
def open_cache_file(path: Path, fingerprint: str | None, expected: str) -> Iterator[h5py.File]:
    """Opens a finished HDF5 file of format 1, of the cache with this fingerprint or of none.

    Raises:
        InputError: the file is of another format version or of another cache, or damaged, as may
            become apparent in the `with` block; the error names what was expected.
    """
    with _expect(path, expected):
        _check_heap(path)
        # Finished files are never modified, so the lock that HDF5 takes by default (and that some
        # network file systems refuse) protects nothing.
        with h5py.File(path, "r", locking=False) as file:
            check_format_version(path, int(file.attrs.get("format_version", 0)))
            if fingerprint is not None and file.attrs.get("fingerprint") != fingerprint:
                raise InputError(f"{path}: the file belongs to another cache")
            yield file


@contextmanager
def _expect(path: Path, expected: str) -> Iterator[None]:
    """Raises an InputError for errors that damaged bytes cause in the `with` block."""
    try:
        yield
    except InputError:
        raise
    except READ_ERRORS as error:
        # The text of an OSError contains the path, which the message already names.
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{path}: expected {expected}, found damage ({reason})") from None


def read_strings(file: h5py.File, name: str) -> Any:
    """The strings of a dataset: a list, nested once for each further dimension."""
    return file[name].asstr()[()].tolist()


def read_prompts(file: h5py.File) -> tuple[tuple[str, ...], ...]:
    """The sentences of each interaction, without the empty texts that make their numbers equal."""
    return tuple(tuple(filter(None, row)) for row in read_strings(file, "prompts"))


def encode_strings(values: Iterable[str]) -> np.ndarray:
    """(N,) fixed-length UTF-8 strings, zero-padded, for a dataset.

    HDF5 stores strings of variable length in a heap, in which a single damaged byte can make it
    loop forever.
    """
    encoded = [value.encode() for value in values]
    width = max([1, *map(len, encoded)])
    return np.array(encoded, dtype=h5py.string_dtype("utf-8", width))


def _check_heap(path: Path) -> None:
    """Raises a ValueError for heaps with impossible sizes, on which HDF5 would loop forever."""
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
                raise ValueError("its string heap is inconsistent")
            position += step
        start = head.find(HEAP_SIGNATURE, start + 1)
