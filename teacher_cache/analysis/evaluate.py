"""How good the teacher and the detector are, before anyone trains on their outputs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np

from evaluation.hico.average_precision import HicoScores, evaluate, summarize
from evaluation.hico.matching import Setting
from evaluation.predictions import write_predictions
from evaluation.report.charts.figure import check_chart_file
from evaluation.results import PairProtocol, Results, results_fields, write_results
from pipeline.boxes import box_iou
from pipeline.datasets.dataset import open_dataset
from pipeline.splits import Split, load_split
from pipeline.types import Annotation, Detections, Pairs
from pipeline.utils.files import refuse_existing
from pipeline.utils.progress import track
from pipeline.vocabulary import Vocabulary
from teacher_cache.analysis.summary import (
    ACTIONS_GROUP,
    TeacherScores,
    VerbScores,
    draw_teacher_scores,
    format_teacher_scores,
)
from teacher_cache.detectors.pairing import pair_labels
from teacher_cache.reader.cache import TeacherCache, open_cache
from teacher_cache.reader.format import ANNOTATED, PROPOSED, TeacherOutputs

PAIR_SOURCES = (ANNOTATED, PROPOSED)
RATE_TITLES = {
    "teacher_accuracy": "teacher accuracy (top-1, annotated pairs)",
    "person_recall": "person recall",
    "object_recall": "object recall",
    "pair_recall": "pair recall (annotated among proposed)",
}


@dataclass(frozen=True)
class EvaluateConfig:
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
class _Measurements:
    """Everything that was measured; (V,) arrays, NaN where there is nothing.

    Attributes:
        scores, groups: of either kind of pairs, by `ANNOTATED` and `PROPOSED`.
        rates: fractions by the names of `RATE_TITLES`.
        accuracy, recall, labelled: by verb.
    """

    scores: dict[int, HicoScores]
    groups: dict[int, dict[str, float | None]]
    rates: dict[str, float]
    accuracy: np.ndarray
    recall: np.ndarray
    labelled: np.ndarray


def evaluate_teacher(config: EvaluateConfig) -> Results:
    """Scores a cache against the annotations that it was made from.

    Raises:
        InputError: bad input, or the cache was made from other annotations.
    """
    for file in filter(None, (config.json, config.predictions)):
        refuse_existing(file, config.overwrite)
    if config.picture is not None:
        check_chart_file(config.picture, config.overwrite)
    dataset = open_dataset(config.dataset)
    vocabulary = dataset.vocabulary
    split = load_split(vocabulary, config.split)
    cache = open_cache(config.cache)
    part = str(cache.manifest["parts"].get("part"))
    loaded = dataset.load(part)
    cache.check(vocabulary, loaded.digest, part)
    images = CachedImages(cache, loaded.annotations)
    detections: dict[int, list[Detections]] = {source: [] for source in PAIR_SOURCES}
    for annotation, outputs in track(images, len(cache), "Reading", "images", brief=True):
        for source, found in detections.items():
            found.append(to_detections(annotation.image_id, outputs, vocabulary, source))
    measured = _measure(images, detections, vocabulary, split, config.setting)
    num_pairs = sum(cache.shard_layout(shard).num_pairs for shard in range(cache.num_shards))
    title = (
        f"{dataset.name}, {part} part, split {split.name}: {len(loaded.annotations)} images,"
        f" {num_pairs} pairs"
    )
    told = _build_teacher_scores(title, measured, vocabulary, split)
    results = Results(
        name="teacher",
        kind="teacher",
        dataset=dataset.name,
        split=split.name,
        setting=config.setting,
        num_images=len(loaded.annotations),
        protocol=cast(PairProtocol, cache.protocol),
        dataset_path=config.dataset,
        predictions=config.predictions,
        extra=_extra_metrics(measured, vocabulary),
        **results_fields(measured.scores[PROPOSED], vocabulary, split.unseen),
    )
    if config.predictions is not None:
        in_file = dataset.detections_to_file(part, detections[PROPOSED])
        write_predictions(config.predictions, in_file, vocabulary)
    if config.json is not None:
        write_results(config.json, results)
    if config.picture is not None:
        draw_teacher_scores(config.picture, told)
    for line in format_teacher_scores(told):
        print(line)
    return results


def _measure(
    images: CachedImages,
    detections: dict[int, list[Detections]],
    vocabulary: Vocabulary,
    split: Split,
    setting: Setting,
) -> _Measurements:
    scores = {
        source: evaluate(images.annotations, found, vocabulary, setting)
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
            **({} if vocabulary.no_interaction is None else {ACTIONS_GROUP: own.mean_ap(actions)}),
        }
        for source, own in scores.items()
    }
    overall, accuracy = action_accuracy(images, vocabulary)
    labelled, recall = pair_recall(images, vocabulary)
    found = box_recall(images, vocabulary)
    shares = {"teacher_accuracy": overall}
    shares |= {f"{name}_recall": share for name, share in found.items()}
    return _Measurements(scores, groups, shares, accuracy, recall, labelled)


def _build_teacher_scores(
    title: str, measured: _Measurements, vocabulary: Vocabulary, split: Split
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
                accuracy=_nan_to_none(measured.accuracy[verb]),
                recall=_nan_to_none(measured.recall[verb]),
                annotated=_nan_to_none(means[ANNOTATED][verb]),
                proposed=_nan_to_none(means[PROPOSED][verb]),
            )
        )
    shares = {RATE_TITLES[name]: _nan_to_none(share) for name, share in measured.rates.items()}
    groups = measured.groups
    return TeacherScores(title, groups[ANNOTATED], groups[PROPOSED], shares, tuple(verbs))


def _extra_metrics(measured: _Measurements, vocabulary: Vocabulary) -> dict[str, float]:
    """Fractions beside the metrics of `Results`, whose mAP is the detector's where there is one."""
    extra: dict[str, float | None] = {**measured.rates}
    extra[ACTIONS_GROUP] = measured.groups[PROPOSED].get(ACTIONS_GROUP)
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


def _nan_to_none(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


MAX_TRIPLETS = 100
MIN_IOU = 0.5
# An image's annotation and the outputs about it.
CachedImage = tuple[Annotation, TeacherOutputs]


@dataclass(frozen=True, eq=False)
class CachedImages:
    """The annotated images that a cache has outputs about, read anew every time.

    Attributes:
        cache: the outputs.
        annotations: of all images.
    """

    cache: TeacherCache
    annotations: Sequence[Annotation]

    def __iter__(self) -> Iterator[CachedImage]:
        for annotation in self.annotations:
            if annotation.image_id in self.cache:
                yield annotation, self.cache[annotation.image_id]


def to_detections(
    image_id: str, outputs: TeacherOutputs, vocabulary: Vocabulary, source: int = PROPOSED
) -> Detections:
    """The teacher as a detector: probability x person's score x object's score, the best 100.

    Args:
        image_id: of the image.
        outputs: its pairs and probabilities.
        vocabulary: of the cache.
        source: which pairs count, annotated or proposed ones.
    """
    chosen = outputs.pairs.sources == source
    weights = outputs.pairs.human_scores * outputs.pairs.object_scores * chosen
    scores = outputs.probabilities * weights[:, None]
    order = np.argsort(-scores, axis=None, kind="stable")[:MAX_TRIPLETS]
    order = order[scores.ravel()[order] > 0]
    pair, verb = np.unravel_index(order, scores.shape)
    people = np.full(len(pair), vocabulary.person, dtype=np.int64)
    ends = np.concatenate([outputs.pairs.human_boxes[pair], outputs.pairs.object_boxes[pair]])
    labels = np.concatenate([people, outputs.pairs.object_labels[pair]])
    rows, numbers = np.unique(np.column_stack([ends, labels]), axis=0, return_inverse=True)
    human, other = numbers.reshape(2, -1)
    return Detections(
        image_id=image_id,
        boxes=rows[:, :4].astype(np.float32),
        labels=rows[:, 4].astype(np.int64),
        hois=np.stack([human, other, verb], axis=1),
        scores=scores.ravel()[order].astype(np.float32),
    )


def action_accuracy(
    images: Iterable[CachedImage], vocabulary: Vocabulary
) -> tuple[float, np.ndarray]:
    """How often the teacher's best action of an annotated pair is one of the pair's labels.

    Pairs labelled `no_interaction` are left out.

    Returns:
        The share of pairs, and (V,) the share of those that have the verb's label; NaN where
        there are none.
    """
    right, asked = np.zeros((2, vocabulary.num_verbs))
    num_right = num_asked = 0
    for annotation, outputs in images:
        labels = pair_labels(annotation, vocabulary)
        best = outputs.probabilities[outputs.pairs.sources == ANNOTATED].argmax(axis=1)
        is_right = labels[np.arange(len(labels)), best]
        if vocabulary.no_interaction is not None:
            counted = ~labels[:, vocabulary.no_interaction]
            labels, is_right = labels[counted], is_right[counted]
        num_right, num_asked = num_right + int(is_right.sum()), num_asked + len(labels)
        right += labels[is_right].sum(axis=0)
        asked += labels.sum(axis=0)
    per_verb = np.divide(right, asked, out=np.full(len(asked), np.nan), where=asked > 0)
    return num_right / num_asked if num_asked else np.nan, per_verb


def box_recall(images: Iterable[CachedImage], vocabulary: Vocabulary) -> dict[str, float]:
    """Shares of annotated boxes and pairs that the detector found at IoU >= 0.5.

    Returns:
        `person` and `object` (of the right class): boxes of annotated pairs; `pair`: annotated
        pairs both of whose boxes some proposed pair finds. NaN where there are none.
    """
    found: dict[str, list[bool]] = {"person": [], "object": [], "pair": []}
    for _, outputs in images:
        pairs = outputs.pairs
        truth = np.flatnonzero(pairs.sources == ANNOTATED)
        human, other = _match_pairs(pairs)
        _, people = np.unique(pairs.human_boxes[truth], axis=0, return_index=True)
        things = np.column_stack([pairs.object_boxes[truth], pairs.object_labels[truth]])
        _, objects = np.unique(things, axis=0, return_index=True)
        objects = objects[pairs.object_labels[truth][objects] != vocabulary.person]
        found["person"].extend(np.any(human[people], axis=1))
        found["object"].extend(np.any(other[objects], axis=1))
        found["pair"].extend(np.any(human & other, axis=1))
    return {name: float(np.mean(hits)) if hits else np.nan for name, hits in found.items()}


def pair_recall(
    images: Iterable[CachedImage], vocabulary: Vocabulary
) -> tuple[np.ndarray, np.ndarray]:
    """How many annotated pairs have a verb's label, and which share of them is proposed.

    Returns:
        (V,) int64, and (V,) float64: pairs both of whose boxes some proposed pair finds at
        IoU >= 0.5; NaN where there are none.
    """
    labelled, found = np.zeros((2, vocabulary.num_verbs), dtype=np.int64)
    for annotation, outputs in images:
        labels = pair_labels(annotation, vocabulary)
        human, other = _match_pairs(outputs.pairs)
        labelled += labels.sum(axis=0)
        found += labels[np.any(human & other, axis=1)].sum(axis=0)
    shares = np.full(len(labelled), np.nan)
    return labelled, np.divide(found, labelled, out=shares, where=labelled > 0)


def _match_pairs(pairs: Pairs) -> tuple[np.ndarray, np.ndarray]:
    """(A, P) bool, twice: the P proposed pairs' people and objects that find those of the A
    annotated pairs, objects of the right class."""
    truth = np.flatnonzero(pairs.sources == ANNOTATED)
    proposed = np.flatnonzero(pairs.sources == PROPOSED)
    human = box_iou(pairs.human_boxes[truth], pairs.human_boxes[proposed]) >= MIN_IOU
    other = box_iou(pairs.object_boxes[truth], pairs.object_boxes[proposed]) >= MIN_IOU
    return human, other & (pairs.object_labels[truth][:, None] == pairs.object_labels[proposed])
