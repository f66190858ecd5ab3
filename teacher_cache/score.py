"""How good the teacher and the detector are, before anyone trains on their answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from evaluation.hico import Setting, evaluate
from evaluation.predictions import write_predictions
from evaluation.results import Results, score_fields, write_results
from pipeline.boxes import box_iou
from pipeline.datasets import open_dataset
from pipeline.errors import InputError
from pipeline.splits import load_split
from pipeline.types import Annotation, Detections
from pipeline.vocabulary import Vocabulary
from teacher_cache.format import ImageAnswers
from teacher_cache.pairing import ANNOTATED, PROPOSED
from teacher_cache.reader import open_cache

MAX_TRIPLETS = 100
LEAST_IOU = 0.5
# An image's annotation and the answers about it.
Held = tuple[Annotation, ImageAnswers]


@dataclass(frozen=True)
class ScoreConfig:
    """What to score, and where to write it.

    Attributes:
        cache: the cache folder.
        dataset: the dataset folder it was made from.
        split: a split's name or a user's TOML file; decides the groups of interactions.
        setting: HICO-DET's default or known-object setting.
        json: results file, where wanted.
        predictions: file for the teacher's detections, where wanted.
        overwrite: whether existing files may be replaced.
    """

    cache: Path
    dataset: Path
    split: str = "full"
    setting: Setting = "default"
    json: Path | None = None
    predictions: Path | None = None
    overwrite: bool = False


def score_teacher(config: ScoreConfig, say: Callable[[str], None] = print) -> Results:
    """Scores a cache against the annotations that it was made from.

    Raises:
        InputError: bad input, or the cache was made from other annotations.
    """
    for file in (config.json, config.predictions):
        if file is not None and file.exists() and not config.overwrite:
            raise InputError(f"{file}: exists; give --overwrite or another name")
    dataset = open_dataset(config.dataset)
    vocabulary = dataset.vocabulary
    split = load_split(vocabulary, config.split)
    cache = open_cache(config.cache)
    loaded = dataset.load(str(cache.manifest["parts"].get("part")))
    cache.check(vocabulary, loaded.digest)
    held = [
        (entry, cache[entry.image_id]) for entry in loaded.annotations if entry.image_id in cache
    ]
    detections = [to_detections(entry.image_id, answers, vocabulary) for entry, answers in held]
    scores = evaluate(loaded.annotations, detections, vocabulary, config.setting)
    accuracy, by_verb = action_accuracy(held, vocabulary)
    extra = {"teacher_accuracy": accuracy}
    extra |= {f"{name}_recall": share for name, share in box_recall(held, vocabulary).items()}
    extra |= {
        f"accuracy of {verb}": share
        for verb, share in zip(vocabulary.verbs, by_verb.tolist(), strict=True)
    }
    results = Results(
        name="teacher",
        kind="teacher",
        dataset=dataset.name,
        split=split.name,
        setting=config.setting,
        num_images=len(loaded.annotations),
        protocol="detector",
        dataset_path=config.dataset,
        predictions=config.predictions,
        extra={name: number for name, number in extra.items() if not np.isnan(number)},
        **score_fields(scores, vocabulary, split.unseen),
    )
    if config.predictions is not None:
        write_predictions(config.predictions, detections, vocabulary)
    if config.json is not None:
        write_results(config.json, results)
    for line in table(results):
        say(line)
    return results


def to_detections(image_id: str, answers: ImageAnswers, vocabulary: Vocabulary) -> Detections:
    """The teacher as a detector: probability x person's score x object's score, the best 100.

    Args:
        image_id: of the image.
        answers: its pairs and probabilities; annotated pairs are left out.
        vocabulary: of the cache.
    """
    proposed = answers.pairs.sources == PROPOSED
    weights = answers.pairs.human_scores * answers.pairs.object_scores * proposed
    scores = answers.probabilities * weights[:, None]
    order = np.argsort(-scores, axis=None, kind="stable")[:MAX_TRIPLETS]
    order = order[scores.ravel()[order] > 0]
    pair, verb = np.unravel_index(order, scores.shape)
    people = np.full(len(pair), vocabulary.person, dtype=np.int64)
    ends = np.concatenate([answers.pairs.human_boxes[pair], answers.pairs.object_boxes[pair]])
    labels = np.concatenate([people, answers.pairs.object_labels[pair]])
    rows, numbers = np.unique(np.column_stack([ends, labels]), axis=0, return_inverse=True)
    human, other = numbers.reshape(2, -1)
    return Detections(
        image_id=image_id,
        boxes=rows[:, :4].astype(np.float32),
        labels=rows[:, 4].astype(np.int64),
        hois=np.stack([human, other, verb], axis=1),
        scores=scores.ravel()[order].astype(np.float32),
    )


def action_accuracy(held: Sequence[Held], vocabulary: Vocabulary) -> tuple[float, np.ndarray]:
    """How often the teacher's best action of an annotated pair is one of the pair's labels.

    Pairs labelled `no_interaction` are left out.

    Returns:
        The share of pairs, and (V,) the share of those that have the verb's label; NaN where
        there are none.
    """
    right, asked = np.zeros((2, vocabulary.num_verbs))
    num_right = num_asked = 0
    for annotation, answers in held:
        labels = pair_labels(annotation, vocabulary)
        best = answers.probabilities[answers.pairs.sources == ANNOTATED].argmax(axis=1)
        is_right = labels[np.arange(len(labels)), best]
        if vocabulary.no_interaction is not None:
            counted = ~labels[:, vocabulary.no_interaction]
            labels, is_right = labels[counted], is_right[counted]
        num_right, num_asked = num_right + int(is_right.sum()), num_asked + len(labels)
        right += labels[is_right].sum(axis=0)
        asked += labels.sum(axis=0)
    per_verb = np.divide(right, asked, out=np.full(len(asked), np.nan), where=asked > 0)
    return num_right / num_asked if num_asked else np.nan, per_verb


def pair_labels(annotation: Annotation, vocabulary: Vocabulary) -> np.ndarray:
    """(P, V) bool: labels of an image's annotated pairs, in the order of `annotated_pairs`."""
    rows: dict[tuple[int, int], int] = {}
    hois = [hoi for hoi in annotation.hois.tolist() if hoi[1] >= 0]
    numbers = [rows.setdefault((human, other), len(rows)) for human, other, _ in hois]
    labels = np.zeros((len(rows), vocabulary.num_verbs), dtype=bool)
    labels[numbers, [verb for _, _, verb in hois]] = True
    return labels


def box_recall(held: Sequence[Held], vocabulary: Vocabulary) -> dict[str, float]:
    """Shares of annotated boxes and pairs that the detector found at IoU >= 0.5.

    Returns:
        `person` and `object` (of the right class): boxes of annotated pairs; `pair`: annotated
        pairs both of whose boxes some proposed pair finds. NaN where there are none.
    """
    found: dict[str, list[bool]] = {"person": [], "object": [], "pair": []}
    for _, answers in held:
        pairs = answers.pairs
        truth = np.flatnonzero(pairs.sources == ANNOTATED)
        proposed = np.flatnonzero(pairs.sources == PROPOSED)
        human = box_iou(pairs.human_boxes[truth], pairs.human_boxes[proposed]) >= LEAST_IOU
        other = box_iou(pairs.object_boxes[truth], pairs.object_boxes[proposed]) >= LEAST_IOU
        other &= pairs.object_labels[truth][:, None] == pairs.object_labels[proposed]
        _, people = np.unique(pairs.human_boxes[truth], axis=0, return_index=True)
        things = np.column_stack([pairs.object_boxes[truth], pairs.object_labels[truth]])
        _, objects = np.unique(things, axis=0, return_index=True)
        objects = objects[pairs.object_labels[truth][objects] != vocabulary.person]
        found["person"].extend(np.any(human[people], axis=1))
        found["object"].extend(np.any(other[objects], axis=1))
        found["pair"].extend(np.any(human & other, axis=1))
    return {name: float(np.mean(hits)) if hits else np.nan for name, hits in found.items()}


def table(results: Results) -> list[str]:
    """Lines for people."""
    lines = [f"{results.dataset}, split {results.split}, {results.num_images} images"]
    for name, number in [*results.metrics.items(), *results.extra.items()]:
        shown = "-" if number is None else f"{100 * number:.1f}"
        lines.append(f"  {name.replace('_', ' '):<24}{shown:>6}")
    return lines
