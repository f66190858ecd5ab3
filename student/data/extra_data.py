"""Extra datasets of `--extra-data`: their images are mixed into the batches of the main dataset.

Their images may have HOI labels, boxes only, or no annotation; each dataset has its teacher cache.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipeline.datasets.dataset import Dataset, open_dataset
from pipeline.splits import Split, remove_unseen_labels
from pipeline.utils.errors import InputError
from student.config import Recipe
from student.data.dataset import TrainingDataset
from student.data.dataset_part import open_part
from student.data.transforms import build_augmentation
from student.utils.distributed import DistContext
from student.utils.seeding import derive_seed
from teacher_cache.reader.cache import TeacherCache, open_cache

SEPARATOR = ":"


@dataclass(frozen=True)
class ExtraPaths:
    """Folders of an extra dataset and of the teacher cache of its training part."""

    data: Path
    cache: Path


@dataclass(frozen=True, eq=False)
class ExtraDataset:
    """An extra dataset.

    Attributes:
        name: name of the dataset, with a number where another dataset has the same name.
        cache: its teacher cache.
        images: its training images with their targets.
    """

    name: str
    cache: TeacherCache
    images: TrainingDataset

    def describe(self) -> dict[str, Any]:
        """Entry in the run's plan and results; see `evaluation.results.Results`."""
        images = self.images
        seen_annotations = (
            remove_unseen_labels(annotation, images.split, images.vocabulary)
            for annotation in images.annotations
        )
        return {
            "name": self.name,
            "cache": self.cache.fingerprint,
            "images": len(images),
            "labelled": sum(len(annotation.hois) > 0 for annotation in seen_annotations),
            "protocol": self.cache.protocol,
        }


def parse_extra_data(texts: Iterable[str]) -> tuple[ExtraPaths, ...]:
    """Parses the values of `--extra-data DATASET:CACHE`.

    A value with several colons is split where both parts are existing folders, or at the last colon
    if no split or more than one has this property.

    Raises:
        InputError: a value has no colon, or nothing before or after it.
    """
    return tuple(_parse_paths(text) for text in texts)


def _parse_paths(text: str) -> ExtraPaths:
    splits = []
    for index, letter in enumerate(text):
        if letter == SEPARATOR and text[:index] and text[index + 1 :]:
            splits.append(ExtraPaths(Path(text[:index]), Path(text[index + 1 :])))
    if not splits:
        raise InputError(f"--extra-data: expected DATASET:CACHE, found {text or 'nothing'}")
    existing = [paths for paths in splits if paths.data.is_dir() and paths.cache.is_dir()]
    return existing[0] if len(existing) == 1 else splits[-1]


def open_extra_datasets(
    extra_paths: Sequence[ExtraPaths],
    main: Dataset,
    cache: TeacherCache,
    split: Split,
    recipe: Recipe,
    context: DistContext,
) -> list[ExtraDataset]:
    """Opens and checks the extra datasets.

    Args:
        extra_paths: their folders.
        main: the main dataset; all others must have its vocabulary.
        cache: the teacher cache of the main dataset.
        split: the zero-shot split, of all datasets.
        recipe: settings of the run.
        context: the processes.

    Raises:
        InputError: a dataset or cache does not fit the main one, or a cache is given twice.
    """
    extra: list[ExtraDataset] = []
    for paths in extra_paths:
        names = {main.name, *(one.name for one in extra)}
        cache_paths = {one.cache.path.resolve() for one in extra} | {cache.path.resolve()}
        if paths.cache.resolve() in cache_paths:
            raise InputError(f"--extra-data: expected every cache once, found {paths.cache} again")
        extra.append(_open_extra(paths, len(extra) + 1, names, main, split, recipe, context))
    return extra


def _open_extra(
    paths: ExtraPaths,
    dataset_index: int,
    names: Collection[str],
    main: Dataset,
    split: Split,
    recipe: Recipe,
    context: DistContext,
) -> ExtraDataset:
    dataset, cache = open_dataset(paths.data), open_cache(paths.cache)
    vocabulary = main.vocabulary
    if dataset.vocabulary.digest() != vocabulary.digest():
        raise InputError(
            f"{paths.data}: expected the vocabulary of {main.root} ({vocabulary.name}), found"
            f" {dataset.vocabulary.name} with {dataset.vocabulary.num_verbs} verbs and"
            f" {dataset.vocabulary.num_objects} objects"
        )
    if recipe.losses.embedding_weight:
        _check_embeddings(cache, recipe)
    part = open_part(dataset, "train", context, cache, require_labels=False)
    if part.size_check.unreadable:
        raise InputError(next(iter(part.size_check.unreadable.values())))
    name = dataset.name
    if name in names:
        name = next(f"{name}-{n}" for n in range(2, len(names) + 3) if f"{name}-{n}" not in names)
    images = TrainingDataset(
        part.records,
        part.annotations,
        cache,
        split,
        vocabulary,
        # Unlike the main dataset's, its candidates are always those that its cache was built with.
        replace(recipe.targets, candidates=cache.protocol),
        build_augmentation(recipe.train.augmentation),
        derive_seed(recipe.train.seed, dataset_index),
        recipe.model.text_dim if recipe.losses.embedding_weight else 0,
        dataset_index=dataset_index,
        name=name,
    )
    images.image_sizes = part.image_sizes
    return ExtraDataset(name, cache, images)


def _check_embeddings(cache: TeacherCache, recipe: Recipe) -> None:
    """Checks that the cache has region embeddings of the CLIP model of the main cache.

    Raises:
        InputError: it has none, or those of another model.
    """
    if not cache.has_embeddings:
        raise InputError(
            f"{cache.path}: expected region embeddings for --embedding-weight, found none (it was"
            " built with --no-embeddings)"
        )
    if cache.text_model != recipe.model.text_model:
        raise InputError(
            f"{cache.path}: expected the CLIP model of --cache, because the embedding loss compares"
            " embeddings, found another"
        )
