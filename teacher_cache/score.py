"""How good the teacher and the detector are, before anyone trains on their answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np

from evaluation.charts.picture import check_picture
from evaluation.charts.teacher import draw_teacher
from evaluation.hico import HicoScores, Setting, evaluate, summarize
from evaluation.predictions import write_predictions
from evaluation.results import Protocol, Results, score_fields, write_results
from evaluation.teacher_scores import ACTIONS, TeacherScores, VerbScores, teacher_table
from pipeline.datasets import open_dataset
from pipeline.files import refuse_existing
from pipeline.progress import track
from pipeline.splits import Split, load_split
from pipeline.types import Detections
from pipeline.vocabulary import Vocabulary
from teacher_cache.pairing import ANNOTATED, PROPOSED
from teacher_cache.quality import (
    HeldImages,
    action_accuracy,
    box_recall,
    pair_recall,
    to_detections,
)
from teacher_cache.reader import open_cache

KINDS = (ANNOTATED, PROPOSED)
TITLES = {
    "teacher_accuracy": "teacher accuracy (top-1, annotated pairs)",
    "person_recall": "person recall",
    "object_recall": "object recall",
    "pair_recall": "pair recall (annotated among proposed)",
}


@dataclass(frozen=True)
class ScoreConfig:
    """What to score, and where to write it.

    Attributes:
        cache: the cache folder.
        dataset: the dataset folder it was made from.
        split: a split's name or a user's TOML file; decides the groups of interactions.
        setting: HICO-DET's default or known-object setting.
        json: results file, where wanted.
        predictions: file for the teacher's detections on proposed pairs, where wanted.
        picture: file for a picture of the scores, where wanted.
        overwrite: whether existing files may be replaced.
    """

    cache: Path
    dataset: Path
    split: str = "full"
    setting: Setting = "default"
    json: Path | None = None
    predictions: Path | None = None
    picture: Path | None = None
    overwrite: bool = False


@dataclass(frozen=True, eq=False)
class _Measured:
    """Everything that was measured; (V,) arrays, NaN where there is nothing.

    Attributes:
        scores, groups: of either kind of pairs, by `ANNOTATED` and `PROPOSED`.
        shares: fractions by the names of `TITLES`.
        accuracy, recall, labelled: by verb.
    """

    scores: dict[int, HicoScores]
    groups: dict[int, dict[str, float | None]]
    shares: dict[str, float]
    accuracy: np.ndarray
    recall: np.ndarray
    labelled: np.ndarray


def score_teacher(config: ScoreConfig, say: Callable[[str], None] = print) -> Results:
    """Scores a cache against the annotations that it was made from.

    Raises:
        InputError: bad input, or the cache was made from other annotations.
    """
    for file in filter(None, (config.json, config.predictions)):
        refuse_existing(file, config.overwrite)
    if config.picture is not None:
        check_picture(config.picture, config.overwrite)
    dataset = open_dataset(config.dataset)
    vocabulary = dataset.vocabulary
    split = load_split(vocabulary, config.split)
    cache = open_cache(config.cache)
    part = str(cache.manifest["parts"].get("part"))
    loaded = dataset.load(part)
    cache.check(vocabulary, loaded.digest, part)
    held = HeldImages(cache, loaded.annotations)
    detections: dict[int, list[Detections]] = {source: [] for source in KINDS}
    for annotation, answers in track(held, len(cache), "Reading", "images", brief=True):
        for source, found in detections.items():
            found.append(to_detections(annotation.image_id, answers, vocabulary, source))
    measured = _measure(held, detections, vocabulary, split, config.setting)
    num_pairs = sum(cache.layout(shard).num_pairs for shard in range(cache.num_shards))
    title = (
        f"{dataset.name}, {part} part, split {split.name}: {len(loaded.annotations)} images,"
        f" {num_pairs} pairs"
    )
    told = _teacher_scores(title, measured, vocabulary, split)
    results = Results(
        name="teacher",
        kind="teacher",
        dataset=dataset.name,
        split=split.name,
        setting=config.setting,
        num_images=len(loaded.annotations),
        protocol=cast(Protocol, cache.protocol),
        dataset_path=config.dataset,
        predictions=config.predictions,
        extra=_extra(measured, vocabulary),
        **score_fields(measured.scores[PROPOSED], vocabulary, split.unseen),
    )
    if config.predictions is not None:
        in_file = dataset.file_pixels(part, detections[PROPOSED])
        write_predictions(config.predictions, in_file, vocabulary)
    if config.json is not None:
        write_results(config.json, results)
    if config.picture is not None:
        draw_teacher(config.picture, told)
    for line in teacher_table(told):
        say(line)
    return results


def _measure(
    held: HeldImages,
    detections: dict[int, list[Detections]],
    vocabulary: Vocabulary,
    split: Split,
    setting: Setting,
) -> _Measured:
    scores = {
        source: evaluate(held.annotations, found, vocabulary, setting)
        for source, found in detections.items()
    }
    actions = [
        index
        for index, (verb, _) in enumerate(vocabulary.interactions)
        if verb != vocabulary.no_interaction
    ]
    groups = {
        source: {
            **summarize(own, vocabulary, split.unseen),
            **({} if vocabulary.no_interaction is None else {ACTIONS: own.mean(actions)}),
        }
        for source, own in scores.items()
    }
    overall, accuracy = action_accuracy(held, vocabulary)
    labelled, recall = pair_recall(held, vocabulary)
    found = box_recall(held, vocabulary)
    shares = {"teacher_accuracy": overall}
    shares |= {f"{name}_recall": share for name, share in found.items()}
    return _Measured(scores, groups, shares, accuracy, recall, labelled)


def _teacher_scores(
    title: str, measured: _Measured, vocabulary: Vocabulary, split: Split
) -> TeacherScores:
    means = {source: own.verb_means(vocabulary) for source, own in measured.scores.items()}
    unseen = set(split.unseen)
    verbs = []
    for verb, name in enumerate(vocabulary.verbs):
        own = {int(index) for index in vocabulary.interaction_ids[verb] if index >= 0}
        if verb == vocabulary.no_interaction or not own:
            continue
        verbs.append(
            VerbScores(
                name=name.replace("_", " "),
                unseen=own <= unseen,
                num_pairs=int(measured.labelled[verb]),
                accuracy=_number(measured.accuracy[verb]),
                recall=_number(measured.recall[verb]),
                annotated=_number(means[ANNOTATED][verb]),
                proposed=_number(means[PROPOSED][verb]),
            )
        )
    shares = {TITLES[name]: _number(share) for name, share in measured.shares.items()}
    groups = measured.groups
    return TeacherScores(title, groups[ANNOTATED], groups[PROPOSED], shares, tuple(verbs))


def _extra(measured: _Measured, vocabulary: Vocabulary) -> dict[str, float]:
    """Fractions beside the metrics of `Results`, whose mAP is the detector's where there is one."""
    extra: dict[str, float | None] = {**measured.shares}
    extra[ACTIONS] = measured.groups[PROPOSED].get(ACTIONS)
    extra |= {f"annotated_{name}": value for name, value in measured.groups[ANNOTATED].items()}
    for title, values in (
        ("accuracy", measured.accuracy),
        ("recall", measured.recall),
        ("annotated mAP", measured.scores[ANNOTATED].verb_means(vocabulary)),
    ):
        extra |= {
            f"{title} of {verb}": share
            for verb, share in zip(vocabulary.verbs, values.tolist(), strict=True)
        }
    return {name: value for name, value in extra.items() if value is not None and value == value}


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
