"""Writes format 1: a shard is either complete under its name or not there."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from h5py import h5f, h5fd, h5g, h5p

from pipeline.utils.errors import InputError
from pipeline.utils.files import atomic_write, sha256_of_file
from teacher_cache.reader.cache import PromptEmbeddings
from teacher_cache.reader.format import (
    FAILED_ID,
    FAILED_REASON,
    FORMAT_VERSION,
    IMAGE_ID,
    PAIR_DATASETS,
    PAIR_OFFSETS,
    REGION_BOX,
    REGION_EMBEDDING,
    TeacherOutputs,
)
from teacher_cache.reader.prompts_file import FILE_KIND, ActionPrompts
from teacher_cache.reader.shard import DATASET_DTYPES, read_layout

# Mapped arrays of up to eight bytes a number begin where processors like to read them.
ALIGNMENT = 8
SHARD_GROUPS = ("images", "failed", "pairs", "regions")


@dataclass(frozen=True)
class ShardRecord:
    """What the manifest says of a finished shard.

    Attributes:
        name: file name.
        sha256, size: of the file; in bytes.
        images: ids of the images with outputs.
        pairs, regions: how many rows.
        failed: reasons by id of images that could not be read.
    """

    name: str
    sha256: str
    size: int
    images: tuple[str, ...]
    pairs: int
    regions: int
    failed: dict[str, str]

    def to_dict(self) -> dict[str, Any]:
        """The manifest's entry; `failed` stands in the manifest's own list."""
        return {
            "name": self.name,
            "sha256": self.sha256,
            "bytes": self.size,
            "pairs": self.pairs,
            "regions": self.regions,
            "images": list(self.images),
        }


def write_shard(
    path: Path,
    fingerprint: str,
    image_ids: Sequence[str],
    outputs: Sequence[TeacherOutputs],
    failed: Mapping[str, str],
    num_verbs: int,
) -> None:
    """Writes one shard from what is known of its images.

    Args:
        path: where; the file appears complete or not at all.
        fingerprint: of the cache.
        image_ids, outputs: N images and their teacher outputs, regions numbered within the image.
        failed: reasons by id of the shard's images that could not be read.
        num_verbs: V, for shards without any pair.
    """
    pairs = [output.pairs for output in outputs]
    first_regions = np.cumsum([0, *(len(output.region_boxes) for output in outputs)])
    regions = [
        output.region_indices + first
        for output, first in zip(outputs, first_regions[:-1], strict=True)
    ]
    columns: dict[str, tuple[Sequence[np.ndarray], tuple[int, ...]]] = {
        "pairs/human_box": ([each.human_boxes for each in pairs], (4,)),
        "pairs/object_box": ([each.object_boxes for each in pairs], (4,)),
        "pairs/human_score": ([each.human_scores for each in pairs], ()),
        "pairs/object_score": ([each.object_scores for each in pairs], ()),
        "pairs/object_label": ([each.object_labels for each in pairs], ()),
        "pairs/source": ([each.sources for each in pairs], ()),
        "pairs/region": (regions, ()),
        "pairs/action_probabilities": ([each.probabilities for each in outputs], (num_verbs,)),
        REGION_BOX: ([each.region_boxes for each in outputs], (4,)),
    }
    embeddings = [each.embeddings for each in outputs if each.embeddings is not None]
    if embeddings:
        columns[REGION_EMBEDDING] = (embeddings, (embeddings[0].shape[1],))
    arrays = {name: _concatenate(parts, width) for name, (parts, width) in columns.items()}
    arrays[PAIR_OFFSETS] = np.cumsum([0, *map(len, pairs)])
    write_shard_arrays(path, fingerprint, image_ids, failed, arrays)


def write_shard_arrays(
    path: Path,
    fingerprint: str,
    image_ids: Sequence[str],
    failed: Mapping[str, str],
    arrays: Mapping[str, np.ndarray],
) -> None:
    """Writes one shard from its arrays; datasets are contiguous, so that readers can map them.

    Args:
        path: where; the file appears complete or not at all.
        fingerprint: of the cache.
        image_ids: of the images with outputs.
        failed: reasons by id of the shard's images that could not be read.
        arrays: by name as in the format, the regions numbered within the shard.
    """
    with new_hdf5_file(path, fingerprint, SHARD_GROUPS) as file:
        file.create_dataset(IMAGE_ID, data=fixed_length_strings(image_ids))
        file.create_dataset(FAILED_ID, data=fixed_length_strings(failed))
        file.create_dataset(FAILED_REASON, data=fixed_length_strings(failed.values()))
        for name in (PAIR_OFFSETS, *PAIR_DATASETS, REGION_BOX, REGION_EMBEDDING):
            if name in arrays:
                file.create_dataset(
                    name, data=arrays[name].astype(DATASET_DTYPES[name], copy=False)
                )


def write_teacher_file(path: Path, fingerprint: str, text: PromptEmbeddings) -> None:
    """Writes `teacher.h5`: what is needed to score other prompts with stored image embeddings.

    Of several writers at the same instant the first one wins, so that all use the same prompts.
    """
    with new_hdf5_file(path, fingerprint, keep_existing=not path.exists()) as file:
        file.attrs["logit_scale"] = text.logit_scale
        prompts = fixed_length_strings(prompt for group in text.prompts for prompt in group)
        file.create_dataset("prompts", data=prompts.reshape(len(text.prompts), -1))
        file.create_dataset("text_embeddings", data=text.embeddings.astype(np.float32))


def write_prompts_file(path: Path, prompts: ActionPrompts) -> None:
    """Writes a file of sentences about new actions, whole or not at all."""
    with new_hdf5_file(path, prompts.digest(), ("verbs", "interactions")) as file:
        file.attrs["kind"] = FILE_KIND
        file.attrs["text_model"] = prompts.text_model
        file.create_dataset("verbs/name", data=fixed_length_strings(prompts.verbs))
        file.create_dataset("verbs/ing", data=fixed_length_strings(prompts.verb_ings))
        file.create_dataset("interactions/verb", data=prompts.actions.astype("<i4"))
        file.create_dataset("interactions/object", data=fixed_length_strings(prompts.objects))
        sentences = fixed_length_strings(prompt for group in prompts.prompts for prompt in group)
        file.create_dataset("prompts", data=sentences.reshape(len(prompts.prompts), -1))
        file.create_dataset("text_embeddings", data=prompts.embeddings.astype("<f4"))


@contextmanager
def new_hdf5_file(
    path: Path, fingerprint: str, groups: Iterable[str] = (), keep_existing: bool = False
) -> Iterator[h5py.File]:
    """An HDF5 file that is put together in memory: HDF5 itself does not survive a full disk.

    Args:
        path: where; the file appears complete or not at all.
        fingerprint: of the cache.
        groups: the groups that datasets go into; one that HDF5 makes by itself may hold the time.
        keep_existing: as in `atomic_write`.
    """
    image = io.BytesIO()
    access, creation, of_groups = map(
        h5p.create, (h5p.FILE_ACCESS, h5p.FILE_CREATE, h5p.GROUP_CREATE)
    )
    # HDF5's own image of a file in memory has a wrong checksum before HDF5 2.0.
    access.set_fileobj_driver(h5fd.fileobj_driver, image)
    access.set_fclose_degree(h5f.CLOSE_STRONG)
    access.set_alignment(1, ALIGNMENT)
    # Between these bounds, and without times, all versions of HDF5 write the same bytes.
    access.set_libver_bounds(h5f.LIBVER_V18, h5f.LIBVER_V18)
    creation.set_obj_track_times(False)
    of_groups.set_obj_track_times(False)
    with h5py.File(h5f.create(path.name.encode(), h5f.ACC_TRUNC, creation, access)) as file:
        file.attrs["format_version"] = FORMAT_VERSION
        file.attrs["fingerprint"] = fingerprint
        for group in groups:
            h5g.create(file.id, group.encode(), gcpl=of_groups)
        yield file
    with atomic_write(path, keep_existing) as temporary:
        temporary.write_bytes(image.getbuffer())


def is_finished_shard(path: Path, fingerprint: str) -> bool:
    """Whether a complete shard of this cache is there; a file's name says complete."""
    try:
        read_layout(path, fingerprint)
    except InputError:
        return False
    return True


def read_shard_record(path: Path, fingerprint: str) -> ShardRecord | None:
    """The record of a shard on disk; None where there is no finished one of this cache."""
    try:
        layout = read_layout(path, fingerprint)
    except InputError:
        return None
    return ShardRecord(
        name=path.name,
        sha256=sha256_of_file(path),
        size=path.stat().st_size,
        images=layout.images,
        pairs=layout.num_pairs,
        regions=layout.num_regions,
        failed=layout.failed,
    )


def fixed_length_strings(values: Iterable[str]) -> np.ndarray:
    """Texts of one length, padded: HDF5 keeps others in a heap, where a damaged byte can make it
    search for ever."""
    encoded = [value.encode() for value in values]
    width = max([1, *map(len, encoded)])
    return np.array(encoded, dtype=h5py.string_dtype("utf-8", width))


def _concatenate(arrays: Sequence[np.ndarray], width: tuple[int, ...]) -> np.ndarray:
    return np.concatenate(arrays) if arrays else np.zeros((0, *width))
