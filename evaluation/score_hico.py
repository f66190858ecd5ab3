"""Scores detections by the HICO-DET protocol: for `eoid-eval hico`, and as fields of `Results`."""

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
from pipeline.utils.logging import get_logger
from pipeline.vocabulary import Vocabulary

logger = get_logger(__name__)

HICO_DET = "hico-det"
# Settings by the value of the option --setting.
SETTINGS_OF_OPTION: dict[str, tuple[Setting, ...]] = {
    "default": ("default",),
    "known-object": ("known_object",),
    "both": ("default", "known_object"),
}


@dataclass(frozen=True)
class ScoringConfig:
    """Options of the HICO-DET protocol.

    Attributes:
        settings: one or both settings.
        nms: pairwise NMS before scoring; None without.
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
    """The fields of `Results` that follow from the scores.

    The main fields hold the numbers of the first setting, `known_object` those of the second.

    Args:
        unseen: HOI indices that the split holds out.

    Raises:
        InputError: there are detections on an image without annotation.
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


@dataclass(frozen=True)
class HicoScoreConfig:
    """Settings of `eoid-eval hico`.

    Attributes:
        predictions: predictions file or run folder.
        annotations: annotation file; None for that of `data`.
        vocabulary: name or file; None for that of the dataset, without one HICO-DET's.
        split: name or file.
        scoring: settings and NMS.
        details: further tables to print, of `evaluation.tables.DETAILS`.
        strict: refuse annotations with issues.
        json: results file to write; None for none.
        overwrite: replace an existing results file.
        data: dataset folder; None looks for one that contains the annotations.
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
    """Scores predictions and writes the results file.

    Returns:
        lines to print: tables of the scores, and notes on what was not scored.

    Raises:
        InputError: a file is missing or invalid, or no predictions are on the annotated images.
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
    sizes = {item.image_id: item.size for item in ground_truth.annotations}
    predicted = read_predictions(path, vocabulary, sizes)
    ground_truth.require_labels()
    detections = keep_annotated_images(path, predicted, ground_truth)
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
    _log_left_out(ground_truth, predicted, detections, vocabulary)
    return format_tables([results], config.details)


def _log_left_out(
    ground_truth: AnnotationFile,
    predicted: list[Detections],
    scored: list[Detections],
    vocabulary: Vocabulary,
) -> None:
    """Reports annotation issues, images that are not scored, and a vocabulary that does not fit."""
    if issues := ground_truth.format_issues():
        logger.warning(issues)
    without_pair = sum(item.image_id in ground_truth.unlabelled for item in predicted)
    if without_pair:
        logger.warning(f"{without_pair} images without annotated pair were left out")
    unknown = len(predicted) - len(scored) - without_pair
    if unknown:
        logger.warning(f"{unknown} images that {ground_truth.path} does not name were left out")
    if missing := len(ground_truth.annotations) - len(scored):
        logger.warning(f"{missing} of {len(ground_truth.annotations)} images have no predictions")
    verbs, objects = verb_object_pairs(scored)
    if len(verbs) and not vocabulary.valid[verbs, objects].any():
        logger.warning(
            f"none of the {len(verbs)} predicted pairs is an interaction of {vocabulary.name}; is"
            " this file of another vocabulary or numbering?"
        )
