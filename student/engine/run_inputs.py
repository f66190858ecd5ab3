"""What a run works on: dataset, cache, split and recipe, read and checked."""

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
    """What somebody wants to train on, and how.

    Attributes:
        data, cache: dataset folder, cache folder.
        split: name or TOML file.
        preset: the recipe to start from.
        options: fields of the recipe's parts that differ from the preset, None for those that do
            not; `backbone_learning_rate` too.
        ask: verbs the teacher is asked for, one of `pipeline.splits.DISTILL_CHOICES`.
        extra: further sources of training images.
        skip_unreadable: test pictures that cannot be read count as images without detections.
    """

    data: Path
    cache: Path
    split: str
    preset: str
    options: dict[str, Any]
    ask: str = "split"
    extra: tuple[ExtraPaths, ...] = ()
    skip_unreadable: bool = False


@dataclass(frozen=True, eq=False)
class RunSetup:
    """What a run works on.

    Attributes:
        dataset, cache, split, recipe: as requested.
        images: to train on.
        validator: left out of training to be evaluated on, None for none.
        extra: further sources to train on.
        texts: for a verb head that reads, None for a linear one.
    """

    dataset: Dataset
    cache: TeacherCache
    split: Split
    recipe: Recipe
    images: TrainingDataset
    validator: Validator | None
    extra: list[ExtraDataset]
    texts: TextHeadInit | None = None

    @cached_property
    def sources(self) -> tuple[dict[str, Any], ...]:
        """What the further sources are; see `evaluation.results.Results`."""
        return tuple(one.describe() for one in self.extra)

    def plan(self, pretrained: str | None, resume: str | None) -> dict[str, Any]:
        """What the run's result depends on, for files.

        Args:
            pretrained: SHA-256 of the weights to start from.
            resume: checkpoint to begin from.
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


def build_inputs(request: RunRequest, context: DistContext) -> RunSetup:
    """Reads and checks everything that training needs.

    Raises:
        InputError: dataset, cache, split or options do not fit.
    """
    dataset = open_dataset(request.data)
    vocabulary = dataset.vocabulary
    split = select_distilled_verbs(load_split(vocabulary, request.split), request.ask, vocabulary)
    cache = open_cache(request.cache)
    recipe = _build_recipe(request, vocabulary, cache)
    if recipe.train.extra_ratio is not None and not request.extra:
        raise InputError("--extra-ratio: expected --extra-data beside it, found none")
    if recipe.train.shots and not split.unseen:
        raise InputError(f"--shots: expected a split that hides something, found {split.name}")
    part = open_part(dataset, "train", context, cache)
    if part.size_check.unreadable:
        raise InputError(next(iter(part.size_check.unreadable.values())))
    # Training ends with the test part: what is wrong with it should not come up hours later.
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
    return RunSetup(
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
        open_extra_datasets(request.extra, dataset, cache, split, recipe, context),
        load_text_head_init(cache, vocabulary) if recipe.model.verb_head == "text" else None,
    )


def _build_recipe(request: RunRequest, vocabulary: Vocabulary, cache: TeacherCache) -> Recipe:
    options = {name: value for name, value in request.options.items() if value is not None}
    # A cache of annotated boxes has no detector's candidates to offer.
    if options.setdefault("candidates", cache.protocol) == "detector" != cache.protocol:
        raise InputError(
            f"--candidates: expected annotated, as {cache.path} was built, found detector"
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


def query_overflow_line(
    annotations: Sequence[Annotation],
    split: Split,
    vocabulary: Vocabulary,
    num_queries: int,
    few_shot_rows: FewShotRows | None = None,
) -> str | None:
    """Says which images teach fewer pairs than they have; None where there are none.

    Every query is matched in such an image, and the pairs that fit worst go without.
    """
    crowded, few_shot_rows = {}, few_shot_rows or {}
    for place, annotation in enumerate(annotations):
        # Labels are at least as many as pairs, and quicker to count.
        if len(annotation.hois) > num_queries:
            seen = remove_unseen_labels(annotation, split, vocabulary, few_shot_rows.get(place, ()))
            pairs = len(np.unique(seen.hois[:, :2], axis=0))
            if pairs > num_queries:
                crowded[annotation.image_id] = pairs
    if not crowded:
        return None
    worst = max(crowded, key=lambda image_id: crowded[image_id])
    return (
        f"warning: {len(crowded)} of {len(annotations)} training images hold more labelled pairs"
        f" than the student has queries ({num_queries}), {worst} {crowded[worst]}; in each, the"
        " pairs that fit worst are not learned"
    )
