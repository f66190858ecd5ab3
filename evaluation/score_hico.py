"""Scores detections by the HICO-DET protocol: for `eoid-eval hico`, and as fields of `Results`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from evaluation.ground_truth import find_ground_truth, keep_annotated_images
from evaluation.hico.average_precision import HicoScores, compute_scores, evaluate
from evaluation.hico.matching import Setting, match_detections
from evaluation.hico.nms import NmsConfig, pairwise_nms
from evaluation.predictions import (
    find_predictions_file,
    predictions_name,
    read_predictions,
    verb_object_pairs,
)
from evaluation.results import Results, build_setting_scores, write_results
from evaluation.swig.average_precision import compute_swig_scores, evaluate_swig, match_swig
from evaluation.tables import format_tables
from pipeline.annotations.load import AnnotationFile, load_annotations
from pipeline.annotations.swig import SwigImage
from pipeline.splits import load_split
from pipeline.types import Annotation, Detections
from pipeline.utils.files import refuse_existing
from pipeline.utils.logging import get_logger
from pipeline.utils.text import count_noun
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
    swig_images: Sequence[SwigImage] = (),
) -> dict[str, Any]:
    """The fields of `Results` that follow from the scores.

    The main fields hold the numbers of the first setting, `known_object` those of the second.

    Args:
        unseen: HOI indices that the split holds out.
        swig_images: ground truth of SWIG-HOI's protocol, which has one setting and is used instead
            of HICO-DET's protocol if it is given.

    Raises:
        InputError: there are detections on an image without annotation.
    """
    if scoring.nms is not None:
        detections = [pairwise_nms(item, scoring.nms) for item in detections]
    if swig_images:
        settings: tuple[Setting, ...] = ("swig",)
        matches = match_swig(swig_images, detections, vocabulary)
        scores = [compute_swig_scores(matches, vocabulary)]
    else:
        settings = scoring.settings
        matches = match_detections(annotations, detections, vocabulary)
        scores = [compute_scores(matches, vocabulary, setting) for setting in settings]
    first, *further = (build_setting_scores(one, vocabulary, unseen) for one in scores)
    return {
        "vocabulary": vocabulary.name,
        "unseen": unseen,
        "setting": settings[0],
        **vars(first),
        "known_object": further[0] if further else None,
        "nms": None if scoring.nms is None else asdict(scoring.nms),
        "matches": matches,
    }


def evaluate_part(
    file: AnnotationFile,
    detections: Sequence[Detections],
    vocabulary: Vocabulary,
    setting: Setting = "default",
) -> HicoScores:
    """Scores in one setting, or by SWIG-HOI's protocol if the annotations have its format."""
    if file.swig_images:
        return evaluate_swig(file.swig_images, detections, vocabulary)
    return evaluate(file.annotations, detections, vocabulary, setting)


def score_hico_file(
    predictions: Path,
    annotations: Path | None = None,
    data: Path | None = None,
    vocabulary: str | None = None,
    split: str = "full",
    scoring: ScoringConfig | None = None,
    details: tuple[str, ...] = (),
    strict: bool = False,
    json: Path | None = None,
    overwrite: bool = False,
) -> list[str]:
    """Scores predictions and writes the results file.

    The arguments are the options of the command; `scoring` holds settings and NMS, None for both
    settings without NMS.

    Returns:
        lines to print: tables of the scores.

    Raises:
        InputError: a file is missing or invalid, or no predictions are on the annotated images.
    """
    if json is not None:
        refuse_existing(json, overwrite)
    files = find_ground_truth(annotations, data, vocabulary, HICO_DET, HICO_DET)
    path = find_predictions_file(predictions)
    loaded_split = load_split(files.vocabulary, split)
    ground_truth = load_annotations(
        files.annotations, files.vocabulary, "test", strict, files.instances, files.ids
    )
    sizes = {item.image_id: item.size for item in ground_truth.annotations}
    predicted = read_predictions(path, files.vocabulary, sizes)
    ground_truth.require_labels()
    detections = keep_annotated_images(path, predicted, ground_truth)
    results = Results(
        name=predictions_name(path),
        kind="predictions",
        dataset=files.dataset,
        split=loaded_split.name,
        num_images=len(ground_truth.annotations),
        dataset_path=files.folder,
        annotations=files.annotations,
        predictions=path,
        **score_to_fields(
            ground_truth.annotations,
            detections,
            files.vocabulary,
            loaded_split.unseen,
            scoring or ScoringConfig(),
        ),
    )
    if json is not None:
        write_results(json, results)
    _log_left_out(ground_truth, predicted, detections, files.vocabulary)
    return format_tables([results], details)


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
        logger.warning(f"left out {count_noun(without_pair, 'images without annotated pair')}")
    unknown = len(predicted) - len(scored) - without_pair
    if unknown:
        logger.warning(f"left out {count_noun(unknown, 'images')} not named in {ground_truth.path}")
    if missing := len(ground_truth.annotations) - len(scored):
        logger.warning(f"{missing} of {len(ground_truth.annotations)} images have no predictions")
    verbs, objects = verb_object_pairs(scored)
    if len(verbs) and not vocabulary.valid[verbs, objects].any():
        logger.warning(
            f"none of the {len(verbs)} predicted pairs is an interaction of {vocabulary.name}; is"
            " this file of another vocabulary or numbering?"
        )
