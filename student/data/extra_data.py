"""Extra datasets of `--extra-data`: their images are mixed into the batches of the main dataset.

Their images may have HOI labels, boxes only, or no annotation; each dataset has its teacher cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
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


def parse_extra_data(text: str) -> tuple[Path, Path]:
    """The folders of a value DATASET:CACHE, which is divided at its last colon.

    Raises:
        InputError: the value has no colon, or nothing before or after it.
    """
    data, _, cache = text.rpartition(":")
    if not data or not cache:
        raise InputError(f"--extra-data: expected DATASET:CACHE, found {text or 'nothing'}")
    return Path(data), Path(cache)


def open_extra_datasets(
    values: Sequence[str],
    main: Dataset,
    main_cache: TeacherCache,
    split: Split,
    recipe: Recipe,
    context: DistContext,
) -> list[TrainingDataset]:
    """Opens and checks the extra datasets.

    Args:
        values: "DATASET:CACHE" of each.
        main, main_cache: the main dataset, whose vocabulary all others must have, and its cache.
        split: the zero-shot split, of all datasets.
        recipe: settings of the run.
        context: the processes.

    Raises:
        InputError: a dataset or cache does not fit the main one, or a cache is given twice.
    """
    extra: list[TrainingDataset] = []
    names, cache_paths = {main.name}, {main_cache.path.resolve()}
    for number, (data, cache_path) in enumerate(map(parse_extra_data, values), start=1):
        if cache_path.resolve() in cache_paths:
            raise InputError(f"--extra-data: expected every cache once, found {cache_path} again")
        cache_paths.add(cache_path.resolve())
        dataset, cache = open_dataset(data), open_cache(cache_path)
        vocabulary = dataset.vocabulary
        if vocabulary.digest() != main.vocabulary.digest():
            raise InputError(
                f"{data}: expected the vocabulary of {main.root} ({main.vocabulary.name}), found"
                f" {vocabulary.name} with {vocabulary.num_verbs} verbs and"
                f" {vocabulary.num_objects} objects"
            )
        if recipe.losses.embedding_weight:
            _check_embeddings(cache, recipe)
        part = open_part(dataset, "train", context, cache, require_labels=False)
        part.require_readable()
        endings = ("", *(f"-{n}" for n in range(2, number + 2)))
        name = next(dataset.name + end for end in endings if dataset.name + end not in names)
        names.add(name)
        extra.append(
            TrainingDataset(
                part.records,
                part.image_sizes,
                part.annotations,
                cache,
                split,
                main.vocabulary,
                # Unlike the main dataset's, its candidates are those that its cache was built with.
                replace(recipe.targets, candidates=cache.protocol),
                build_augmentation(recipe.train.augmentation),
                derive_seed(recipe.train.seed, number),
                recipe.model.text_dim if recipe.losses.embedding_weight else 0,
                dataset_index=number,
                name=name,
            )
        )
    return extra


def _check_embeddings(cache: TeacherCache, recipe: Recipe) -> None:
    """Checks that the cache has region embeddings of the CLIP model of the main cache."""
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


def describe_extra_dataset(images: TrainingDataset) -> dict[str, Any]:
    """Entry of an extra dataset in the run's plan and results; see `evaluation.results.Results`."""
    labelled = [
        len(remove_unseen_labels(annotation, images.split, images.vocabulary).hois) > 0
        for annotation in images.annotations
    ]
    return {
        "name": images.name,
        "cache": images.cache.fingerprint,
        "images": len(images),
        "labelled": sum(labelled),
        "protocol": images.cache.protocol,
    }
