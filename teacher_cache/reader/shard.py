"""Maps a shard's arrays into memory: HDF5 tells once what lies where, numpy reads it.

Every read through HDF5 would cost a lock and a selection, some hundred times what the bytes cost.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator
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
# What h5py raises for damaged bytes.
READ_ERRORS = (
    AttributeError,
    LookupError,
    OSError,
    OverflowError,
    RuntimeError,
    TypeError,
    ValueError,
)


# HDF5's heap of texts (file format specification, III.E): signature and version, its size; then
# objects: number and count, four bytes, size, content up to the next eighth byte. Number 0 is what
# is left, its size counts these sixteen bytes.
HEAP_SIGNATURE, HEAP_HEADER, HEAP_OBJECT = (
    b"GCOL\1\0\0\0",
    struct.Struct("<8xQ"),
    struct.Struct("<H2x4xQ"),
)
HEAP_SEARCH_BYTES = 1 << 16


@dataclass(frozen=True, eq=False)
class ShardLayout:
    """Where a shard's arrays lie in its file.

    Attributes:
        locations: by name, the offset in bytes (0 for an empty array) and the shape.
        images: ids of the images with outputs.
        failed: reasons by id of images that could not be read.
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


def read_layout(path: Path, fingerprint: str) -> ShardLayout:
    """What lies where in a shard.

    Raises:
        InputError: missing, damaged, of another format version or of another cache.
    """
    try:
        with open_cache_file(path, fingerprint) as file:
            reasons = file[FAILED_REASON].asstr()[()].tolist()
            layout = ShardLayout(
                locations={
                    name: _dataset_location(file[name], kind)
                    for name, kind in DATASET_DTYPES.items()
                    if name != REGION_EMBEDDING or name in file
                },
                images=tuple(file[IMAGE_ID].asstr()[()].tolist()),
                failed=dict(zip(file[FAILED_ID].asstr()[()].tolist(), reasons, strict=True)),
            )
    except InputError:
        raise
    except READ_ERRORS as error:
        raise damage_error(path, COMPLETE_SHARD, error) from None
    lengths = {len(layout.images) + 1, *layout.locations[PAIR_OFFSETS][1]}
    lengths_of_pairs = {layout.locations[name][1][0] for name in PAIR_DATASETS}
    of_regions = (name for name in (REGION_BOX, REGION_EMBEDDING) if name in layout.locations)
    lengths_of_regions = {layout.locations[name][1][0] for name in of_regions}
    if not len(lengths) == len(lengths_of_pairs) == len(lengths_of_regions) == 1:
        raise damage_error(path, COMPLETE_SHARD, "its datasets have different lengths")
    return layout


def map_shard(path: Path, layout: ShardLayout) -> dict[str, np.ndarray]:
    """A shard's arrays by name, as read-only views of the mapped file.

    Raises:
        InputError: missing, or shorter than its layout.
    """
    try:
        with open(path, "rb") as raw:
            mapped = mmap.mmap(raw.fileno(), 0, access=mmap.ACCESS_READ)
        return {
            name: np.ndarray(shape, DATASET_DTYPES[name], buffer=mapped, offset=offset)
            for name, (offset, shape) in layout.locations.items()
        }
    except READ_ERRORS as error:
        raise damage_error(path, COMPLETE_SHARD, error) from None


def check_indices(path: Path, arrays: dict[str, np.ndarray], num_objects: int | None) -> None:
    """Refuses arrays whose numbers point nowhere; quick, since only the small ones are read.

    Args:
        path: of the shard, named in errors.
        arrays: what `map_shard` gave.
        num_objects: of the vocabulary, where it is known.

    Raises:
        InputError: rows, regions or objects that do not exist.
    """
    offsets, labels = arrays[PAIR_OFFSETS], arrays["pairs/object_label"]
    most_objects = np.iinfo(labels.dtype).max if num_objects is None else num_objects - 1
    rising = offsets[0] == 0 and np.all(np.diff(offsets) >= 0) and offsets[-1] == len(labels)
    for name, fits in (
        (PAIR_OFFSETS, rising),
        ("pairs/object_label", _in_range(labels, most_objects)),
        ("pairs/region", _in_range(arrays["pairs/region"], len(arrays[REGION_BOX]) - 1)),
    ):
        if not fits:
            raise damage_error(path, COMPLETE_SHARD, f"{name} points at what is not there")


def _in_range(numbers: np.ndarray, most: int) -> bool:
    return len(numbers) == 0 or (int(numbers.min()) >= 0 and int(numbers.max()) <= most)


@contextmanager
def open_cache_file(path: Path, fingerprint: str | None) -> Iterator[h5py.File]:
    """Opens a finished file of a cache, or of texts that belong to no cache.

    Args:
        fingerprint: of the cache; None where the caller looks at it.

    Raises:
        InputError: damaged, of another format version or of another cache.
    """
    _check_heap(path)
    # Finished files are never written again, so the lock that HDF5 takes by default (and that
    # some network file systems refuse) protects nothing.
    with h5py.File(path, "r", locking=False) as file:
        check_format_version(path, int(file.attrs.get("format_version", 0)))
        if fingerprint is not None and file.attrs.get("fingerprint") != fingerprint:
            raise InputError(f"{path}: the file belongs to another cache")
        yield file


def _check_heap(path: Path) -> None:
    """HDF5 walks its heap of texts without a limit; one of senseless sizes it walks for ever.

    Raises:
        InputError: the file has such a heap.
    """
    with open(path, "rb") as raw:
        head = raw.read(HEAP_SEARCH_BYTES)
    start = head.find(HEAP_SIGNATURE)
    while start >= 0 and start + HEAP_HEADER.size <= len(head):
        (size,) = HEAP_HEADER.unpack_from(head, start)
        place, end = start + HEAP_HEADER.size, start + size
        while place + HEAP_OBJECT.size <= min(end, len(head)):
            number, content = HEAP_OBJECT.unpack_from(head, place)
            step = content if number == 0 else HEAP_OBJECT.size + -(-content // 8) * 8
            if step < HEAP_OBJECT.size or place + step > end:
                raise damage_error(path, "a file of the cache", "its heap of texts makes no sense")
            place += step
        start = head.find(HEAP_SIGNATURE, start + 1)


def damage_error(path: Path, expected: str, why: object) -> InputError:
    """The one line about a file that cannot be read."""
    # The system's own message names the file once more.
    reason = getattr(why, "strerror", None) or why
    return InputError(f"{path}: expected {expected}, found damage ({reason})")


def _dataset_location(dataset: Any, kind: np.dtype) -> tuple[int, tuple[int, ...]]:
    offset = dataset.id.get_offset()
    if dataset.dtype != kind or (offset is None and dataset.size):
        raise ValueError(f"{dataset.name} is not a contiguous array of {kind}")
    return offset or 0, dataset.shape
