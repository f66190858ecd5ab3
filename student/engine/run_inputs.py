"""Inputs of a training run: dataset, cache, split and recipe, opened and checked together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.datasets.dataset import Dataset, open_dataset
from pipeline.splits import Split, load_split, remove_unseen_labels, select_distilled_verbs
from pipeline.types import Annotation
from pipeline.utils.errors import InputError
from pipeline.vocabulary import Vocabulary
from student.config import Recipe, get_preset
from student.data.dataset import TrainingDataset
from student.data.dataset_part import open_part, open_test_part
from student.data.extra_data import ExtraDataset, ExtraPaths, open_extra_datasets
from student.data.few_shot import FewShotRows, select_few_shot
from student.data.text_embeddings import TextHeadInit, load_text_head_init, text_head_options
from student.data.transforms import build_augmentation
from student.engine.validation import Validator, split_validation
from student.utils.distributed import DistContext
from student.weights.checkpoint_file import RUN_FORMAT
from teacher_cache.reader.cache import TeacherCache, open_cache


@dataclass(frozen=True)
class RunRequest:
    """Requested inputs and settings of a training run.

    Attributes:
        data, cache: dataset folder and cache folder.
        split: name or TOML file of the split.
        preset: name of the recipe that `options` modify.
        options: fields of the recipe's parts, None for the preset's value; also
            `backbone_learning_rate`.
        distill_verbs: the distilled verbs, one of `pipeline.splits.DISTILL_CHOICES`.
        extra_data: extra datasets with their caches.
        skip_unreadable: treat unreadable test images as images without detections.
    """

    data: Path
    cache: Path
    split: str
    preset: str
    options: dict[str, Any]
    distill_verbs: str = "split"
    extra_data: tuple[ExtraPaths, ...] = ()
    skip_unreadable: bool = False


@dataclass(frozen=True, eq=False)
class RunInputs:
    """Opened inputs of a training run.

    Attributes:
        dataset, cache, split, recipe: as requested.
        images: training images of the dataset.
        validator: evaluates held-out training images; None without.
        extra_datasets: extra datasets to train on.
        text_init: initialisation of a text verb head; None for a linear one.
    """

    dataset: Dataset
    cache: TeacherCache
    split: Split
    recipe: Recipe
    images: TrainingDataset
    validator: Validator | None
    extra_datasets: list[ExtraDataset]
    text_init: TextHeadInit | None = None

    @cached_property
    def sources(self) -> tuple[dict[str, Any], ...]:
        """Descriptions of the extra datasets; see `evaluation.results.Results`."""
        return tuple(dataset.describe() for dataset in self.extra_datasets)

    def plan(self, pretrained: str | None, resume: str | None) -> dict[str, Any]:
        """Everything that determines the run's result, as JSON for `config.json` and checkpoints.

        Args:
            pretrained: SHA-256 of the pretrained weights.
            resume: another run's checkpoint to continue.
        """
        return {
            "format": RUN_FORMAT,
            "dataset": self.dataset.name,
            "cache": self.cache.fingerprint,
            "extra_data": list(self.sources),
            "split": {
                "name": self.split.name,
                "unseen": list(self.split.unseen),
                "distilled_verbs": self.split.distilled_verbs.tolist(),
            },
            "pretrained": pretrained,
            "resume": resume,
            "recipe": self.recipe.to_dict(),
        }


def build_inputs(request: RunRequest, context: DistContext) -> RunInputs:
    """Opens and checks the inputs of a training run.

    Args:
        request: the requested inputs.
        context: processes of the run, all of which have to call this.

    Raises:
        InputError: an input is missing or invalid, or inputs do not fit each other.
    """
    dataset = open_dataset(request.data)
    vocabulary = dataset.vocabulary
    split = select_distilled_verbs(
        load_split(vocabulary, request.split), request.distill_verbs, vocabulary
    )
    cache = open_cache(request.cache)
    recipe = _build_recipe(request, vocabulary, cache)
    if recipe.train.extra_ratio is not None and not request.extra_data:
        raise InputError("--extra-ratio: expected --extra-data beside it, found none")
    if recipe.train.shots and not split.unseen:
        raise InputError(f"--shots: expected a split with unseen interactions, found {split.name}")
    part = open_part(dataset, "train", context, cache)
    if part.size_check.unreadable:
        raise InputError(next(iter(part.size_check.unreadable.values())))
    # The test part is needed after the training; errors in it should be raised before.
    open_test_part(dataset, context, request.skip_unreadable)

    train = recipe.train
    chosen, others = split_validation(train.val_size, len(part.records), train.seed)
    labels = [part.annotations[index] for index in chosen]
    shot_seed = train.seed if train.shot_seed is None else train.shot_seed
    images = TrainingDataset(
        [part.records[index] for index in chosen],
        labels,
        cache,
        split,
        vocabulary,
        recipe.targets,
        build_augmentation(train.augmentation),
        train.seed,
        recipe.model.text_dim if recipe.losses.embedding_weight else 0,
        select_few_shot(labels, split, vocabulary, train.shots, shot_seed),
        name=dataset.name,
    )
    images.image_sizes = part.image_sizes[chosen]
    return RunInputs(
        dataset,
        cache,
        split,
        recipe,
        images,
        Validator(
            [part.records[index] for index in others],
            [part.annotations[index] for index in others],
            split,
            vocabulary,
        )
        if others
        else None,
        open_extra_datasets(request.extra_data, dataset, cache, split, recipe, context),
        load_text_head_init(cache, vocabulary) if recipe.model.verb_head == "text" else None,
    )


def _build_recipe(request: RunRequest, vocabulary: Vocabulary, cache: TeacherCache) -> Recipe:
    options = {name: value for name, value in request.options.items() if value is not None}
    # A cache of annotated boxes contains no candidates of a detector.
    if options.setdefault("candidates", cache.protocol) == "detector" != cache.protocol:
        raise InputError(
            f"--candidates: expected annotated, the protocol of {cache.path}, found detector"
        )
    backbone_rate = options.pop("backbone_learning_rate", None)
    options |= text_head_options(options, cache, vocabulary)
    recipe = get_preset(
        request.preset,
        vocabulary.num_objects,
        vocabulary.num_verbs,
        vocabulary.person,
        pair_people=bool(vocabulary.valid[:, vocabulary.person].any()),
    ).override(**options)
    if backbone_rate is None:
        return recipe
    return recipe.override(backbone_lr_factor=backbone_rate / recipe.train.learning_rate)


def query_overflow_message(
    annotations: Sequence[Annotation],
    split: Split,
    vocabulary: Vocabulary,
    num_queries: int,
    few_shot_rows: FewShotRows | None = None,
) -> str | None:
    """A warning about images with more labelled pairs than queries; None if there are none.

    In such an image every query is matched, and the pairs of the highest cost remain unmatched.

    Args:
        annotations: annotations of the training images.
        split: split whose unseen labels do not count.
        vocabulary: vocabulary of the annotations.
        num_queries: number of queries of the student.
        few_shot_rows: unseen labels that do count, by index of the annotation.
    """
    overflow, few_shot_rows = {}, few_shot_rows or {}
    for index, annotation in enumerate(annotations):
        # A pair has at least one label, so that images with few labels need no counting of pairs.
        if len(annotation.hois) > num_queries:
            seen = remove_unseen_labels(annotation, split, vocabulary, few_shot_rows.get(index, ()))
            pairs = len(np.unique(seen.hois[:, :2], axis=0))
            if pairs > num_queries:
                overflow[annotation.image_id] = pairs
    if not overflow:
        return None
    worst = max(overflow, key=lambda image_id: overflow[image_id])
    return (
        f"{len(overflow)} of {len(annotations)} training images have more labelled pairs"
        f" than the student has queries ({num_queries}), up to {overflow[worst]} in {worst};"
        " in each, the pairs of the highest matching cost are not trained on"
    )
