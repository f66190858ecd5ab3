"""HICO-DET scores of detections as results fields; the work of `eoid-eval hico`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from evaluation.ground_truth import find_ground_truth, keep_annotated_images
from evaluation.hico.average_precision import compute_scores
from evaluation.hico.matching import Setting, match_detections
from evaluation.hico.nms import NmsConfig, batched_pairwise_nms
from evaluation.predictions import (
    find_predictions_file,
    predictions_name,
    read_predictions,
    verb_object_pairs,
)
from evaluation.results import Results, build_setting_scores, results_fields, write_results
from evaluation.tables import format_tables
from pipeline.annotations.load import AnnotationFile, load_annotations
from pipeline.splits import load_split
from pipeline.types import Annotation, Detections
from pipeline.utils.files import refuse_existing
from pipeline.vocabulary import Vocabulary

SETTINGS_OF_OPTION: dict[str, tuple[Setting, ...]] = {
    "default": ("default",),
    "known-object": ("known_object",),
    "both": ("default", "known_object"),
}


@dataclass(frozen=True)
class ScoringConfig:
    """How to score.

    Attributes:
        settings: HICO-DET settings, one or both.
        nms: pairwise NMS first; None without.
    """

    settings: tuple[Setting, ...] = SETTINGS_OF_OPTION["both"]
    nms: NmsConfig | None = None


def score_to_fields(
    annotations: Sequence[Annotation],
    detections: Sequence[Detections],
    vocabulary: Vocabulary,
    unseen: tuple[int, ...],
    scoring: ScoringConfig,
) -> dict[str, Any]:
    """The fields of `Results` that scoring fills; the first setting's numbers stand at the top.

    Args:
        unseen: HOI indices of the split whose groups are wanted.

    Raises:
        InputError: detections for an image that is not annotated.
    """
    if scoring.nms is not None:
        detections = batched_pairwise_nms(detections, scoring.nms)
    matches = match_detections(annotations, detections, vocabulary)
    scores = compute_scores(matches, vocabulary, scoring.settings)
    first, *further = scoring.settings
    known_object = "known_object" in further
    return {
        "setting": first,
        "known_object": build_setting_scores(scores["known_object"], vocabulary, unseen)
        if known_object
        else None,
        "nms": None if scoring.nms is None else asdict(scoring.nms),
        "matches": matches,
        **results_fields(scores[first], vocabulary, unseen),
    }


HICO_DET = "hico-det"


@dataclass(frozen=True)
class HicoScoreConfig:
    """What to score, and how.

    Attributes:
        predictions: file, or folder of a run.
        annotations: file; None takes that of `data`.
        vocabulary, split: names or files; without vocabulary the dataset's, else HICO-DET's.
        scoring: settings and NMS.
        details: tables wanted beside the groups, of `evaluation.tables.DETAILS`.
        strict: refuse annotations with issues.
        json: results file to write.
        overwrite: replace it.
        data: dataset folder; looked for around the annotations where not named.
    """

    predictions: Path
    annotations: Path | None
    vocabulary: str | None = None
    split: str = "full"
    scoring: ScoringConfig = field(default_factory=ScoringConfig)
    details: tuple[str, ...] = ()
    strict: bool = False
    json: Path | None = None
    overwrite: bool = False
    data: Path | None = None


def score_hico_file(config: HicoScoreConfig) -> list[str]:
    """Scores the predictions and writes the results where wanted.

    Returns:
        tables for people.

    Raises:
        InputError: a file is missing or wrong, or all predictions are for other images.
    """
    if config.json is not None:
        refuse_existing(config.json, config.overwrite)
    files = find_ground_truth(
        config.annotations,
        config.data,
        config.vocabulary,
        default_vocabulary=HICO_DET,
        default_dataset=HICO_DET,
    )
    path = find_predictions_file(config.predictions)
    vocabulary = files.vocabulary
    split = load_split(vocabulary, config.split)
    ground_truth = load_annotations(
        files.annotations, vocabulary, "test", config.strict, files.instances, files.ids
    )
    sizes = {one.image_id: one.size for one in ground_truth.annotations}
    found = read_predictions(path, vocabulary, sizes)
    ground_truth.require_labels()
    detections = keep_annotated_images(path, found, ground_truth)
    results = Results(
        name=predictions_name(path),
        kind="predictions",
        dataset=files.dataset,
        split=split.name,
        num_images=len(ground_truth.annotations),
        dataset_path=files.folder,
        annotations=files.annotations,
        predictions=path,
        **score_to_fields(
            ground_truth.annotations, detections, vocabulary, split.unseen, config.scoring
        ),
    )
    if config.json is not None:
        write_results(config.json, results)
    notes = _notes(ground_truth, found, detections, vocabulary)
    return [*format_tables([results], config.details), *filter(None, notes)]


def _notes(
    ground_truth: AnnotationFile,
    found: list[Detections],
    counted: list[Detections],
    vocabulary: Vocabulary,
) -> list[str]:
    notes = [ground_truth.format_issues()]
    without_pair = sum(item.image_id in ground_truth.unlabelled for item in found)
    if without_pair:
        notes.append(f"{without_pair} images without annotated pair were left out")
    unknown = len(found) - len(counted) - without_pair
    if unknown:
        notes.append(f"{unknown} images that {ground_truth.path} does not name were left out")
    silent = len(ground_truth.annotations) - len(counted)
    if silent:
        notes.append(f"{silent} of {len(ground_truth.annotations)} images have no predictions")
    verbs, objects = verb_object_pairs(counted)
    if len(verbs) and not vocabulary.valid[verbs, objects].any():
        notes.append(
            f"none of the {len(verbs)} predicted pairs is an interaction of {vocabulary.name}; is"
            " this file of another vocabulary or numbering?"
        )
    return notes
