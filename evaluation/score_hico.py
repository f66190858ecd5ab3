"""HICO-DET scores of detections as results fields; the work of `eoid-eval hico`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from evaluation.analysis.matched import Setting, match
from evaluation.ground_truth import find_truth, of_annotated_images
from evaluation.hico.average_precision import scores_of
from evaluation.hico.nms import NmsConfig, suppress_pairs
from evaluation.predictions import (
    object_pairs,
    predictions_name,
    predictions_path,
    read_predictions,
)
from evaluation.results import Results, score_fields, setting_scores, write_results
from evaluation.tables import tables
from pipeline.annotations.load import AnnotationFile, load_annotations
from pipeline.splits import load_split
from pipeline.types import Annotation, Detections
from pipeline.utils.files import refuse_existing
from pipeline.vocabulary import Vocabulary

SETTINGS: dict[str, tuple[Setting, ...]] = {
    "default": ("default",),
    "known-object": ("known_object",),
    "both": ("default", "known_object"),
}


@dataclass(frozen=True)
class Scoring:
    """How to score.

    Attributes:
        settings: HICO-DET settings, one or both.
        nms: pairwise NMS first; None without.
    """

    settings: tuple[Setting, ...] = SETTINGS["both"]
    nms: NmsConfig | None = None


def scored_fields(
    annotations: Sequence[Annotation],
    detections: Sequence[Detections],
    vocabulary: Vocabulary,
    unseen: tuple[int, ...],
    scoring: Scoring,
) -> dict[str, Any]:
    """The fields of `Results` that scoring fills; the first setting's numbers stand at the top.

    Args:
        unseen: HOI indices of the split whose groups are wanted.

    Raises:
        InputError: detections for an image that is not annotated.
    """
    if scoring.nms is not None:
        detections = suppress_pairs(detections, scoring.nms)
    matches = match(annotations, detections, vocabulary)
    scores = scores_of(matches, vocabulary, scoring.settings)
    first, *further = scoring.settings
    known_object = "known_object" in further
    return {
        "setting": first,
        "known_object": setting_scores(scores["known_object"], vocabulary, unseen)
        if known_object
        else None,
        "nms": None if scoring.nms is None else asdict(scoring.nms),
        "matches": matches,
        **score_fields(scores[first], vocabulary, unseen),
    }


HICO = "hico-det"


@dataclass(frozen=True)
class ScoreConfig:
    """What to score, and how.

    Attributes:
        predictions: file, or folder of a run.
        annotations: file; None takes that of `data`.
        vocabulary, split: names or files; without vocabulary the dataset's, else HICO-DET's.
        scoring: settings and NMS.
        details: tables wanted beside the groups, of `evaluation.tables.DETAILS`.
        strict: refuse annotations with blemishes.
        json: results file to write.
        overwrite: replace it.
        data: dataset folder; looked for around the annotations where not named.
    """

    predictions: Path
    annotations: Path | None
    vocabulary: str | None = None
    split: str = "full"
    scoring: Scoring = field(default_factory=Scoring)
    details: tuple[str, ...] = ()
    strict: bool = False
    json: Path | None = None
    overwrite: bool = False
    data: Path | None = None


def score_file(config: ScoreConfig) -> list[str]:
    """Scores the predictions and writes the results where wanted.

    Returns:
        tables for people.

    Raises:
        InputError: a file is missing or wrong, or all predictions are for other images.
    """
    if config.json is not None:
        refuse_existing(config.json, config.overwrite)
    files = find_truth(config.annotations, config.data, config.vocabulary, usual=HICO, dataset=HICO)
    path = predictions_path(config.predictions)
    vocabulary = files.vocabulary
    split = load_split(vocabulary, config.split)
    truth = load_annotations(
        files.annotations, vocabulary, "test", config.strict, files.instances, files.ids
    )
    sizes = {one.image_id: one.size for one in truth.annotations}
    found = read_predictions(path, vocabulary, sizes)
    truth.require_labels()
    detections = of_annotated_images(path, found, truth)
    results = Results(
        name=predictions_name(path),
        kind="predictions",
        dataset=files.dataset,
        split=split.name,
        num_images=len(truth.annotations),
        dataset_path=files.folder,
        annotations=files.annotations,
        predictions=path,
        **scored_fields(truth.annotations, detections, vocabulary, split.unseen, config.scoring),
    )
    if config.json is not None:
        write_results(config.json, results)
    notes = _notes(truth, found, detections, vocabulary)
    return [*tables([results], config.details), *filter(None, notes)]


def _notes(
    truth: AnnotationFile,
    found: list[Detections],
    counted: list[Detections],
    vocabulary: Vocabulary,
) -> list[str]:
    notes = [truth.blemish_line()]
    without_pair = sum(item.image_id in truth.unlabelled for item in found)
    if without_pair:
        notes.append(f"{without_pair} images without annotated pair were left out")
    unknown = len(found) - len(counted) - without_pair
    if unknown:
        notes.append(f"{unknown} images that {truth.path} does not name were left out")
    silent = len(truth.annotations) - len(counted)
    if silent:
        notes.append(f"{silent} of {len(truth.annotations)} images have no predictions")
    verbs, objects = object_pairs(counted)
    if len(verbs) and not vocabulary.valid[verbs, objects].any():
        notes.append(
            f"none of the {len(verbs)} predicted pairs is an interaction of {vocabulary.name}; is"
            " this file of another vocabulary or numbering?"
        )
    return notes
