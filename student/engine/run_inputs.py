"""Settings and inputs of a training run: dataset, cache, split and recipe, opened and checked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.datasets.dataset import Dataset, open_dataset
from pipeline.splits import Split, load_split, remove_unseen_labels, select_distilled_verbs
from pipeline.utils.errors import InputError
from pipeline.utils.logging import get_logger
from pipeline.vocabulary import Vocabulary
from student.config import Recipe, get_preset
from student.data.dataset import TrainingDataset
from student.data.dataset_part import (
    describe_extra_dataset,
    open_extra_datasets,
    open_part,
    open_test_part,
    parse_extra_data,
)
from student.data.few_shot import select_few_shot
from student.data.text_embeddings import text_head_options
from student.data.transforms import build_augmentation
from student.engine.evaluate import Tester, Validator, split_validation
from student.utils.distributed import DistContext
from student.weights.checkpoint_file import RUN_FORMAT
from teacher_cache.reader.cache import TeacherCache, open_cache
from teacher_cache.reader.staging import stage_cache, staged_path

logger = get_logger(__name__)

# Settings that change the result, which the run's plan contains.
PLANNED_FIELDS = {"split", "options", "distill_verbs", "limit", "out"}


@dataclass(frozen=True)
class RunConfig:
    """Settings of a training run: the options of `eoid-train student`, which explains them.

    Attributes:
        options: fields of the recipe's parts, None for the preset's value; also
            `backbone_learning_rate`.
        limit: see `AnnotationFile.limited`; for each dataset and part.
        accumulation, compiled: see `student.utils.distributed.Execution`.
        resume, overwrite: see `student.engine.checkpointing.find_resume_point`.
    """

    data: Path
    cache: Path
    split: str
    out: Path
    preset: str = "published"
    options: dict[str, Any] = field(default_factory=dict)
    distill_verbs: str = "split"
    extra_data: Sequence[str] = ()
    pretrained: Path | None = None
    backbone_weights: str | None = None
    device: str = "auto"
    workers: int | None = None
    accumulation: int = 1
    compiled: bool = False
    resume: str = "auto"
    overwrite: bool = False
    checkpoint_minutes: float = 15.0
    log_every: int = 10
    log_to: Sequence[str] = ()
    test_every: int = 0
    skip_unreadable: bool = False
    limit: int | None = None
    name: str | None = None
    stage_cache: Path | None = None

    @property
    def run_name(self) -> str:
        """Name of the run in reports and logs."""
        return self.name or self.out.resolve().name

    def execution_settings(self, processes: int) -> dict[str, Any]:
        """Settings that do not change the result, for the record in `config.json`."""
        settings = {
            name: str(value) if isinstance(value, Path) else value
            for name, value in vars(self).items()
            if name not in PLANNED_FIELDS
        }
        return {**settings, "processes": processes}


@dataclass(frozen=True, eq=False)
class RunInputs:
    """Opened inputs of a training run.

    Attributes:
        dataset, cache, split, recipe: as requested.
        images: training images of the dataset.
        validator: evaluates held-out training images; None without.
        tester: evaluates the test images during the training; None without.
        extra: training images of the extra datasets.
        limit: number of images to which training images were limited; None for all.
    """

    dataset: Dataset
    cache: TeacherCache
    split: Split
    recipe: Recipe
    images: TrainingDataset
    validator: Validator | None = None
    tester: Tester | None = None
    extra: Sequence[TrainingDataset] = ()
    limit: int | None = None

    @cached_property
    def sources(self) -> tuple[dict[str, Any], ...]:
        """Descriptions of the extra datasets; see `evaluation.results.Results`."""
        return tuple(map(describe_extra_dataset, self.extra))

    def plan(
        self, pretrained: str | None, backbone_weights: str | None, resume: str | None
    ) -> dict[str, Any]:
        """Everything that determines the run's result, as JSON for `config.json` and checkpoints;
        `pretrained` and `backbone_weights` are SHA-256 of files, or "default"."""
        return {
            "format": RUN_FORMAT,
            "dataset": self.dataset.name,
            "cache": self.cache.fingerprint,
            "extra_data": list(self.sources),
            "limit": self.limit,
            "split": {
                "name": self.split.name,
                "unseen": list(self.split.unseen),
                "distilled_verbs": self.split.distilled_verbs.tolist(),
            },
            "pretrained": pretrained,
            "backbone_weights": backbone_weights,
            "resume": resume,
            "recipe": self.recipe.to_dict(),
        }


def build_inputs(config: RunConfig, context: DistContext) -> RunInputs:
    """Opens and checks the inputs of a training run; to be called by all processes.

    Raises:
        InputError: an input is missing or invalid, or inputs do not fit each other.
    """
    dataset = open_dataset(config.data)
    vocabulary = dataset.vocabulary
    split = select_distilled_verbs(
        load_split(vocabulary, config.split), config.distill_verbs, vocabulary
    )
    extra_data = list(map(parse_extra_data, config.extra_data))
    caches = [config.cache, *(path for _, path in extra_data)]
    if config.stage_cache is not None:
        caches = _stage_caches(caches, config.stage_cache, context)
    cache = open_cache(caches[0])
    recipe = _build_recipe(config, vocabulary, cache)
    train = recipe.train
    if train.extra_ratio is not None and not config.extra_data:
        raise InputError("--extra-ratio: expected --extra-data beside it, found none")
    if train.shots and not split.unseen:
        raise InputError(f"--shots: expected a split with unseen interactions, found {split.name}")
    if vocabulary.name == "toy" and config.preset != "toy":
        logger.warning(
            f"{dataset.root}: preset {config.preset} is for photographs; --preset toy is the recipe"
            " for the toy dataset and takes minutes"
        )
    part = open_part(dataset, "train", context, cache, limit=config.limit)
    part.require_readable()
    # The test part is needed after the training; errors in it should be raised before.
    test = open_test_part(dataset, context, config.skip_unreadable, config.limit)
    limit = None if part.annotation_file.limit is None else config.limit
    if limit is not None or test.annotation_file.limit is not None:
        logger.info(
            f"--limit: {len(part.records)} training and {len(test.records)} test images, not the"
            " whole dataset"
        )

    chosen, held_out = split_validation(train.val_size, len(part.records), train.seed)
    labels = [part.annotations[index] for index in chosen]
    shot_seed = train.seed if train.shot_seed is None else train.shot_seed
    images = TrainingDataset(
        [part.records[index] for index in chosen],
        part.image_sizes[chosen],
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
    validator = None
    if held_out:
        records = [part.records[index] for index in held_out]
        annotations = [part.annotations[index] for index in held_out]
        validator = Validator(records, annotations, split, vocabulary)
    folders = [(data, path) for (data, _), path in zip(extra_data, caches[1:], strict=True)]
    extra = open_extra_datasets(folders, dataset, cache, split, recipe, context, config.limit)
    tester = None
    if config.test_every:
        tester = Tester(test, split, vocabulary, config.test_every)
    return RunInputs(dataset, cache, split, recipe, images, validator, tester, extra, limit)


def _stage_caches(caches: Sequence[Path], folder: Path, context: DistContext) -> list[Path]:
    """Paths of copies of caches in a folder, which the first process of every machine makes.

    Raises:
        InputError: see `stage_cache`; in all processes.
    """
    with context.propagate_errors():
        if context.local_rank == 0:
            for cache in caches:
                stage_cache(cache, folder)
        copies = [staged_path(cache, folder) for cache in caches]
    return copies


def _build_recipe(config: RunConfig, vocabulary: Vocabulary, cache: TeacherCache) -> Recipe:
    options = {name: value for name, value in config.options.items() if value is not None}
    # A cache of annotated boxes contains no candidates of a detector.
    if options.setdefault("candidates", cache.protocol) == "detector" != cache.protocol:
        raise InputError(
            f"--candidates: expected annotated, the protocol of {cache.path}, found detector"
        )
    backbone_rate = options.pop("backbone_learning_rate", None)
    options |= text_head_options(options, cache, vocabulary)
    recipe = get_preset(
        config.preset,
        vocabulary.num_objects,
        vocabulary.num_verbs,
        vocabulary.person,
        pair_people=bool(vocabulary.valid[:, vocabulary.person].any()),
    ).override(**options)
    if backbone_rate is None:
        return recipe
    return recipe.override(backbone_lr_factor=backbone_rate / recipe.train.learning_rate)


def query_overflow_message(images: TrainingDataset, num_queries: int) -> str | None:
    """A warning about images with more labelled pairs than queries; None if there are none.

    In such an image every query is matched, and the pairs of the highest cost remain unmatched.
    """
    overflow = {}
    for index, annotation in enumerate(images.annotations):
        # A pair has at least one label, so that images with few labels need no counting of pairs.
        if len(annotation.hois) > num_queries:
            kept_rows = images.few_shot_rows.get(index, ())
            seen = remove_unseen_labels(annotation, images.split, images.vocabulary, kept_rows)
            pairs = len(np.unique(seen.hois[:, :2], axis=0))
            if pairs > num_queries:
                overflow[annotation.image_id] = pairs
    if not overflow:
        return None
    worst = max(overflow, key=lambda image_id: overflow[image_id])
    return (
        f"{len(overflow)} of {len(images)} training images have more labelled pairs"
        f" than the student has queries ({num_queries}), up to {overflow[worst]} in {worst};"
        " in each, the pairs of the highest matching cost are not trained on"
    )
