"""Memory-maps the arrays of a shard.

HDF5 is used once per shard, to find the offset and shape of every array; numpy then reads the
mapped file. Reading each image through HDF5 would take its global lock and build a selection, which
costs about a hundred times as much as reading the bytes.
"""

from __future__ import annotations

import mmap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
)
from teacher_cache.reader.hdf5 import READ_ERRORS, damage_error, open_cache_file, read_strings

DATASET_DTYPES: dict[str, np.dtype] = {
    PAIR_OFFSETS: np.dtype("<i8"),
    **PAIR_DATASETS,
    REGION_BOX: np.dtype("<f4"),
    REGION_EMBEDDING: np.dtype("<f2"),
}
COMPLETE_SHARD = "a complete shard"


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


def read_layout(path: Path, fingerprint: str) -> ShardLayout:
    """Reads the layout of a shard and checks that its arrays have matching lengths.

    Args:
        path: the shard.
        fingerprint: fingerprint of its cache.

    Raises:
        InputError: the shard is missing, damaged, of another format version or of another cache.
    """
    try:
        with open_cache_file(path, fingerprint) as file:
            failed = zip(
                read_strings(file, FAILED_ID), read_strings(file, FAILED_REASON), strict=True
            )
            layout = ShardLayout(
                locations={
                    name: _dataset_location(file[name], dtype)
                    for name, dtype in DATASET_DTYPES.items()
                    if name != REGION_EMBEDDING or name in file
                },
                images=tuple(read_strings(file, IMAGE_ID)),
                failed=dict(failed),
            )
    except InputError:
        raise
    except READ_ERRORS as error:
        raise damage_error(path, COMPLETE_SHARD, error) from None
    offset_lengths = {len(layout.images) + 1, *layout.locations[PAIR_OFFSETS][1]}
    pair_lengths = {layout.locations[name][1][0] for name in PAIR_DATASETS}
    region_lengths = {
        layout.locations[name][1][0]
        for name in (REGION_BOX, REGION_EMBEDDING)
        if name in layout.locations
    }
    if not len(offset_lengths) == len(pair_lengths) == len(region_lengths) == 1:
        raise damage_error(path, COMPLETE_SHARD, "its datasets have different lengths")
    return layout


def map_shard(path: Path, layout: ShardLayout) -> dict[str, np.ndarray]:
    """The arrays of a shard by name, as read-only views of the memory-mapped file.

    Raises:
        InputError: the file is missing, or shorter than its layout.
    """
    try:
        with open(path, "rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        return {
            name: np.ndarray(shape, DATASET_DTYPES[name], buffer=mapped, offset=offset)
            for name, (offset, shape) in layout.locations.items()
        }
    except READ_ERRORS as error:
        raise damage_error(path, COMPLETE_SHARD, error) from None


def check_indices(path: Path, arrays: dict[str, np.ndarray], num_objects: int | None) -> None:
    """Checks that offsets, object labels and region indices are within range.

    Args:
        path: the shard, named in errors.
        arrays: the arrays that `map_shard` returned; only the small ones are read.
        num_objects: size of the object vocabulary; None where it is not known.

    Raises:
        InputError: an index is out of range.
    """
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
            raise damage_error(path, COMPLETE_SHARD, f"{name} has an index out of range")


def _in_range(indices: np.ndarray, maximum: int) -> bool:
    return len(indices) == 0 or (int(indices.min()) >= 0 and int(indices.max()) <= maximum)


def _dataset_location(dataset: Any, dtype: np.dtype) -> tuple[int, tuple[int, ...]]:
    # HDF5 allocates no space for empty datasets, so these have no offset.
    offset = dataset.id.get_offset()
    if dataset.dtype != dtype or (offset is None and dataset.size):
        raise ValueError(f"{dataset.name} is not a contiguous array of {dtype}")
    return offset or 0, dataset.shape
