"""Joins partial caches into the cache that a single build would have made.

The parts are either the shards of several jobs of one build, or caches of parts of one dataset.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.annotations.load import AnnotationFile
from pipeline.datasets.dataset import open_dataset
from pipeline.types import Pairs
from pipeline.utils.errors import InputError
from pipeline.utils.files import atomic_write, describe_changes
from pipeline.utils.logging import get_logger
from pipeline.utils.progress import Progress, track
from pipeline.vocabulary import Vocabulary
from teacher_cache.detectors.pairing import annotated_pairs
from teacher_cache.reader.cache import PromptEmbeddings, open_cache, read_outputs, read_teacher_file
from teacher_cache.reader.format import (
    ANNOTATED,
    MANIFEST,
    PLAN,
    SHARDS,
    TEACHER,
    TeacherOutputs,
    shard_name,
    vocabulary_to_dict,
)
from teacher_cache.reader.manifest import stored_vocabulary
from teacher_cache.reader.shard import ShardLayout, map_shard, read_layout
from teacher_cache.writer.lock import lock_folder
from teacher_cache.writer.manifest import planned_shards, write_manifest
from teacher_cache.writer.plan import BuildPlan, check_folder, claim_folder, read_plan
from teacher_cache.writer.settings import MERGED_FROM_KEY, read_settings
from teacher_cache.writer.shard import is_finished_shard, write_shard, write_teacher_file

logger = get_logger(__name__)

# Fingerprint parts in which caches of parts of one dataset differ; the joined cache takes them from
# the whole dataset.
DATASET_PARTS = ("annotations", "part")


@dataclass(frozen=True)
class MergeConfig:
    """Which caches to join.

    Attributes:
        caches: cache folders, finished or with some of the shards of a build.
        out: the new cache folder, or that of an interrupted merge of the same caches.
        dataset: folder of the whole dataset, if the caches were built from parts of it; None if
            they were built from one annotation file.
        part: part of the dataset, "train" or "test"; None for that of the caches.
    """

    caches: tuple[Path, ...]
    out: Path
    dataset: Path | None = None
    part: str | None = None


def merge_caches(config: MergeConfig) -> None:
    """Joins caches and writes the new one.

    Raises:
        InputError: the input is bad, the caches differ in more than their images, an image is in
            none of them, or two of them contain different outputs of an image.
    """
    inventories = [read_inventory(folder) for folder in config.caches]
    first = inventories[0]
    _check_same_parts(inventories, () if config.dataset is None else DATASET_PARTS)
    whole = (
        None
        if config.dataset is None
        else _load_annotations(config.dataset, config.part, inventories)
    )
    _check_same_layout(inventories, whole is not None)
    size = first.plan["layout"].get("images_per_shard") or max(first.num_images, 1)
    if whole is None:
        shards = split_by_plan(inventories, size)
    else:
        shards = split_by_dataset(inventories, whole, size)
    sources = find_image_sources(inventories)
    contents = assign_sources(shards, sources, inventories)
    check_duplicates(sources)
    if whole is not None:
        check_annotated_pairs(sources, whole)
    plan = _make_plan(config, inventories, whole, sum(map(len, shards)))
    if check_folder(config.out, plan):
        logger.info(f"{config.out}: was finished before; nothing to do")
        return
    if not plan.layout["embeddings"] and any(
        _has_embeddings(inventory) for inventory in inventories
    ):
        logger.warning(f"{config.out}: without region embeddings, which some of the caches lack")
    with lock_folder(config.out) as lock:
        claim_folder(config.out, plan)
        lock.remove_temporary_files()
        write_teacher_file(config.out / TEACHER, plan.fingerprint, first.prompt_embeddings)
        with Progress(plan.num_images, "Joining", "images") as progress:
            for number, content in enumerate(contents):
                path = config.out / SHARDS / shard_name(number)
                if not is_finished_shard(path, plan.fingerprint):
                    _write_merged_shard(path, content, plan, first.vocabulary.num_verbs)
                progress.update(len(content.images) + len(content.failed))
        status = write_manifest(config.out)
    assert status.counts is not None
    counts = status.counts
    print(
        f"{config.out}: {counts['images']} images, {counts['pairs']} pairs of"
        f" {len(inventories)} caches in {counts['shards']} shards"
    )


def _check_same_parts(inventories: Sequence[CacheInventory], ignored: Sequence[str]) -> None:
    """Checks that the fingerprints of all caches have the same parts, except ignored ones.

    Raises:
        InputError: they differ; the message names the parts.
    """
    first, *others = inventories
    for other in others:
        parts = [
            {name: value for name, value in inventory.plan["parts"].items() if name not in ignored}
            for inventory in (first, other)
        ]
        changes = describe_changes(*parts)
        if changes:
            differing = {name for name in parts[0] if parts[0][name] != parts[1].get(name)}
            hint = "; --data joins parts of one dataset" if differing <= {*DATASET_PARTS} else ""
            raise InputError(
                f"{other.folder}: expected the fingerprint of {first.folder}, found another"
                f" ({changes}){hint}"
            )


def _check_same_layout(inventories: Sequence[CacheInventory], any_size: bool) -> None:
    first, *others = inventories
    for other in others:
        sizes = [each.plan["layout"].get("images_per_shard") for each in (first, other)]
        if sizes[0] != sizes[1] and not any_size:
            raise InputError(
                f"{other.folder}: expected {sizes[0]} images per shard as in {first.folder}, found"
                f" {sizes[1]}; --data joins such caches in the dataset's order"
            )


def _load_annotations(
    folder: Path, part: str | None, inventories: Sequence[CacheInventory]
) -> AnnotationFile:
    """The annotations of the whole dataset.

    Raises:
        InputError: the dataset is bad or has another vocabulary, or its part is ambiguous.
    """
    dataset = open_dataset(folder)
    first = inventories[0]
    expected = {"vocabulary": dataset.vocabulary.digest()}
    changes = describe_changes({"vocabulary": first.plan["parts"].get("vocabulary")}, expected)
    if changes:
        raise InputError(f"{first.folder}: the cache does not fit this dataset: {changes}")
    parts = {str(inventory.plan["parts"].get("part")) for inventory in inventories}
    if part is None and len(parts) > 1:
        raise InputError(
            f"--part: expected the part of the dataset for caches of {' and '.join(sorted(parts))},"
            " found none"
        )
    return dataset.load(part or parts.pop())


def _make_plan(
    config: MergeConfig,
    inventories: Sequence[CacheInventory],
    whole: AnnotationFile | None,
    num_images: int,
) -> BuildPlan:
    first = inventories[0]
    parts, settings = dict(first.plan["parts"]), dict(first.settings)
    if whole is not None:
        parts |= {"annotations": whole.digest, "part": whole.part}
        settings |= {"dataset": str(Path(config.dataset or "").absolute()), "part": whole.part}
    layout = {**first.plan["layout"], "embeddings": all(map(_has_embeddings, inventories))}
    sources = [str(folder.absolute()) for folder in config.caches]
    return BuildPlan(
        parts=parts,
        layout=layout,
        num_images=num_images,
        settings={**settings, MERGED_FROM_KEY: sources},
        vocabulary=vocabulary_to_dict(first.vocabulary),
    )


def _has_embeddings(inventory: CacheInventory) -> bool:
    return bool(inventory.plan["layout"].get("embeddings", True))


def _write_merged_shard(path: Path, content: ShardContent, plan: BuildPlan, num_verbs: int) -> None:
    equal_shard = _find_equal_shard(content, plan)
    if equal_shard is not None:
        # Copying is faster than writing the outputs again, and keeps the bytes.
        with atomic_write(path) as temporary:
            shutil.copyfile(equal_shard, temporary)
        return
    outputs = [source.outputs for source in content.images.values()]
    if not plan.layout["embeddings"]:
        outputs = [replace(each, embeddings=None) for each in outputs]
    write_shard(path, plan.fingerprint, list(content.images), outputs, content.failed, num_verbs)


def _find_equal_shard(content: ShardContent, plan: BuildPlan) -> Path | None:
    """The file of a cache that already has this shard's content, if there is one."""
    for source in list(content.images.values())[:1]:
        inventory, number = source.inventory, source.location.shard
        layout = inventory.layouts[number]
        if (
            inventory.plan["fingerprint"] == plan.fingerprint
            and layout.images == tuple(content.images)
            and layout.failed == content.failed
            and _has_embeddings(inventory) == plan.layout["embeddings"]
        ):
            return inventory.shard_path(number)
    return None


@dataclass(frozen=True, eq=False)
class ImageSource:
    """The cache, shard and row of an image's outputs."""

    inventory: CacheInventory
    location: ImageLocation

    @property
    def outputs(self) -> TeacherOutputs:
        return self.inventory.outputs(self.location)


@dataclass(frozen=True, eq=False)
class ShardContent:
    """Content of a shard to write.

    Attributes:
        images: sources of the outputs, by image id.
        failed: reasons why images could not be read, by image id.
    """

    images: dict[str, ImageSource]
    failed: dict[str, str]


def find_image_sources(inventories: Sequence[CacheInventory]) -> dict[str, list[ImageSource]]:
    """All sources of each image's outputs, by image id, in the order of the caches."""
    sources: dict[str, list[ImageSource]] = {}
    for inventory in inventories:
        for image, location in inventory.locations().items():
            sources.setdefault(image, []).append(ImageSource(inventory, location))
    return sources


def split_by_plan(inventories: Sequence[CacheInventory], size: int) -> list[list[str]]:
    """Image ids of each shard, for caches of one build, whose shards have the same numbers.

    Args:
        inventories: the caches.
        size: number of images per shard.

    Raises:
        InputError: a shard or some of its images are in none of the caches.
    """
    num_images = inventories[0].num_images
    shards = []
    for number, first in enumerate(range(0, num_images, size)):
        layouts = [each.layouts[number] for each in inventories if number in each.layouts]
        images = dict.fromkeys(
            image for layout in layouts for image in (*layout.images, *layout.failed)
        )
        expected = min(size, num_images - first)
        if len(images) != expected:
            raise InputError(
                f"{', '.join(str(each.folder) for each in inventories)}: expected {expected} images"
                f" of shard {shard_name(number)}, found {len(images)}"
            )
        shards.append(list(images))
    return shards


def split_by_dataset(
    inventories: Sequence[CacheInventory], whole: AnnotationFile, size: int
) -> list[list[str]]:
    """Image ids of each shard, in the order of the whole dataset.

    Raises:
        InputError: a cache contains an image that the dataset lacks.
    """
    ids = [annotation.image_id for annotation in whole.annotations]
    known = set(ids)
    for inventory in inventories:
        for layout in inventory.layouts.values():
            for image in (*layout.images, *layout.failed):
                if image not in known:
                    raise InputError(
                        f"{inventory.folder}: expected images of {whole.path}, found {image}"
                    )
    return [ids[start : start + size] for start in range(0, len(ids), size)]


def assign_sources(
    shards: Sequence[Sequence[str]],
    sources: Mapping[str, Sequence[ImageSource]],
    inventories: Sequence[CacheInventory],
) -> list[ShardContent]:
    """Content of each shard; an image counts as failed only if no cache has outputs of it.

    Args:
        shards: image ids of each shard.
        sources: sources of outputs by image id, of which the first one is taken.
        inventories: the caches.

    Raises:
        InputError: an image is in none of the caches.
    """
    reasons = {
        image: reason
        for inventory in reversed(inventories)
        for layout in inventory.layouts.values()
        for image, reason in layout.failed.items()
    }
    known = sources.keys() | reasons.keys()
    missing = [image for shard in shards for image in shard if image not in known]
    if missing:
        folders = ", ".join(str(inventory.folder) for inventory in inventories)
        total = sum(map(len, shards))
        raise InputError(
            f"{folders}: {len(missing)} of {total} images are in none, first {missing[0]}"
        )
    return [
        ShardContent(
            {image: sources[image][0] for image in shard if image in sources},
            {image: reasons[image] for image in shard if image not in sources},
        )
        for shard in shards
    ]


def check_duplicates(sources: Mapping[str, Sequence[ImageSource]]) -> None:
    """Compares the outputs of images that are in several caches.

    Raises:
        InputError: the outputs of an image differ.
    """
    shared = {image: found for image, found in sources.items() if len(found) > 1}
    for image, (first, *others) in track(
        shared.items(), len(shared), "Comparing", "images", brief=True
    ):
        outputs = first.outputs
        for other in others:
            if not outputs_equal(outputs, other.outputs):
                raise InputError(
                    f"{other.inventory.folder}: {image}: expected the outputs of"
                    f" {first.inventory.folder}, found different ones"
                )


def check_annotated_pairs(
    sources: Mapping[str, Sequence[ImageSource]], whole: AnnotationFile
) -> None:
    """Checks that the caches' annotated pairs are those of the whole dataset.

    Raises:
        InputError: an image has other annotated pairs in the dataset.
    """
    annotations = whole.annotations
    for annotation in track(annotations, len(annotations), "Comparing", "annotations", brief=True):
        for source in sources.get(annotation.image_id, ())[:1]:
            pairs = source.outputs.pairs
            rows = pairs.sources == ANNOTATED
            found = Pairs(**{each.name: getattr(pairs, each.name)[rows] for each in fields(Pairs)})
            if not _pairs_equal(found, annotated_pairs(annotation)):
                raise InputError(
                    f"{source.inventory.folder}: {annotation.image_id}: expected the annotated"
                    f" pairs of {whole.path}, found others"
                )


def outputs_equal(first: TeacherOutputs, second: TeacherOutputs) -> bool:
    """Whether two outputs are equal; embeddings are compared if both contain them."""
    arrays = [each.name for each in fields(first) if each.name not in ("pairs", "embeddings")]
    if not _pairs_equal(first.pairs, second.pairs):
        return False
    if not all(np.array_equal(getattr(first, name), getattr(second, name)) for name in arrays):
        return False
    if first.embeddings is None or second.embeddings is None:
        return True
    return np.array_equal(first.embeddings, second.embeddings)


def _pairs_equal(first: Pairs, second: Pairs) -> bool:
    return all(
        np.array_equal(getattr(first, each.name), getattr(second, each.name))
        for each in fields(Pairs)
    )


@dataclass(frozen=True)
class ImageLocation:
    """Position of an image's outputs: number of the shard, and row within it."""

    shard: int
    row: int


@dataclass(frozen=True, eq=False)
class CacheInventory:
    """The finished shards of a cache folder.

    Attributes:
        folder: the cache folder, which may be unfinished.
        file: its manifest, or `build.json` if the cache is unfinished.
        plan: the content of `file`: fingerprint, parts, layout and others.
        num_images: number of images of the whole cache, including unreadable ones.
        layouts: layouts of the finished shards, by number.
    """

    folder: Path
    file: Path
    plan: dict[str, Any]
    num_images: int
    layouts: dict[int, ShardLayout]
    _mapped: dict[int, dict[str, np.ndarray]] = field(default_factory=dict)

    @property
    def prompt_embeddings(self) -> PromptEmbeddings:
        return read_teacher_file(self.folder / TEACHER, self.plan["fingerprint"])

    @property
    def vocabulary(self) -> Vocabulary:
        return stored_vocabulary(self.file, self.plan)

    @property
    def settings(self) -> dict[str, Any]:
        return read_settings(self.folder, self.plan)

    def locations(self) -> dict[str, ImageLocation]:
        """Positions of all images' outputs, by image id."""
        return {
            image: ImageLocation(number, row)
            for number, layout in self.layouts.items()
            for row, image in enumerate(layout.images)
        }

    def shard_path(self, number: int) -> Path:
        return self.folder / SHARDS / shard_name(number)

    def outputs(self, location: ImageLocation) -> TeacherOutputs:
        """The outputs at a position; fast if successive calls stay within a shard."""
        # One mapped shard at a time limits the number of open files.
        if location.shard not in self._mapped:
            self._mapped.clear()
            path = self.shard_path(location.shard)
            self._mapped[location.shard] = map_shard(path, self.layouts[location.shard])
        return read_outputs(self._mapped[location.shard], location.row)


def read_inventory(folder: Path) -> CacheInventory:
    """Reads the manifest or plan of a cache folder, and the layouts of its shards.

    Raises:
        InputError: the folder is not a cache, or manifest and shards do not match.
    """
    if not (folder / MANIFEST).is_file() and (folder / PLAN).is_file():
        return _read_unfinished(folder)
    cache = open_cache(folder)
    layouts = {number: cache.shard_layout(number) for number in range(cache.num_shards)}
    for number, entry in enumerate(cache.manifest["shards"]):
        if entry["name"] != shard_name(number):
            raise InputError(
                f"{folder / MANIFEST}: shards[{number}].name: expected {shard_name(number)},"
                f" found {entry['name']}"
            )
    num_images = len(cache) + len(cache.failed)
    return CacheInventory(folder, folder / MANIFEST, cache.manifest, num_images, layouts)


def _read_unfinished(folder: Path) -> CacheInventory:
    plan = read_plan(folder)
    layouts = {}
    for number, name in enumerate(planned_shards(folder)):
        path = folder / SHARDS / name
        if path.is_file():
            layouts[number] = read_layout(path, plan["fingerprint"])
    return CacheInventory(folder, folder / PLAN, plan, plan["images"], layouts)
