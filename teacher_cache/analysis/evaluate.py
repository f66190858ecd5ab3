"""Scores the teacher and the detector of a cache against the annotations, without a student.

The teacher is evaluated with HICO-DET's protocol as if it were a detector of interactions, once on
annotated and once on proposed pairs. Its accuracy on annotated pairs shows how good the soft
targets are, the detector's recall shows which pairs they can be given for.
"""

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
    """What to evaluate, and which files to write.

    Attributes:
        cache: the cache folder.
        dataset: the dataset folder that the cache was built from.
        split: name or TOML file of the split, which defines seen and unseen interactions.
        setting: HICO-DET's default or known-object setting.
        json: results file; None writes none.
        predictions: file of the teacher's detections on proposed pairs; None writes none.
        figure: file of a figure of the scores; None writes none.
        overwrite: whether existing files may be replaced.
    """

    cache: Path
    dataset: Path
    split: str = "full"
    setting: Setting = "default"
    json: Path | None = None
    predictions: Path | None = None
    figure: Path | None = None
    overwrite: bool = False


@dataclass(frozen=True, eq=False)
class _Measurements:
    """All measurements of a cache; NaN where there is nothing to measure.

    Attributes:
        scores: average precisions by pair source, `ANNOTATED` or `PROPOSED`.
        groups: mAP by group of interactions, by pair source.
        rates: fractions by the names of `RATE_TITLES`.
        accuracy: (V,) share of the verb's annotated pairs whose top action is one of their labels.
        recall: (V,) share of the verb's annotated pairs that are among the proposed ones.
        num_labels: (V,) number of annotated pairs with the verb's label.
    """

    scores: dict[int, HicoScores]
    groups: dict[int, dict[str, float | None]]
    rates: dict[str, float]
    accuracy: np.ndarray
    recall: np.ndarray
    num_labels: np.ndarray


def evaluate_teacher(config: EvaluateConfig) -> Results:
    """Evaluates a cache on the annotations it was built from; prints and writes the scores.

    Returns:
        The results; their mAP is that of proposed pairs.

    Raises:
        InputError: the input is bad, a file exists, or the cache was built from other annotations.
    """
    for file in filter(None, (config.json, config.predictions)):
        refuse_existing(file, config.overwrite)
    if config.figure is not None:
        check_chart_file(config.figure, config.overwrite)
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
        for source, source_detections in detections.items():
            source_detections.append(
                teacher_detections(annotation.image_id, outputs, vocabulary, source)
            )
    measured = _measure(images, detections, vocabulary, split, config.setting)
    num_pairs = sum(cache.shard_layout(shard).num_pairs for shard in range(cache.num_shards))
    title = (
        f"{dataset.name}, {part} part, split {split.name}: {len(loaded.annotations)} images,"
        f" {num_pairs} pairs"
    )
    teacher_scores = _build_teacher_scores(title, measured, vocabulary, split)
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
        # The dataset's files may give boxes in images before their EXIF rotation.
        file_detections = dataset.detections_to_file(part, detections[PROPOSED])
        write_predictions(config.predictions, file_detections, vocabulary)
    if config.json is not None:
        write_results(config.json, results)
    if config.figure is not None:
        draw_teacher_scores(config.figure, teacher_scores)
    for line in format_teacher_scores(teacher_scores):
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
        source: evaluate(images.annotations, source_detections, vocabulary, setting)
        for source, source_detections in detections.items()
    }
    actions = [
        index
        for index, (verb, _) in enumerate(vocabulary.interactions)
        if verb != vocabulary.no_interaction
    ]
    groups = {}
    for source, source_scores in scores.items():
        groups[source] = summarize(source_scores, vocabulary, split.unseen)
        if vocabulary.no_interaction is not None:
            groups[source][ACTIONS_GROUP] = source_scores.mean_ap(actions)
    overall, accuracy = action_accuracy(images, vocabulary)
    num_labels, recall = pair_recall(images, vocabulary)
    rates = {"teacher_accuracy": overall}
    rates |= {f"{name}_recall": share for name, share in box_recall(images, vocabulary).items()}
    return _Measurements(scores, groups, rates, accuracy, recall, num_labels)


def _build_teacher_scores(
    title: str, measured: _Measurements, vocabulary: Vocabulary, split: Split
) -> TeacherScores:
    means = {source: scores.verb_means(vocabulary) for source, scores in measured.scores.items()}
    unseen = set(split.unseen)
    verbs = []
    for verb, name in enumerate(vocabulary.verbs):
        interactions = {int(index) for index in vocabulary.interaction_ids[verb] if index >= 0}
        if verb == vocabulary.no_interaction or not interactions:
            continue
        verbs.append(
            VerbScores(
                name=name.replace("_", " "),
                unseen=interactions <= unseen,
                num_pairs=int(measured.num_labels[verb]),
                accuracy=_nan_to_none(measured.accuracy[verb]),
                recall=_nan_to_none(measured.recall[verb]),
                annotated=_nan_to_none(means[ANNOTATED][verb]),
                proposed=_nan_to_none(means[PROPOSED][verb]),
            )
        )
    rates = {RATE_TITLES[name]: _nan_to_none(rate) for name, rate in measured.rates.items()}
    groups = measured.groups
    return TeacherScores(title, groups[ANNOTATED], groups[PROPOSED], rates, tuple(verbs))


def _extra_metrics(measured: _Measurements, vocabulary: Vocabulary) -> dict[str, float]:
    """Scores in addition to the metrics of `Results`, whose mAP is that of proposed pairs."""
    extra: dict[str, float | None] = {**measured.rates}
    extra[ACTIONS_GROUP] = measured.groups[PROPOSED].get(ACTIONS_GROUP)
    extra |= {f"annotated_{name}": value for name, value in measured.groups[ANNOTATED].items()}
    for title, values in (
        ("accuracy", measured.accuracy),
        ("recall", measured.recall),
        ("annotated mAP", measured.scores[ANNOTATED].verb_means(vocabulary)),
    ):
        extra |= {
            f"{title} of {verb}": value
            for verb, value in zip(vocabulary.verbs, values.tolist(), strict=True)
        }
    return {name: value for name, value in extra.items() if value is not None and value == value}


def _nan_to_none(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


# Detections per image that HICO-DET's protocol evaluates, and the IoU of a match.
MAX_TRIPLETS = 100
MIN_IOU = 0.5
# An image's annotation and its outputs in the cache.
CachedImage = tuple[Annotation, TeacherOutputs]


@dataclass(frozen=True, eq=False)
class CachedImages:
    """Annotations with the outputs of a cache; can be iterated several times.

    Every iteration reads the outputs from the cache, so that they need not fit in memory. Images
    that the cache lacks are skipped.

    Attributes:
        cache: the cache.
        annotations: annotations of all images of the part.
    """

    cache: TeacherCache
    annotations: Sequence[Annotation]

    def __iter__(self) -> Iterator[CachedImage]:
        for annotation in self.annotations:
            if annotation.image_id in self.cache:
                yield annotation, self.cache[annotation.image_id]


def teacher_detections(
    image_id: str, outputs: TeacherOutputs, vocabulary: Vocabulary, source: int = PROPOSED
) -> Detections:
    """The teacher's outputs for an image as detections of interactions.

    The score of a pair and verb is the verb's probability times both detector scores. The 100
    highest ones are kept; equal boxes become one box.

    Args:
        image_id: id of the image.
        outputs: pairs and probabilities of the image.
        vocabulary: the cache's vocabulary.
        source: `ANNOTATED` or `PROPOSED`, the pairs to use.
    """
    selected = outputs.pairs.sources == source
    weights = outputs.pairs.human_scores * outputs.pairs.object_scores * selected
    scores = outputs.probabilities * weights[:, None]
    # A stable sort, so that equal scores are cut off in the same way on all machines.
    order = np.argsort(-scores, axis=None, kind="stable")[:MAX_TRIPLETS]
    order = order[scores.ravel()[order] > 0]
    pair, verb = np.unravel_index(order, scores.shape)
    person_labels = np.full(len(pair), vocabulary.person, dtype=np.int64)
    boxes = np.concatenate([outputs.pairs.human_boxes[pair], outputs.pairs.object_boxes[pair]])
    labels = np.concatenate([person_labels, outputs.pairs.object_labels[pair]])
    distinct, rows = np.unique(np.column_stack([boxes, labels]), axis=0, return_inverse=True)
    human_rows, object_rows = rows.reshape(2, -1)
    return Detections(
        image_id=image_id,
        boxes=distinct[:, :4].astype(np.float32),
        labels=distinct[:, 4].astype(np.int64),
        hois=np.stack([human_rows, object_rows, verb], axis=1),
        scores=scores.ravel()[order].astype(np.float32),
    )


def action_accuracy(
    images: Iterable[CachedImage], vocabulary: Vocabulary
) -> tuple[float, np.ndarray]:
    """Top-1 accuracy of the teacher on annotated pairs.

    A pair counts as correct if its most probable action is one of its labels. Pairs labelled
    `no_interaction` are excluded.

    Returns:
        The accuracy over all pairs, and (V,) over the pairs with each verb's label; NaN where
        there are none.
    """
    correct, total = np.zeros((2, vocabulary.num_verbs))
    num_correct = num_pairs = 0
    for annotation, outputs in images:
        labels = pair_labels(annotation, vocabulary)
        best = outputs.probabilities[outputs.pairs.sources == ANNOTATED].argmax(axis=1)
        is_correct = labels[np.arange(len(labels)), best]
        if vocabulary.no_interaction is not None:
            counted = ~labels[:, vocabulary.no_interaction]
            labels, is_correct = labels[counted], is_correct[counted]
        num_correct += int(is_correct.sum())
        num_pairs += len(labels)
        correct += labels[is_correct].sum(axis=0)
        total += labels.sum(axis=0)
    per_verb = np.divide(correct, total, out=np.full(len(total), np.nan), where=total > 0)
    return num_correct / num_pairs if num_pairs else np.nan, per_verb


def box_recall(images: Iterable[CachedImage], vocabulary: Vocabulary) -> dict[str, float]:
    """Recall of annotated boxes and pairs among the proposed pairs, at IoU >= 0.5.

    Returns:
        Recall of `person` boxes, of `object` boxes (with the right class, without people) and of
        `pair`s, of which one proposed pair must match both boxes; NaN where there are none.
    """
    matched: dict[str, list[bool]] = {"person": [], "object": [], "pair": []}
    for _, outputs in images:
        pairs = outputs.pairs
        annotated = np.flatnonzero(pairs.sources == ANNOTATED)
        human_match, object_match = _match_pairs(pairs)
        # Each box counts once, even if several annotated pairs share it.
        _, people = np.unique(pairs.human_boxes[annotated], axis=0, return_index=True)
        labelled = np.column_stack([pairs.object_boxes[annotated], pairs.object_labels[annotated]])
        _, objects = np.unique(labelled, axis=0, return_index=True)
        objects = objects[pairs.object_labels[annotated][objects] != vocabulary.person]
        matched["person"].extend(np.any(human_match[people], axis=1))
        matched["object"].extend(np.any(object_match[objects], axis=1))
        matched["pair"].extend(np.any(human_match & object_match, axis=1))
    return {name: float(np.mean(flags)) if flags else np.nan for name, flags in matched.items()}


def pair_recall(
    images: Iterable[CachedImage], vocabulary: Vocabulary
) -> tuple[np.ndarray, np.ndarray]:
    """Number of annotated pairs with each verb's label, and their recall among proposed pairs.

    Returns:
        (V,) int64 counts, and (V,) float64 shares of them of which one proposed pair matches both
        boxes at IoU >= 0.5; NaN where there are none.
    """
    total, matched = np.zeros((2, vocabulary.num_verbs), dtype=np.int64)
    for annotation, outputs in images:
        labels = pair_labels(annotation, vocabulary)
        human_match, object_match = _match_pairs(outputs.pairs)
        total += labels.sum(axis=0)
        matched += labels[np.any(human_match & object_match, axis=1)].sum(axis=0)
    return total, np.divide(matched, total, out=np.full(len(total), np.nan), where=total > 0)


def _match_pairs(pairs: Pairs) -> tuple[np.ndarray, np.ndarray]:
    """Matches boxes of the A annotated pairs with those of the P proposed pairs.

    Returns:
        (A, P) bool for people, and (A, P) bool for objects, which need the same label.
    """
    annotated = np.flatnonzero(pairs.sources == ANNOTATED)
    proposed = np.flatnonzero(pairs.sources == PROPOSED)
    human_iou = box_iou(pairs.human_boxes[annotated], pairs.human_boxes[proposed])
    object_iou = box_iou(pairs.object_boxes[annotated], pairs.object_boxes[proposed])
    same_label = pairs.object_labels[annotated][:, None] == pairs.object_labels[proposed]
    return human_iou >= MIN_IOU, (object_iou >= MIN_IOU) & same_label
