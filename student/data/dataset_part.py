"""Opens a dataset part for training or evaluation, and the extra datasets of `--extra-data`.

Images that do not fit their annotations are left out or refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.annotations.load import AnnotationFile
from pipeline.datasets.dataset import Dataset, open_dataset
from pipeline.datasets.size_check import ImageSizeCheck, check_image_sizes
from pipeline.splits import Split, remove_unseen_labels
from pipeline.types import Annotation, Detections, ImageRecord
from pipeline.utils.errors import InputError
from pipeline.utils.logging import get_logger
from pipeline.utils.text import count_noun
from student.config import Recipe
from student.data.dataset import TrainingDataset
from student.data.transforms import build_augmentation
from student.utils.distributed import DistContext
from student.utils.seeding import derive_seed
from teacher_cache.reader.cache import TeacherCache, open_cache

logger = get_logger(__name__)


@dataclass(frozen=True, eq=False)
class LoadedPart:
    """A dataset part that was read and checked.

    Attributes:
        annotation_file: the annotations of the images, without those that the cache lacks.
        annotations, records: those of the usable images, in the file's order.
        size_check: sizes of the images, and the errors of those that are not usable.
    """

    annotation_file: AnnotationFile
    annotations: Sequence[Annotation]
    records: Sequence[ImageRecord]
    size_check: ImageSizeCheck

    @property
    def image_sizes(self) -> np.ndarray:
        """(N, 2) int64 heights and widths of the upright images of `records`."""
        sizes = [self.size_check.sizes[record.id][::-1] for record in self.records]
        return np.array(sizes, dtype=np.int64).reshape(-1, 2)

    def require_readable(self) -> None:
        """Raises:
        InputError: an image cannot be read.
        """
        for reason in self.size_check.unreadable.values():
            raise InputError(reason)

    def with_empty_detections(self, detections: Sequence[Detections]) -> list[Detections]:
        """Detections of all images in the file's order, empty where an image has none."""
        by_image = {one.image_id: one for one in detections}
        return [
            by_image.get(annotation.image_id) or Detections.empty(annotation.image_id)
            for annotation in self.annotation_file.annotations
        ]


def open_part(
    dataset: Dataset,
    part: str,
    context: DistContext,
    cache: TeacherCache | None = None,
    require_labels: bool = True,
    decode: bool = False,
    limit: int | None = None,
) -> LoadedPart:
    """Reads a part's annotations in every process, and the headers of its images in the main one.

    Args:
        dataset, part, context: the part "train" or "test" of a dataset, and the processes.
        cache: the teacher cache of the part; images that it lacks are left out. None keeps all.
        require_labels: whether it is an error that the part has no labels, or that an image file
            is missing whose image the cache lacks.
        decode: also decode the images, to find truncated ones. Missing image files are then
            unusable images instead of an error.
        limit: see `AnnotationFile.limited`; it selects images of the cache. Then only their files
            have to exist.

    Raises:
        InputError: annotations, cache or images do not fit each other; in every process.
    """
    loaded: list[AnnotationFile] = []

    def load_and_check() -> ImageSizeCheck:
        loaded.append(dataset.load(part))
        (file,) = loaded
        if line := file.format_issues():
            logger.warning(line)
        if require_labels:
            file.require_labels()
        if cache is not None:
            _check_cache(cache, dataset, file, limit)
        chosen, _ = _select_images(file, cache, limit)
        if not decode:
            dataset.records(file if require_labels and chosen.limit is None else chosen)
        size_check = check_image_sizes(dataset, chosen, decode)
        size_check.raise_errors()
        return size_check

    size_check, headers = context.broadcast(lambda: (load_and_check(), dataset.headers))
    dataset.headers.update(headers)
    file = loaded[0] if loaded else dataset.load(part)
    chosen, left_out = _select_images(file, cache, limit)
    for line in size_check.warnings():
        logger.warning(line)
    if left_out:
        # Images that could not be read when the cache was built.
        logger.warning(
            f"{cache and cache.path}: no teacher outputs for"
            f" {count_noun(left_out, 'images')}, left out"
        )
    usable = [one for one in chosen.annotations if one.image_id not in size_check.unusable]
    records = dataset.records(replace(chosen, annotations=tuple(usable)))
    return LoadedPart(chosen, usable, records, size_check)


def _check_cache(
    cache: TeacherCache, dataset: Dataset, file: AnnotationFile, limit: int | None
) -> None:
    """Checks that a cache was built from a part's annotations, and has enough of its images."""
    built_from = file.limited(cache.limit)
    cache.check(dataset.vocabulary, built_from.digest, file.part)
    if cache.limit is not None and (limit is None or limit > cache.limit):
        count = f"all {len(file.annotations)}" if limit is None else f"{limit} or more"
        raise InputError(
            f"{cache.path}: expected the teacher's outputs for {count} images, found a cache that"
            f" was built with --limit {cache.limit}; train on it with --limit {cache.limit} or less"
        )
    if not any(annotation.image_id in cache for annotation in built_from.annotations):
        raise InputError(
            f"{cache.path}: expected teacher outputs for images of the training part, found none"
        )


def _select_images(
    file: AnnotationFile, cache: TeacherCache | None, limit: int | None
) -> tuple[AnnotationFile, int]:
    """The images to use, and the number of those that the cache was built from and lacks."""
    if cache is None:
        return file.limited(limit), 0
    file = file.limited(cache.limit)
    cached = tuple(one for one in file.annotations if one.image_id in cache)
    left_out = len(file.annotations) - len(cached)
    return replace(file, annotations=cached).limited(limit), left_out


def open_test_part(
    dataset: Dataset, context: DistContext, skip_unreadable: bool, limit: int | None = None
) -> LoadedPart:
    """Opens the test part and decodes its images once, or those that `limit` selects.

    Raises:
        InputError: annotations and images do not fit each other, no image is usable, or one is not
            and `skip_unreadable` is False.
    """
    part = open_part(dataset, "test", context, decode=True, limit=limit)
    if unusable := part.size_check.unusable:
        reason = next(iter(unusable.values()))
        count = f"{len(unusable)} of {len(part.annotation_file.annotations)} test images"
        if not part.records:
            raise InputError(f"{reason} ({count} cannot be used)")
        if not skip_unreadable:
            raise InputError(
                f"{reason} ({count} cannot be used; --skip-unreadable counts them as images without"
                " detections)"
            )
        logger.warning(f"{reason} ({count} cannot be used and count as images without detections)")
    return part


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
    folders: Sequence[tuple[Path, Path]],
    main: Dataset,
    main_cache: TeacherCache,
    split: Split,
    recipe: Recipe,
    context: DistContext,
    limit: int | None = None,
) -> list[TrainingDataset]:
    """Opens and checks the extra datasets.

    Args:
        folders: dataset and cache of each.
        main, main_cache: the main dataset, whose vocabulary all others must have, and its cache.
        split: the zero-shot split, of all datasets.
        recipe: settings of the run.
        context: the processes.
        limit: see `open_part`; for each dataset.

    Raises:
        InputError: a dataset or cache does not fit the main one, or a cache is given twice.
    """
    extra: list[TrainingDataset] = []
    names, cache_paths = {main.name}, {main_cache.path.resolve()}
    for number, (data, cache_path) in enumerate(folders, start=1):
        if cache_path.resolve() in cache_paths:
            raise InputError(f"--extra-data: expected every cache once, found {cache_path} again")
        cache_paths.add(cache_path.resolve())
        dataset, cache = open_dataset(data), open_cache(cache_path)
        vocabulary = dataset.vocabulary
        if vocabulary.digest() != main.vocabulary.digest():
            raise InputError(
                f"{data}: expected the vocabulary of {main.root} ({main.vocabulary.name}), found"
                f" {vocabulary.name} with {count_noun(vocabulary.num_verbs, 'verbs')} and"
                f" {count_noun(vocabulary.num_objects, 'objects')}"
            )
        if recipe.losses.embedding_weight:
            _check_embeddings(cache, recipe)
        part = open_part(dataset, "train", context, cache, require_labels=False, limit=limit)
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
