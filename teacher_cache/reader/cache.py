"""`TeacherCache`: random access to the teacher's outputs of a finished cache, by image."""

from __future__ import annotations

import resource
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache
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
    PROBABILITIES_PART,
    REGION_BOX,
    REGION_EMBEDDING,
    SHARDS,
    SOFTMAX,
    TEACHER,
    TEACHER_PART,
    TeacherOutputs,
)
from teacher_cache.reader.manifest import read_manifest, stored_vocabulary
from teacher_cache.reader.shard import (
    ShardLayout,
    map_shard,
    open_cache_file,
    read_layout,
    read_prompts,
)


def _open_file_limit() -> int:
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return limit if limit != resource.RLIM_INFINITY else 1 << 20


# A mapped shard keeps one file descriptor open. Usual limits are 256 to 1024 per process, shared
# with DataLoader workers' pipes and everything else, so the cache takes a quarter at most.
MAX_OPEN_SHARDS = min(1024, max(16, _open_file_limit() // 4))


@dataclass(frozen=True, eq=False)
class PromptEmbeddings:
    """Prompts of the H interactions with their CLIP embeddings.

    Attributes:
        prompts: one sentence per template for each interaction.
        embeddings: (H, D) float32, normalised.
        logit_scale: factor on cosine similarities: the inverse of the softmax temperature.
    """

    prompts: tuple[tuple[str, ...], ...]
    embeddings: np.ndarray
    logit_scale: float


class TeacherCache:
    """A finished cache; `cache[image_id]` gives the outputs for one image.

    Shards are memory-mapped when first needed. Mapped files have no shared file position, so one
    object may be used from forked and spawned workers and from threads at the same time; pickling
    it passes only the path.

    Raises:
        InputError: the folder holds no finished cache of format 1.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.manifest = read_manifest(self.path)
        self._shard_rows = {
            image_id: (shard, row)
            for shard, entry in enumerate(self.manifest["shards"])
            for row, image_id in enumerate(entry["images"])
        }
        self.shard_layout = cache(self._read_layout)
        self.shard_arrays = lru_cache(MAX_OPEN_SHARDS)(self._map_shard)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of everything that determines the outputs."""
        return self.manifest["fingerprint"]

    @property
    def image_ids(self) -> list[str]:
        """Ids of all images with outputs, in the order of the dataset."""
        return list(self._shard_rows)

    @property
    def failed(self) -> dict[str, str]:
        """Image id -> error, for images that could not be read."""
        return self.manifest["failed"]

    @property
    def num_shards(self) -> int:
        return len(self.manifest["shards"])

    @property
    def probabilities(self) -> str:
        """ "softmax" if the probabilities of a pair are a distribution over the actions of its
        object, "independent" if every verb has a probability of its own."""
        return self.manifest["parts"].get(PROBABILITIES_PART, SOFTMAX)

    @cached_property
    def prompt_embeddings(self) -> PromptEmbeddings:
        """Prompts of the interactions, their embeddings and the logit scale.

        Raises:
            InputError: the cache's teacher has no text encoder, or `teacher.h5` is damaged.
        """
        text = read_teacher_file(self.path / TEACHER, self.fingerprint)
        if text is None:
            name = self.manifest["parts"].get(TEACHER_PART)
            raise InputError(
                f"{self.path}: expected text embeddings, found none: the teacher {name} has no text"
                " encoder"
            )
        return text

    @cached_property
    def has_embeddings(self) -> bool:
        """Whether the cache contains region embeddings.

        Raises:
            InputError: a shard is missing or damaged.
        """
        layouts = map(self.shard_layout, range(self.num_shards))
        return all(REGION_EMBEDDING in each.locations for each in layouts if each.num_regions)

    @property
    def text_model(self) -> str | None:
        """Identifies the model behind the prompt embeddings; see `text_model_digest`."""
        return text_model_digest(self.manifest["parts"])

    @property
    def protocol(self) -> str:
        """Source of the candidate pairs: "annotated" boxes, or those of a "detector".

        Boxes of a detections file count as those of a detector.
        """
        is_annotated = self.manifest["parts"].get("candidates") == "annotated"
        return "annotated" if is_annotated else "detector"

    @property
    def limit(self) -> int | None:
        """Number of images of a cache that was built with `--limit`; None for a whole part."""
        prefix, *words = str(self.manifest["parts"].get("annotations")).split(" ")
        return int(words[0]) if prefix == "limit" else None

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """Vocabulary of the outputs.

        Raises:
            InputError: the manifest does not contain it (early caches), and it is not a built-in
                one.
        """
        return stored_vocabulary(self.path / MANIFEST, self.manifest)

    def check(
        self,
        vocabulary: Vocabulary | None = None,
        annotations_digest: str | None = None,
        part: str | None = None,
    ) -> None:
        """Checks that the cache was made for a dataset; None is not checked.

        Args:
            vocabulary: the dataset's vocabulary.
            annotations_digest: digest of the annotation file.
            part: "train" or "test".

        Raises:
            InputError: the cache was made for another dataset; names what differs.
        """
        expected = {}
        if vocabulary is not None:
            expected["vocabulary"] = vocabulary.digest()
        if annotations_digest is not None:
            expected["annotations"] = annotations_digest
        parts = self.manifest["parts"]
        # Early caches do not name the part.
        if part is not None and "part" in parts:
            expected["part"] = part
        changes = describe_changes({name: parts.get(name) for name in expected}, expected)
        # Early caches do not contain the vocabulary.
        name = self.manifest.get("vocabulary", {}).get("name")
        if changes and name and vocabulary is not None and vocabulary.name != name:
            changes = f"{changes}; names of the vocabularies: {name}, now {vocabulary.name}"
        if changes:
            raise InputError(f"{self.path}: the cache does not fit this dataset: {changes}")

    def __len__(self) -> int:
        return len(self._shard_rows)

    def __contains__(self, image_id: object) -> bool:
        return image_id in self._shard_rows

    def __getitem__(self, image_id: str) -> TeacherOutputs:
        """The teacher's outputs for one image.

        Raises:
            KeyError: the cache contains no outputs for this image.
            InputError: the image's shard is missing or damaged.
        """
        shard, row = self._shard_rows[image_id]
        return read_outputs(self.shard_arrays(shard), row)

    def __reduce__(self) -> tuple[type[TeacherCache], tuple[Path]]:
        return type(self), (self.path,)

    def _read_layout(self, shard: int) -> ShardLayout:
        """The layout of the shard with this index.

        Raises:
            InputError: the shard is missing or damaged, or contains other images than the manifest
                says.
        """
        path = self._shard_path(shard)
        layout = read_layout(path, self.fingerprint)
        if layout.images != tuple(self.manifest["shards"][shard]["images"]):
            raise InputError(f"{path}: expected the images listed in {MANIFEST}, found others")
        return layout

    def _map_shard(self, shard: int) -> dict[str, np.ndarray]:
        """The arrays of the shard with this index by dataset name, memory-mapped and read-only.

        `pairs/region` is an index into the shard's regions, not into an image's.

        Raises:
            InputError: as for the layout.
        """
        objects = self.manifest.get("vocabulary", {}).get("objects")
        num_objects = None if objects is None else len(objects)
        return map_shard(self._shard_path(shard), self.shard_layout(shard), num_objects)

    def _shard_path(self, shard: int) -> Path:
        return self.path / SHARDS / self.manifest["shards"][shard]["name"]


def open_cache(path: Path | str) -> TeacherCache:
    """Opens a finished cache folder; see `TeacherCache`."""
    return TeacherCache(path)


def read_outputs(arrays: dict[str, np.ndarray], row: int) -> TeacherOutputs:
    """The teacher's outputs for the image in a row of a shard, from the shard's arrays by name."""
    first, end = arrays[PAIR_OFFSETS][row : row + 2].tolist()
    columns = {name: arrays[name][first:end] for name in PAIR_DATASETS}
    regions = columns["pairs/region"].astype(np.int64)
    # The format stores the regions of an image as consecutive rows.
    first_region, end_region = (
        (int(regions.min()), int(regions.max()) + 1) if end > first else (0, 0)
    )
    embeddings = arrays.get(REGION_EMBEDDING)
    return TeacherOutputs(
        pairs=Pairs(
            human_boxes=columns["pairs/human_box"].copy(),
            object_boxes=columns["pairs/object_box"].copy(),
            object_labels=columns["pairs/object_label"].astype(np.int64),
            human_scores=columns["pairs/human_score"].copy(),
            object_scores=columns["pairs/object_score"].copy(),
            sources=columns["pairs/source"].copy(),
        ),
        probabilities=columns["pairs/action_probabilities"].astype(np.float32),
        region_indices=regions - first_region,
        region_boxes=arrays[REGION_BOX][first_region:end_region].copy(),
        embeddings=None if embeddings is None else embeddings[first_region:end_region],
    )


def read_teacher_file(path: Path, fingerprint: str) -> PromptEmbeddings | None:
    """Reads `teacher.h5` of the cache with this fingerprint; None if its teacher encodes no text.

    Raises:
        InputError: the file is missing, damaged, or of another cache.
    """
    with open_cache_file(path, fingerprint, "the prompt embeddings") as file:
        if "logit_scale" not in file.attrs:
            return None
        return PromptEmbeddings(
            prompts=read_prompts(file),
            embeddings=file["text_embeddings"][()],
            logit_scale=float(file.attrs["logit_scale"]),
        )
