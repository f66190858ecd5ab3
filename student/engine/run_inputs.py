"""What a run works on: dataset, cache, split and recipe, read and checked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.datasets.dataset import Dataset, open_dataset
from pipeline.splits import Split, ask_for, keep_seen, load_split
from pipeline.types import Annotation
from pipeline.utils.errors import InputError
from pipeline.vocabulary import Vocabulary
from student.config import Recipe, preset
from student.data.dataset import TrainingImages
from student.data.dataset_part import open_part, open_test_part
from student.data.extra_data import Extra, Place, gather_extra
from student.data.few_shot import Shown, draw_shots
from student.data.text_embeddings import TeacherTexts, reading_options, teacher_texts
from student.data.transforms import training_augmentation
from student.engine.validation import HeldOut, hold_out
from student.utils.distributed import Team
from teacher_cache.reader.cache import TeacherCache, open_cache


@dataclass(frozen=True)
class Wanted:
    """What somebody wants to train on, and how.

    Attributes:
        data, cache: dataset folder, cache folder.
        split: name or TOML file.
        preset: the recipe to start from.
        options: fields of the recipe's parts that differ from the preset, None for those that do
            not; `backbone_learning_rate` too.
        ask: verbs the teacher is asked for, one of `pipeline.splits.ASKED`.
        extra: further sources of training images.
        skip_unreadable: test pictures that cannot be read count as images without detections.
    """

    data: Path
    cache: Path
    split: str
    preset: str
    options: dict[str, Any]
    ask: str = "split"
    extra: tuple[Place, ...] = ()
    skip_unreadable: bool = False


@dataclass(frozen=True, eq=False)
class Material:
    """What a run works on.

    Attributes:
        dataset, cache, split, recipe: as wanted.
        images: to train on.
        held_out: left out of training to be evaluated on, None for none.
        extra: further sources to train on.
        texts: for a verb head that reads, None for a linear one.
    """

    dataset: Dataset
    cache: TeacherCache
    split: Split
    recipe: Recipe
    images: TrainingImages
    held_out: HeldOut | None
    extra: list[Extra]
    texts: TeacherTexts | None = None

    @cached_property
    def sources(self) -> tuple[dict[str, Any], ...]:
        """What the further sources are; see `evaluation.results.Results`."""
        return tuple(one.about() for one in self.extra)

    def plan(self, init: str | None, resume: str | None) -> dict[str, Any]:
        """What the run's result depends on, for files.

        Args:
            init: SHA-256 of the weights to start from.
            resume: checkpoint to begin from.
        """
        return {
            "dataset": self.dataset.name,
            "cache": self.cache.fingerprint,
            "extra": list(self.sources),
            "split": {
                "name": self.split.name,
                "unseen": list(self.split.unseen),
                "asked_verbs": self.split.asked_verbs.tolist(),
            },
            "init": init,
            "resume": resume,
            "recipe": self.recipe.to_dict(),
        }


def gather_material(wanted: Wanted, team: Team) -> Material:
    """Reads and checks everything that training needs.

    Raises:
        InputError: dataset, cache, split or options do not fit.
    """
    dataset = open_dataset(wanted.data)
    vocabulary = dataset.vocabulary
    split = ask_for(load_split(vocabulary, wanted.split), wanted.ask, vocabulary)
    cache = open_cache(wanted.cache)
    recipe = _recipe(wanted, vocabulary, cache)
    if recipe.train.mix is not None and not wanted.extra:
        raise InputError("--mix: expected --extra beside it, found none")
    if recipe.train.shots and not split.unseen:
        raise InputError(f"--shots: expected a split that hides something, found {split.name}")
    part = open_part(dataset, "train", team, cache)
    if part.sizes.unreadable:
        raise InputError(next(iter(part.sizes.unreadable.values())))
    # Training ends with the test part: what is wrong with it should not come up hours later.
    open_test_part(dataset, team, wanted.skip_unreadable)

    train = recipe.train
    chosen, others = hold_out(train.hold_out, len(part.records), train.seed)
    labels = [part.annotations[index] for index in chosen]
    shot_seed = train.seed if train.shot_seed is None else train.shot_seed
    images = TrainingImages(
        [part.records[index] for index in chosen],
        labels,
        cache,
        split,
        vocabulary,
        recipe.targets,
        training_augmentation(train.augmentation),
        train.seed,
        recipe.model.text_dim if recipe.losses.embedding_weight else 0,
        draw_shots(labels, split, vocabulary, train.shots, shot_seed),
        name=dataset.name,
    )
    images.image_sizes = part.image_sizes[chosen]
    return Material(
        dataset,
        cache,
        split,
        recipe,
        images,
        HeldOut(
            [part.records[index] for index in others],
            [part.annotations[index] for index in others],
            split,
            vocabulary,
        )
        if others
        else None,
        gather_extra(wanted.extra, dataset, cache, split, recipe, team),
        teacher_texts(cache, vocabulary) if recipe.model.verb_head == "text" else None,
    )


def _recipe(wanted: Wanted, vocabulary: Vocabulary, cache: TeacherCache) -> Recipe:
    options = {name: value for name, value in wanted.options.items() if value is not None}
    # A cache of annotated boxes has no detector's candidates to offer.
    if options.setdefault("candidates", cache.protocol) == "detector" != cache.protocol:
        raise InputError(
            f"--candidates: expected annotated, as {cache.path} was built, found detector"
        )
    backbone_rate = options.pop("backbone_learning_rate", None)
    options |= reading_options(options, cache, vocabulary)
    recipe = preset(
        wanted.preset,
        vocabulary.num_objects,
        vocabulary.num_verbs,
        vocabulary.person,
        pair_people=bool(vocabulary.valid[:, vocabulary.person].any()),
    ).changed(**options)
    if backbone_rate is None:
        return recipe
    return recipe.changed(backbone_factor=backbone_rate / recipe.train.learning_rate)


def crowded_line(
    annotations: Sequence[Annotation],
    split: Split,
    vocabulary: Vocabulary,
    num_queries: int,
    shown: Shown | None = None,
) -> str | None:
    """Says which images teach fewer pairs than they have; None where there are none.

    Every query is matched in such an image, and the pairs that fit worst go without.
    """
    crowded, shown = {}, shown or {}
    for place, annotation in enumerate(annotations):
        # Labels are at least as many as pairs, and quicker to count.
        if len(annotation.hois) > num_queries:
            seen = keep_seen(annotation, split, vocabulary, shown.get(place, ()))
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
