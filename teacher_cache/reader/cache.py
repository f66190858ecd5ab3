"""Reads a finished cache: numpy and h5py only, quick random access from many processes."""

from __future__ import annotations

import resource
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from pipeline.types import Pairs
from pipeline.utils.errors import InputError
from pipeline.utils.files import describe_changes
from pipeline.vocabulary import Vocabulary
from teacher_cache.reader.fingerprint import text_model_digest
from teacher_cache.reader.format import (
    MANIFEST,
    PAIR_DATASETS,
    PAIR_OFFSETS,
    REGION_BOX,
    REGION_EMBEDDING,
    SHARDS,
    TEACHER,
    TeacherOutputs,
)
from teacher_cache.reader.manifest import read_manifest, stored_vocabulary
from teacher_cache.reader.shard import (
    READ_ERRORS,
    ShardLayout,
    check_indices,
    damage_error,
    map_shard,
    open_cache_file,
    read_layout,
)


def _open_file_limit() -> int:
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return limit if limit != resource.RLIM_INFINITY else 1 << 20


# Every mapped shard holds one file descriptor; systems allow a process 256 and more, and the rest
# of it keeps three quarters.
MAX_OPEN_SHARDS = min(1024, max(16, _open_file_limit() // 4))


@dataclass(frozen=True, eq=False)
class PromptEmbeddings:
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
    """A finished cache; `cache[image_id]` gives that image's outputs.

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
        self._shard_rows = {
            image_id: (shard, row)
            for shard, entry in enumerate(self.manifest["shards"])
            for row, image_id in enumerate(entry["images"])
        }
        self._layouts: dict[int, ShardLayout] = {}
        self._checked: set[int] = set()
        self._open: dict[int, dict[str, np.ndarray]] = {}

    @property
    def fingerprint(self) -> str:
        return self.manifest["fingerprint"]

    @property
    def image_ids(self) -> list[str]:
        """Ids of all images with outputs, in the order of the dataset."""
        return list(self._shard_rows)

    @property
    def failed(self) -> dict[str, str]:
        """Why an image could not be read, by image id."""
        return self.manifest["failed"]

    @property
    def num_shards(self) -> int:
        return len(self.manifest["shards"])

    @cached_property
    def prompt_embeddings(self) -> PromptEmbeddings:
        """Prompts, their embeddings and the temperature."""
        return read_teacher_file(self.path / TEACHER, self.fingerprint)

    @cached_property
    def has_embeddings(self) -> bool:
        """Whether it holds embeddings of its regions.

        Raises:
            InputError: a shard is missing or damaged.
        """
        layouts = map(self.layout, range(self.num_shards))
        with_regions = (one for one in layouts if one.num_regions)
        return all(REGION_EMBEDDING in one.locations for one in with_regions)

    @property
    def text_model(self) -> str | None:
        """Identifies the CLIP behind its texts; None in early caches that do not name it."""
        return text_model_digest(self.manifest["parts"])

    @property
    def protocol(self) -> str:
        """What its candidate pairs are made of: "annotated" boxes, or those of a "detector"."""
        is_annotated = self.manifest["parts"].get("candidates") == "annotated"
        return "annotated" if is_annotated else "detector"

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """Vocabulary of the outputs.

        Raises:
            InputError: the manifest holds none (early caches), and no shipped one is it.
        """
        return stored_vocabulary(self.path / MANIFEST, self.manifest)

    def check(
        self,
        vocabulary: Vocabulary | None = None,
        annotations_digest: str | None = None,
        part: str | None = None,
    ) -> None:
        """Makes sure that the cache was made for this vocabulary, annotation file and part of it.

        Raises:
            InputError: it was not; says which part differs.
        """
        wanted = {}
        if vocabulary is not None:
            wanted["vocabulary"] = vocabulary.digest()
        if annotations_digest is not None:
            wanted["annotations"] = annotations_digest
        parts = self.manifest["parts"]
        if part is not None and "part" in parts:
            wanted["part"] = part
        held = {name: parts.get(name) for name in wanted}
        changes = describe_changes(held, wanted)
        if changes:
            raise InputError(f"{self.path}: the cache does not fit this dataset: {changes}")

    def __len__(self) -> int:
        return len(self._shard_rows)

    def __contains__(self, image_id: object) -> bool:
        return image_id in self._shard_rows

    def __getitem__(self, image_id: str) -> TeacherOutputs:
        """One image's outputs.

        Raises:
            KeyError: the cache holds no outputs for this image.
            InputError: the image's shard is missing or damaged.
        """
        shard, row = self._shard_rows[image_id]
        return read_outputs(self.arrays(shard), row)

    def __reduce__(self) -> tuple[type[TeacherCache], tuple[Path]]:
        return type(self), (self.path,)

    def layout(self, shard: int) -> ShardLayout:
        """What lies where in the shard of this number; read once.

        Raises:
            InputError: the shard is missing, damaged, or not the one of the manifest.
        """
        layout = self._layouts.get(shard)
        if layout is None:
            path = self._shard_path(shard)
            layout = self._layouts[shard] = read_layout(path, self.fingerprint)
            if layout.images != tuple(self.manifest["shards"][shard]["images"]):
                raise InputError(f"{path}: expected the images of {MANIFEST}, found others")
        return layout

    def arrays(self, shard: int) -> dict[str, np.ndarray]:
        """A shard's arrays by name, mapped and read-only, the regions numbered within the shard.

        Raises:
            InputError: the shard is missing, damaged, or not the one of the manifest.
        """
        arrays = self._open.get(shard)
        if arrays is None:
            path = self._shard_path(shard)
            arrays = map_shard(path, self.layout(shard))
            if shard not in self._checked:
                check_indices(path, arrays, self._num_objects)
                self._checked.add(shard)
            self._open[shard] = arrays
            if len(self._open) > MAX_OPEN_SHARDS:
                self._open.pop(next(iter(self._open)), None)
        return arrays

    @property
    def _num_objects(self) -> int | None:
        vocabulary = self.manifest.get("vocabulary", {})
        return len(vocabulary["objects"]) if "objects" in vocabulary else None

    def _shard_path(self, shard: int) -> Path:
        return self.path / SHARDS / self.manifest["shards"][shard]["name"]


def open_cache(path: Path | str) -> TeacherCache:
    """Opens a finished cache folder; see `TeacherCache`."""
    return TeacherCache(path)


def read_outputs(arrays: dict[str, np.ndarray], row: int) -> TeacherOutputs:
    """One image's outputs.

    Args:
        arrays: of its shard.
        row: of the image within the shard.
    """
    first, end = arrays[PAIR_OFFSETS][row : row + 2].tolist()
    part = {name: arrays[name][first:end] for name in PAIR_DATASETS}
    rows = part["pairs/region"].astype(np.int64)
    # An image's regions stand together, in the order in which its pairs need them.
    first_region, end_region = (int(rows.min()), int(rows.max()) + 1) if end > first else (0, 0)
    embeddings = arrays.get(REGION_EMBEDDING)
    return TeacherOutputs(
        pairs=Pairs(
            human_boxes=part["pairs/human_box"].copy(),
            object_boxes=part["pairs/object_box"].copy(),
            object_labels=part["pairs/object_label"].astype(np.int64),
            human_scores=part["pairs/human_score"].copy(),
            object_scores=part["pairs/object_score"].copy(),
            sources=part["pairs/source"].copy(),
        ),
        probabilities=part["pairs/action_probabilities"].astype(np.float32),
        region_indices=rows - first_region,
        region_boxes=arrays[REGION_BOX][first_region:end_region].copy(),
        embeddings=None if embeddings is None else embeddings[first_region:end_region],
    )


def read_teacher_file(path: Path, fingerprint: str) -> PromptEmbeddings:
    """Reads `teacher.h5`.

    Raises:
        InputError: missing, damaged, or of another cache.
    """
    try:
        with open_cache_file(path, fingerprint) as file:
            return PromptEmbeddings(
                prompts=tuple(tuple(row) for row in file["prompts"].asstr()[()].tolist()),
                embeddings=file["text_embeddings"][()],
                logit_scale=float(file.attrs["logit_scale"]),
            )
    except InputError:
        raise
    except READ_ERRORS as error:
        raise damage_error(path, "the teacher's texts", error) from None
