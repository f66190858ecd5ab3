"""Reads a finished cache: numpy and h5py only, quick random access from many processes."""

from __future__ import annotations

import mmap
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from pipeline.errors import InputError
from pipeline.types import Pairs
from pipeline.vocabulary import Vocabulary
from teacher_cache.format import (
    PAIR_DATASETS,
    PAIR_OFFSETS,
    REGION_BOX,
    REGION_EMBEDDING,
    SHARDS,
    TEACHER,
    ImageAnswers,
    check_version,
    differing_parts,
    read_manifest,
)

# Every open shard holds one file descriptor; some systems allow 256 to a process.
MAX_OPEN_SHARDS = 64


@dataclass(frozen=True, eq=False)
class TeacherText:
    """The text side of the teacher.

    Attributes:
        prompts: per interaction, one prompt for each template.
        embeddings: (H, D) float32, normalised.
        logit_scale: factor on cosine similarities.
    """

    prompts: tuple[tuple[str, ...], ...]
    embeddings: np.ndarray
    logit_scale: float


class TeacherCache:
    """A finished cache; `cache[image_id]` gives that image's answers.

    Shards are memory-mapped when first needed and never share a file position, so a cache may be
    used from forked and spawned workers and from threads at once; pickling passes the path only.

    Args:
        path: the cache folder.

    Raises:
        InputError: not a finished cache of a known format version.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.manifest = read_manifest(self.path)
        self._places = {
            image_id: (shard, row)
            for shard, entry in enumerate(self.manifest["shards"])
            for row, image_id in enumerate(entry["images"])
        }
        self._open: dict[int, dict[str, np.ndarray]] = {}

    @property
    def fingerprint(self) -> str:
        return self.manifest["fingerprint"]

    @property
    def image_ids(self) -> list[str]:
        """Ids of all images with answers, in the order of the dataset."""
        return list(self._places)

    @property
    def failed(self) -> dict[str, str]:
        """Why an image could not be read, by image id."""
        return self.manifest["failed"]

    @cached_property
    def teacher(self) -> TeacherText:
        """Prompts, their embeddings and the temperature."""
        return read_teacher(self.path / TEACHER, self.fingerprint)

    def check(
        self, vocabulary: Vocabulary | None = None, annotations_digest: str | None = None
    ) -> None:
        """Makes sure that the cache was made for this vocabulary and this annotation file.

        Raises:
            InputError: it was not; says which part differs.
        """
        wanted = {}
        if vocabulary is not None:
            wanted["vocabulary"] = vocabulary.digest()
        if annotations_digest is not None:
            wanted["annotations"] = annotations_digest
        held = {name: self.manifest["parts"].get(name) for name in wanted}
        changes = differing_parts(held, wanted)
        if changes:
            raise InputError(f"{self.path}: the cache does not fit this dataset: {changes}")

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, image_id: object) -> bool:
        return image_id in self._places

    def __getitem__(self, image_id: str) -> ImageAnswers:
        """One image's answers.

        Raises:
            KeyError: the cache holds no answers for this image.
            InputError: the image's shard is missing or damaged.
        """
        shard, row = self._places[image_id]
        arrays = self._arrays(shard)
        first, end = arrays[PAIR_OFFSETS][row : row + 2].tolist()
        part = {name: arrays[name][first:end] for name in PAIR_DATASETS}
        rows = part["pairs/region"].astype(np.int64)
        # An image's regions stand together, in the order in which its pairs need them.
        first_region, end_region = (int(rows.min()), int(rows.max()) + 1) if end > first else (0, 0)
        embeddings = arrays.get(REGION_EMBEDDING)
        if embeddings is not None:
            embeddings = embeddings[first_region:end_region].astype(np.float32)
        return ImageAnswers(
            pairs=Pairs(
                human_boxes=part["pairs/human_box"].copy(),
                object_boxes=part["pairs/object_box"].copy(),
                object_labels=part["pairs/object_label"].astype(np.int64),
                human_scores=part["pairs/human_score"].copy(),
                object_scores=part["pairs/object_score"].copy(),
                sources=part["pairs/source"].copy(),
            ),
            probabilities=part["pairs/action_probabilities"].astype(np.float32),
            regions=rows - first_region,
            region_boxes=arrays[REGION_BOX][first_region:end_region].copy(),
            embeddings=embeddings,
        )

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["path"])  # type: ignore[misc]

    def _arrays(self, shard: int) -> dict[str, np.ndarray]:
        arrays = self._open.get(shard)
        if arrays is None:
            path = self.path / SHARDS / self.manifest["shards"][shard]["name"]
            arrays = map_shard(path, self.fingerprint)
            self._open[shard] = arrays
            if len(self._open) > MAX_OPEN_SHARDS:
                del self._open[next(iter(self._open))]
        return arrays


def open_cache(path: Path | str) -> TeacherCache:
    """Opens a finished cache folder; see `TeacherCache`."""
    return TeacherCache(path)


def map_shard(path: Path, fingerprint: str) -> dict[str, np.ndarray]:
    """A shard's numeric datasets by name, as views of the mapped file.

    HDF5 tells where each contiguous dataset begins and is closed again; reading then costs
    microseconds, where every read through HDF5 would cost a lock and a selection.

    Raises:
        InputError: missing, damaged, or of another cache.
    """
    try:
        # Finished shards are never written again, so the lock that HDF5 takes by default (and
        # that some network file systems refuse) protects nothing.
        with h5py.File(path, "r", locking=False) as file:
            check_version(path, int(file.attrs.get("format_version", 0)))
            if file.attrs.get("fingerprint") != fingerprint:
                raise InputError(f"{path}: the shard belongs to another cache")
            names = [PAIR_OFFSETS, *PAIR_DATASETS, REGION_BOX]
            if REGION_EMBEDDING in file:
                names.append(REGION_EMBEDDING)
            places = {name: _place(file[name]) for name in names}
        with open(path, "rb") as raw:
            mapped = mmap.mmap(raw.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, KeyError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: expected a complete shard, found damage ({error})") from None
    return {
        name: place
        if isinstance(place, np.ndarray)
        else np.ndarray(place[1], place[2], buffer=mapped, offset=place[0])
        for name, place in places.items()
    }


def _place(dataset: Any) -> np.ndarray | tuple[int, tuple[int, ...], np.dtype]:
    offset = dataset.id.get_offset()
    if offset is None or 0 in dataset.shape:
        return dataset[()]
    return offset, dataset.shape, dataset.dtype


def read_teacher(path: Path, fingerprint: str) -> TeacherText:
    """Reads `teacher.h5`.

    Raises:
        InputError: missing, damaged, or of another cache.
    """
    try:
        with h5py.File(path, "r", locking=False) as file:
            check_version(path, int(file.attrs.get("format_version", 0)))
            if file.attrs.get("fingerprint") != fingerprint:
                raise InputError(f"{path}: the file belongs to another cache")
            return TeacherText(
                prompts=tuple(tuple(row) for row in file["prompts"].asstr()[()].tolist()),
                embeddings=file["text_embeddings"][()],
                logit_scale=float(file.attrs["logit_scale"]),
            )
    except (OSError, KeyError) as error:
        raise InputError(f"{path}: expected the teacher's texts, found damage ({error})") from None
