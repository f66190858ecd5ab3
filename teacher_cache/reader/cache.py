"""Reads a finished cache: numpy and h5py only, quick random access from many processes."""

from __future__ import annotations

import resource
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from pipeline.types import Pairs
from pipeline.utils.errors import InputError
from pipeline.utils.files import differing_parts
from pipeline.vocabulary import Vocabulary
from teacher_cache.reader.fingerprint import text_model_of
from teacher_cache.reader.format import (
    MANIFEST,
    PAIR_DATASETS,
    PAIR_OFFSETS,
    REGION_BOX,
    REGION_EMBEDDING,
    SHARDS,
    TEACHER,
    ImageAnswers,
)
from teacher_cache.reader.manifest import held_vocabulary, read_manifest
from teacher_cache.reader.shard import (
    DAMAGE,
    ShardLayout,
    check_numbers,
    damaged,
    map_shard,
    open_finished,
    read_layout,
)


def _open_files_allowed() -> int:
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return limit if limit != resource.RLIM_INFINITY else 1 << 20


# Every mapped shard holds one file descriptor; systems allow a process 256 and more, and the rest
# of it keeps three quarters.
MAX_OPEN_SHARDS = min(1024, max(16, _open_files_allowed() // 4))


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
        self._layouts: dict[int, ShardLayout] = {}
        self._checked: set[int] = set()
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

    @property
    def num_shards(self) -> int:
        return len(self.manifest["shards"])

    @cached_property
    def teacher(self) -> TeacherText:
        """Prompts, their embeddings and the temperature."""
        return read_teacher(self.path / TEACHER, self.fingerprint)

    @cached_property
    def has_embeddings(self) -> bool:
        """Whether it holds embeddings of its regions.

        Raises:
            InputError: a shard is missing or damaged.
        """
        layouts = map(self.layout, range(self.num_shards))
        with_regions = (one for one in layouts if one.num_regions)
        return all(REGION_EMBEDDING in one.places for one in with_regions)

    @property
    def text_model(self) -> str | None:
        """Identifies the CLIP behind its texts; None in early caches that do not name it."""
        return text_model_of(self.manifest["parts"])

    @property
    def protocol(self) -> str:
        """What its candidate pairs are made of: "annotated" boxes, or those of a "detector"."""
        is_annotated = self.manifest["parts"].get("candidates") == "annotated"
        return "annotated" if is_annotated else "detector"

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """What the answers are about.

        Raises:
            InputError: the manifest holds none (early caches), and no shipped one is it.
        """
        return held_vocabulary(self.path / MANIFEST, self.manifest)

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
        return answers_at(self.arrays(shard), row)

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
                check_numbers(path, arrays, self._num_objects)
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


def answers_at(arrays: dict[str, np.ndarray], row: int) -> ImageAnswers:
    """One image's answers.

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
        embeddings=None if embeddings is None else embeddings[first_region:end_region],
    )


def read_teacher(path: Path, fingerprint: str) -> TeacherText:
    """Reads `teacher.h5`.

    Raises:
        InputError: missing, damaged, or of another cache.
    """
    try:
        with open_finished(path, fingerprint) as file:
            return TeacherText(
                prompts=tuple(tuple(row) for row in file["prompts"].asstr()[()].tolist()),
                embeddings=file["text_embeddings"][()],
                logit_scale=float(file.attrs["logit_scale"]),
            )
    except InputError:
        raise
    except DAMAGE as error:
        raise damaged(path, "the teacher's texts", error) from None
