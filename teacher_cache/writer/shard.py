"""Writes the HDF5 files of format 1 atomically: shards, `teacher.h5` and prompts files."""

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
from pipeline.utils.text import count_noun
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
from teacher_cache.reader.shard import DATASET_DTYPES, encode_strings, read_layout

# Bytes; memory-mapped arrays of numbers up to this size are then aligned.
ALIGNMENT = 8
SHARD_GROUPS = ("images", "failed", "pairs", "regions")


@dataclass(frozen=True)
class ShardRecord:
    """Description of a finished shard.

    Attributes:
        name: file name.
        sha256, size: checksum and size in bytes of the file.
        images: ids of the images with outputs.
        pairs, regions: numbers of rows.
        failed: image id -> error, for images that could not be read.
        embedding_width: numbers per region embedding; 0 without embeddings, None without regions.
        repeated: whether another job finished it while this one made it too.
    """

    name: str
    sha256: str
    size: int
    images: tuple[str, ...]
    pairs: int
    regions: int
    failed: dict[str, str]
    embedding_width: int | None = None
    repeated: bool = False

    def __str__(self) -> str:
        """Name and numbers for messages."""
        return f"{self.name}: {count_noun(len(self.images), 'images')}, {len(self.failed)} failed"

    def to_dict(self) -> dict[str, Any]:
        """The shard's entry in the manifest, which lists `failed` once for all shards."""
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
    """Writes one shard atomically.

    Args:
        path: the file.
        fingerprint: fingerprint of the cache.
        image_ids: ids of the N images with outputs.
        outputs: N teacher outputs.
        failed: image id -> error, for images of this shard that could not be read.
        num_verbs: V, which a shard without pairs needs for the shape of its arrays.
    """
    pairs = [output.pairs for output in outputs]
    first_regions = np.cumsum([0, *(len(output.region_boxes) for output in outputs)])
    arrays = {
        PAIR_OFFSETS: np.cumsum([0, *map(len, pairs)]),
        "pairs/human_box": _join([each.human_boxes for each in pairs], 4),
        "pairs/object_box": _join([each.object_boxes for each in pairs], 4),
        "pairs/human_score": _join([each.human_scores for each in pairs]),
        "pairs/object_score": _join([each.object_scores for each in pairs]),
        "pairs/object_label": _join([each.object_labels for each in pairs]),
        "pairs/source": _join([each.sources for each in pairs]),
        "pairs/region": _join(
            [
                each.region_indices + first
                for each, first in zip(outputs, first_regions, strict=False)
            ]
        ),
        "pairs/action_probabilities": _join([each.probabilities for each in outputs], num_verbs),
        REGION_BOX: _join([each.region_boxes for each in outputs], 4),
    }
    embeddings = [each.embeddings for each in outputs if each.embeddings is not None]
    if embeddings:
        arrays[REGION_EMBEDDING] = np.concatenate(embeddings)
    write_shard_arrays(path, fingerprint, image_ids, failed, arrays)


def _join(arrays: Sequence[np.ndarray], *row_shape: int) -> np.ndarray:
    return np.concatenate(arrays) if arrays else np.zeros((0, *row_shape))


def write_shard_arrays(
    path: Path,
    fingerprint: str,
    image_ids: Sequence[str],
    failed: Mapping[str, str],
    arrays: Mapping[str, np.ndarray],
) -> None:
    """Writes one shard atomically from its arrays by dataset name; see `write_shard`.

    Datasets are contiguous and uncompressed, so that readers can memory-map them. `pairs/region` is
    an index into the shard's regions.
    """
    with new_hdf5_file(path, fingerprint, SHARD_GROUPS) as file:
        file.create_dataset(IMAGE_ID, data=encode_strings(image_ids))
        file.create_dataset(FAILED_ID, data=encode_strings(failed))
        file.create_dataset(FAILED_REASON, data=encode_strings(failed.values()))
        for name in (PAIR_OFFSETS, *PAIR_DATASETS, REGION_BOX, REGION_EMBEDDING):
            if name in arrays:
                file.create_dataset(
                    name, data=arrays[name].astype(DATASET_DTYPES[name], copy=False)
                )


def write_teacher_file(path: Path, fingerprint: str, text: PromptEmbeddings | None) -> None:
    """Writes `teacher.h5`: the prompts, their embeddings and the logit scale, if there are any."""
    # Of several builders that start at the same time the first one wins, so that all use the same
    # embeddings: those of different devices differ slightly.
    with new_hdf5_file(path, fingerprint, keep_existing=not path.exists()) as file:
        if text is not None:
            file.attrs["logit_scale"] = text.logit_scale
            _write_prompts(file, text)


def write_prompts_file(path: Path, prompts: ActionPrompts) -> None:
    """Writes a prompts file atomically; `read_prompts_file` reads it."""
    with new_hdf5_file(path, prompts.digest(), ("verbs", "interactions")) as file:
        file.attrs["kind"] = FILE_KIND
        file.attrs["text_model"] = prompts.text_model
        file.create_dataset("verbs/name", data=encode_strings(prompts.verbs))
        file.create_dataset("verbs/ing", data=encode_strings(prompts.verb_ings))
        file.create_dataset("interactions/verb", data=prompts.actions.astype("<i4"))
        file.create_dataset("interactions/object", data=encode_strings(prompts.objects))
        _write_prompts(file, prompts)


def _write_prompts(file: h5py.File, text: PromptEmbeddings | ActionPrompts) -> None:
    # A class may have fewer sentences than another; HDF5's array is rectangular.
    length = max(map(len, text.prompts), default=0)
    padded = (
        prompt for group in text.prompts for prompt in (*group, *[""] * (length - len(group)))
    )
    sentences = encode_strings(padded)
    file.create_dataset("prompts", data=sentences.reshape(len(text.prompts), -1))
    file.create_dataset("text_embeddings", data=text.embeddings.astype("<f4"))


@contextmanager
def new_hdf5_file(
    path: Path, fingerprint: str, groups: Iterable[str] = (), keep_existing: bool = False
) -> Iterator[h5py.File]:
    """A new HDF5 file for the `with` block, written atomically at its end.

    It is assembled in memory, because HDF5 cannot close a file properly on a full disk. The groups
    are created first: those that HDF5 creates on its own with a dataset may store the time, and
    equal content would not give equal bytes.
    """
    image = io.BytesIO()
    access, creation, group_creation = map(
        h5p.create, (h5p.FILE_ACCESS, h5p.FILE_CREATE, h5p.GROUP_CREATE)
    )
    # Not HDF5's core driver: before HDF5 2.0 the file image that it returns has a wrong checksum.
    access.set_fileobj_driver(h5fd.fileobj_driver, image)
    access.set_fclose_degree(h5f.CLOSE_STRONG)
    access.set_alignment(1, ALIGNMENT)
    # With these version bounds and without times, HDF5 1.12, 1.14 and 2 write equal bytes.
    access.set_libver_bounds(h5f.LIBVER_V18, h5f.LIBVER_V18)
    creation.set_obj_track_times(False)
    group_creation.set_obj_track_times(False)
    with h5py.File(h5f.create(path.name.encode(), h5f.ACC_TRUNC, creation, access)) as file:
        file.attrs["format_version"] = FORMAT_VERSION
        file.attrs["fingerprint"] = fingerprint
        for group in groups:
            h5g.create(file.id, group.encode(), gcpl=group_creation)
        yield file
    with atomic_write(path, keep_existing) as temporary:
        temporary.write_bytes(image.getbuffer())


def is_finished_shard(path: Path, fingerprint: str) -> bool:
    """Whether a complete shard of this cache is at `path`.

    The content is not verified: files are moved to their names only when they are complete.
    """
    try:
        read_layout(path, fingerprint)
    except InputError:
        return False
    return True


def read_shard_record(path: Path, fingerprint: str) -> ShardRecord:
    """Describes a shard on disk.

    Raises:
        InputError: there is no finished shard of this cache at `path`.
    """
    layout = read_layout(path, fingerprint)
    return ShardRecord(
        name=path.name,
        sha256=sha256_of_file(path),
        size=path.stat().st_size,
        images=layout.images,
        pairs=layout.num_pairs,
        regions=layout.num_regions,
        failed=layout.failed,
        embedding_width=layout.embedding_width,
    )
