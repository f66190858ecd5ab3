"""Scores the teacher and the detector of a cache against the annotations, without a student.

The teacher is evaluated with HICO-DET's protocol as if it were a detector of interactions, once on
annotated and once on proposed pairs. Its accuracy on annotated pairs shows how good the soft
targets are, the detector's recall shows which pairs they can be given for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, cast

import numpy as np

from evaluation.hico.average_precision import HicoScores, summarize
from evaluation.hico.matching import Setting
from evaluation.predictions import write_predictions
from evaluation.report.charts.figure import check_chart_file
from evaluation.results import PairProtocol, Results, results_fields, write_results
from evaluation.score_hico import evaluate_part
from evaluation.tables import METRIC_TITLES, format_percent
from pipeline.boxes import box_iou
from pipeline.datasets.dataset import open_dataset
from pipeline.splits import Split, load_split
from pipeline.types import Annotation, Detections
from pipeline.utils.files import refuse_existing
from pipeline.utils.progress import track
from pipeline.utils.text import count_noun
from pipeline.vocabulary import Vocabulary
from teacher_cache.analysis.figures import draw_teacher_scores
from teacher_cache.detectors.pairing import pair_labels
from teacher_cache.reader.cache import open_cache
from teacher_cache.reader.detections import pair_detections
from teacher_cache.reader.format import ANNOTATED, PROPOSED, TeacherOutputs

# IoU of a match in HICO-DET's protocol.
MIN_IOU = 0.5
# mAP over all interactions but `no_interaction`, which has no soft targets.
ACTIONS_GROUP = "actions"
# In the order of the table.
GROUP_TITLES = {**METRIC_TITLES, ACTIONS_GROUP: "Full, actions only"}
RATE_TITLES = {
    "teacher_accuracy": "teacher accuracy (top-1, annotated pairs)",
    "person_recall": "person recall",
    "object_recall": "object recall",
    "pair_recall": "pair recall (annotated among proposed)",
}


class VerbScores(NamedTuple):
    """Scores of a verb as fractions; NaN where there is nothing to measure.

    Attributes:
        name: name without underscores.
        unseen: whether all its interactions are unseen.
        num_pairs: number of annotated pairs with this label.
        accuracy: share of these pairs whose top action is one of their labels.
        recall: share of these pairs that are among the proposed ones.
        annotated, proposed: mAP over its interactions, on annotated and on proposed pairs.
    """

    name: str
    unseen: bool
    num_pairs: int
    accuracy: float
    recall: float
    annotated: float
    proposed: float


class TeacherScores(NamedTuple):
    """Scores of a teacher.

    Attributes:
        title: dataset, split and numbers of images and pairs.
        groups: title, mAP on annotated and mAP on proposed pairs of each group of interactions;
            None without ground truth.
        rates: accuracy and recalls by the names of `RATE_TITLES`; NaN where there is nothing to
            measure.
        verbs: scores of all verbs except `no_interaction`.
    """

    title: str
    groups: Sequence[tuple[str, float | None, float | None]]
    rates: dict[str, float]
    verbs: Sequence[VerbScores]


def evaluate_teacher(
    cache: Path,
    dataset: Path,
    split: str = "full",
    setting: Setting = "default",
    json: Path | None = None,
    predictions: Path | None = None,
    figure: Path | None = None,
    overwrite: bool = False,
) -> Results:
    """Evaluates a cache on the annotations it was built from; prints and writes the scores.

    Args:
        cache: the cache folder.
        dataset: the dataset folder that the cache was built from.
        split: name or TOML file of the split, which defines seen and unseen interactions.
        setting: HICO-DET's default or known-object setting; SWIG-HOI has one of its own.
        json: results file to write.
        predictions: file of the teacher's detections on proposed pairs to write.
        figure: file of a figure of the scores to write.
        overwrite: whether existing files may be replaced.

    Returns:
        The results; their mAP is that of proposed pairs.

    Raises:
        InputError: the input is bad, a file exists, or the cache was built from other annotations.
    """
    for file in filter(None, (json, predictions)):
        refuse_existing(file, overwrite)
    if figure is not None:
        check_chart_file(figure, overwrite)
    data = open_dataset(dataset)
    vocabulary = data.vocabulary
    zero_shot = load_split(vocabulary, split)
    teacher = open_cache(cache)
    part = str(teacher.manifest["parts"].get("part"))
    loaded = data.load(part).limited(teacher.limit)
    teacher.check(vocabulary, loaded.digest, part)
    cached = [each for each in loaded.annotations if each.image_id in teacher]
    detections: dict[int, list[Detections]] = {ANNOTATED: [], PROPOSED: []}
    matches = []
    for annotation in track(cached, len(cached), "Reading", "images", brief=True):
        outputs = teacher[annotation.image_id]
        matches.append(match_annotated_pairs(annotation, outputs, vocabulary))
        for source, found in detections.items():
            found.append(pair_detections(annotation.image_id, outputs, vocabulary, source))
    if loaded.swig_images:
        setting = "swig"
    scores = {
        source: evaluate_part(loaded, found, vocabulary, setting)
        for source, found in detections.items()
    }
    groups = {
        source: _group_scores(source_scores, vocabulary, zero_shot)
        for source, source_scores in scores.items()
    }
    rates, verbs = score_pairs(matches, vocabulary)
    verbs |= {
        "annotated mAP": scores[ANNOTATED].verb_means(vocabulary),
        "proposed mAP": scores[PROPOSED].verb_means(vocabulary),
    }
    num_pairs = sum(teacher.shard_layout(shard).num_pairs for shard in range(teacher.num_shards))
    teacher_scores = TeacherScores(
        f"{data.name}, {part} part, split {zero_shot.name}:"
        f" {count_noun(len(loaded.annotations), 'images')}"
        f"{'' if loaded.limit is None else ' (--limit)'}, {count_noun(num_pairs, 'pairs')}",
        [
            (title, groups[ANNOTATED].get(name), groups[PROPOSED].get(name))
            for name, title in GROUP_TITLES.items()
            if (groups[ANNOTATED].get(name), groups[PROPOSED].get(name)) != (None, None)
        ],
        rates,
        _verb_scores(verbs, vocabulary, zero_shot),
    )
    extra: dict[str, float | None] = {**rates, ACTIONS_GROUP: groups[PROPOSED].get(ACTIONS_GROUP)}
    extra |= {f"annotated_{name}": value for name, value in groups[ANNOTATED].items()}
    for title in ("accuracy", "recall", "annotated mAP"):
        values = verbs[title].tolist()
        extra |= {
            f"{title} of {verb}": value
            for verb, value in zip(vocabulary.verbs, values, strict=True)
        }
    results = Results(
        name="teacher",
        kind="teacher",
        dataset=data.name,
        split=zero_shot.name,
        setting=setting,
        num_images=len(loaded.annotations),
        limit=loaded.limit,
        protocol=cast(PairProtocol, teacher.protocol),
        dataset_path=dataset,
        predictions=predictions,
        extra={
            name: value
            for name, value in extra.items()
            if value is not None and not np.isnan(value)
        },
        **results_fields(scores[PROPOSED], vocabulary, zero_shot.unseen),
    )
    if predictions is not None:
        # The dataset's files may give boxes in images before their EXIF rotation.
        file_detections = data.detections_to_file(part, detections[PROPOSED])
        write_predictions(predictions, file_detections, vocabulary)
    if json is not None:
        write_results(json, results)
    if figure is not None:
        draw_teacher_scores(figure, teacher_scores)
    for line in format_teacher_scores(teacher_scores):
        print(line)
    return results


def _group_scores(
    scores: HicoScores, vocabulary: Vocabulary, split: Split
) -> dict[str, float | None]:
    """mAP by group of interactions; None without ground truth."""
    groups = summarize(scores, vocabulary, split.unseen)
    if vocabulary.no_interaction is not None:
        verbs = np.array(vocabulary.interactions)[:, 0]
        groups[ACTIONS_GROUP] = scores.mean_ap(np.flatnonzero(verbs != vocabulary.no_interaction))
    return groups


def _verb_scores(
    columns: dict[str, np.ndarray], vocabulary: Vocabulary, split: Split
) -> list[VerbScores]:
    rows = []
    for verb, name in enumerate(vocabulary.verbs):
        interactions = {int(index) for index in vocabulary.interaction_ids[verb] if index >= 0}
        if verb != vocabulary.no_interaction and interactions:
            is_unseen = interactions <= set(split.unseen)
            values = [float(columns[title][verb]) for title in list(columns)[1:]]
            rows.append(
                VerbScores(name.replace("_", " "), is_unseen, int(columns["pairs"][verb]), *values)
            )
    return rows


def format_teacher_scores(scores: TeacherScores) -> list[str]:
    """Lines of a text table of a teacher's scores, in percent."""
    lines = [scores.title, "", f"{'mAP':<24}{'annotated pairs':>17}{'proposed pairs':>17}"]
    lines += [
        f"{title:<24}{format_percent(annotated):>17}{format_percent(proposed):>17}"
        for title, annotated, proposed in scores.groups
    ]
    lines.append("")
    lines += [
        f"{RATE_TITLES[name]:<41}{format_percent(share):>17}"
        for name, share in scores.rates.items()
    ]
    width = max([16, *(len(verb.name) + 8 for verb in scores.verbs)])
    columns = ("pairs", "top-1", "recall", "mAP annot.", "mAP prop.")
    lines += ["", f"{'verb (* unseen)':<{width}}" + "".join(f"{name:>12}" for name in columns)]
    for verb in scores.verbs:
        cells = (verb.accuracy, verb.recall, verb.annotated, verb.proposed)
        lines.append(
            f"{verb.name + (' *' if verb.unseen else ''):<{width}}{verb.num_pairs:>12}"
            + "".join(f"{format_percent(cell):>12}" for cell in cells)
        )
    return lines


@dataclass(frozen=True, eq=False)
class AnnotatedMatches:
    """The A annotated pairs of an image compared with the teacher's outputs and the proposed pairs.

    Boxes match at IoU >= 0.5, those of objects only with the same label.

    Attributes:
        labels: (A, V) bool, the pairs' labels.
        is_correct: (A,) bool, whether the teacher's most probable action is a label.
        is_proposed: (A,) bool, whether one proposed pair matches both boxes.
        people, objects: bool for each distinct box of a person, and of an object that is not a
            person: whether a proposed pair matches it.
    """

    labels: np.ndarray
    is_correct: np.ndarray
    is_proposed: np.ndarray
    people: np.ndarray
    objects: np.ndarray


def match_annotated_pairs(
    annotation: Annotation, outputs: TeacherOutputs, vocabulary: Vocabulary
) -> AnnotatedMatches:
    """Compares the annotated pairs of an image with the teacher's outputs; see the result."""
    pairs = outputs.pairs
    annotated = np.flatnonzero(pairs.sources == ANNOTATED)
    proposed = np.flatnonzero(pairs.sources == PROPOSED)
    object_labels = pairs.object_labels[annotated]
    human_match = box_iou(pairs.human_boxes[annotated], pairs.human_boxes[proposed]) >= MIN_IOU
    object_match = box_iou(pairs.object_boxes[annotated], pairs.object_boxes[proposed]) >= MIN_IOU
    object_match &= object_labels[:, None] == pairs.object_labels[proposed]
    # Each box counts once, even if several annotated pairs share it.
    _, people = np.unique(pairs.human_boxes[annotated], axis=0, return_index=True)
    labelled = np.column_stack([pairs.object_boxes[annotated], object_labels])
    _, objects = np.unique(labelled, axis=0, return_index=True)
    objects = objects[object_labels[objects] != vocabulary.person]
    labels = pair_labels(annotation, vocabulary)
    best = outputs.probabilities[annotated].argmax(axis=1)
    return AnnotatedMatches(
        labels=labels,
        is_correct=labels[np.arange(len(labels)), best],
        is_proposed=np.any(human_match & object_match, axis=1),
        people=np.any(human_match[people], axis=1),
        objects=np.any(object_match[objects], axis=1),
    )


def score_pairs(
    matches: Sequence[AnnotatedMatches], vocabulary: Vocabulary
) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Accuracy of the teacher on annotated pairs, and recall of the proposed ones.

    Pairs labelled `no_interaction` do not count for the accuracy.

    Returns:
        Rates by the names of `RATE_TITLES`; and by name (V,) the number of annotated `pairs` with
        each verb's label, their `accuracy` and their `recall`. NaN where there are no pairs.
    """

    def join(name: str) -> np.ndarray:
        return np.concatenate([np.zeros(0, bool), *(getattr(each, name) for each in matches)])

    labels = np.concatenate(
        [np.zeros((0, vocabulary.num_verbs), bool), *(each.labels for each in matches)]
    )
    is_correct, is_proposed = join("is_correct"), join("is_proposed")
    counted = np.ones(len(labels), dtype=bool)
    if vocabulary.no_interaction is not None:
        counted = ~labels[:, vocabulary.no_interaction]
    # The mean of an empty array is NaN.
    with np.errstate(invalid="ignore"):
        rates = {
            "teacher_accuracy": is_correct[counted].sum() / counted.sum(),
            "person_recall": join("people").sum() / len(join("people")),
            "object_recall": join("objects").sum() / len(join("objects")),
            "pair_recall": is_proposed.sum() / len(is_proposed),
        }
        columns = {
            "pairs": labels.sum(axis=0),
            "accuracy": labels[counted & is_correct].sum(axis=0) / labels[counted].sum(axis=0),
            "recall": labels[is_proposed].sum(axis=0) / labels.sum(axis=0),
        }
    return {name: float(rate) for name, rate in rates.items()}, columns
