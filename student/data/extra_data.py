"""Further sources of training images: labelled, with boxes, or with nothing but a teacher cache."""

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
    """Where a further source lies: its dataset folder, and the cache of its training part."""

    data: Path
    cache: Path


@dataclass(frozen=True, eq=False)
class ExtraDataset:
    """A further source.

    Attributes:
        name: of its dataset, with a number where another has the name already.
        cache: the teacher's answers.
        images: to train on.
    """

    name: str
    cache: TeacherCache
    images: TrainingDataset

    def describe(self) -> dict[str, Any]:
        """What it was, for a run's plan and results; see `evaluation.results.Results`."""
        images = self.images
        seen = (
            remove_unseen_labels(one, images.split, images.vocabulary) for one in images.annotations
        )
        return {
            "name": self.name,
            "cache": self.cache.fingerprint,
            "images": len(images),
            "labelled": sum(len(one.hois) > 0 for one in seen),
            "protocol": self.cache.protocol,
        }


def parse_extra_data(texts: Iterable[str]) -> tuple[ExtraPaths, ...]:
    """The folders that `--extra-data DATASET:CACHE` names.

    A text with several colons is divided where both parts are folders; where none or more than one
    division does, at the last colon.

    Raises:
        InputError: a text without colon, or with nothing before or behind it.
    """
    return tuple(_parse_paths(text) for text in texts)


def _parse_paths(text: str) -> ExtraPaths:
    divided = []
    for at, letter in enumerate(text):
        if letter == SEPARATOR and text[:at] and text[at + 1 :]:
            divided.append(ExtraPaths(Path(text[:at]), Path(text[at + 1 :])))
    if not divided:
        raise InputError(f"--extra-data: expected DATASET:CACHE, found {text or 'nothing'}")
    there = [location for location in divided if location.data.is_dir() and location.cache.is_dir()]
    return there[0] if len(there) == 1 else divided[-1]


def open_extra_datasets(
    extra_paths: Sequence[ExtraPaths],
    main: Dataset,
    cache: TeacherCache,
    split: Split,
    recipe: Recipe,
    context: DistContext,
) -> list[ExtraDataset]:
    """Reads and checks the further sources.

    Args:
        extra_paths: where they are.
        main: the dataset that they stand beside, whose vocabulary they share.
        cache: the main one.
        split: what is unseen, in all of them.
        recipe: of the run.
        context: told what is left out.

    Raises:
        InputError: a source does not fit, or is named twice.
    """
    found: list[ExtraDataset] = []
    for location in extra_paths:
        names = {main.name, *(one.name for one in found)}
        cache_paths = {one.cache.path.resolve() for one in found} | {cache.path.resolve()}
        if location.cache.resolve() in cache_paths:
            raise InputError(
                f"--extra-data: expected every source once, found {location.cache} again"
            )
        found.append(_open_extra(location, len(found) + 1, names, main, split, recipe, context))
    return found


def _open_extra(
    location: ExtraPaths,
    number: int,
    names: Collection[str],
    main: Dataset,
    split: Split,
    recipe: Recipe,
    context: DistContext,
) -> ExtraDataset:
    dataset, cache = open_dataset(location.data), open_cache(location.cache)
    vocabulary = main.vocabulary
    if dataset.vocabulary.digest() != vocabulary.digest():
        raise InputError(
            f"{location.data}: expected the vocabulary of {main.root} ({vocabulary.name}), found"
            f" {dataset.vocabulary.name} with {dataset.vocabulary.num_verbs} verbs and"
            f" {dataset.vocabulary.num_objects} objects"
        )
    if recipe.losses.embedding_weight:
        _check_embeddings(cache, recipe)
    part = open_part(dataset, "train", context, cache, require_labels=False)
    if part.sizes.unreadable:
        raise InputError(next(iter(part.sizes.unreadable.values())))
    name = dataset.name
    if name in names:
        name = next(f"{name}-{n}" for n in range(2, len(names) + 3) if f"{name}-{n}" not in names)
    images = TrainingDataset(
        part.records,
        part.annotations,
        cache,
        split,
        vocabulary,
        # Its pairs are what its own cache was built of.
        replace(recipe.targets, candidates=cache.protocol),
        build_augmentation(recipe.train.augmentation),
        derive_seed(recipe.train.seed, number),
        recipe.model.text_dim if recipe.losses.embedding_weight else 0,
        dataset_index=number,
        name=name,
    )
    images.image_sizes = part.image_sizes
    return ExtraDataset(name, cache, images)


def _check_embeddings(cache: TeacherCache, recipe: Recipe) -> None:
    """Raises:
    InputError: a student that learns from embeddings would not find them here.
    """
    if not cache.has_embeddings:
        raise InputError(
            f"{cache.path}: expected region embeddings for --embedding-weight, found none (it was"
            " built with --no-embeddings)"
        )
    if cache.text_model != recipe.model.text_model:
        raise InputError(
            f"{cache.path}: expected the CLIP of --cache, as its embeddings teach too, found"
            " another"
        )
