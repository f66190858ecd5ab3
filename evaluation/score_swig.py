"""Scores predictions by the SWIG-HOI protocol, for `eoid-eval swig`."""

from __future__ import annotations

from pathlib import Path

from evaluation.ground_truth import find_ground_truth
from evaluation.predictions import find_predictions_file, predictions_name, read_predictions
from evaluation.results import Results, write_results
from evaluation.score_hico import ScoringConfig, score_to_fields
from evaluation.swig.average_precision import describe_unlabelled
from evaluation.swig.predictions import is_published_form, read_published, write_published
from evaluation.tables import format_tables
from pipeline.annotations.load import load_annotations
from pipeline.splits import FULL, load_split
from pipeline.types import Detections
from pipeline.utils.errors import bad_field
from pipeline.utils.files import refuse_existing
from pipeline.utils.logging import get_logger
from pipeline.utils.text import count_noun

logger = get_logger(__name__)

SWIG_HOI = "swig-hoi"
# The vocabulary's split, whose unseen interactions are in no training image.
SWIG_SPLIT = "swig"


def score_swig_file(
    predictions: Path,
    annotations: Path | None = None,
    data: Path | None = None,
    vocabulary: str | None = None,
    split: str | None = None,
    details: tuple[str, ...] = (),
    strict: bool = False,
    json: Path | None = None,
    official: Path | None = None,
    overwrite: bool = False,
) -> list[str]:
    """Scores predictions, and writes the results file and the layout of the public projects.

    The arguments are the options of the command.

    Returns:
        lines to print: tables of the scores.

    Raises:
        InputError: a file is missing or invalid, the annotations have another form, or no
            predictions are on their images.
    """
    for output in (json, official):
        if output is not None:
            refuse_existing(output, overwrite)
    files = find_ground_truth(annotations, data, vocabulary, SWIG_HOI, SWIG_HOI)
    default = SWIG_SPLIT if SWIG_SPLIT in files.vocabulary.splits else FULL
    loaded_split = load_split(files.vocabulary, split or default)
    ground_truth = load_annotations(files.annotations, files.vocabulary, "test", strict)
    images = ground_truth.swig_images
    if not images:
        expected = "SWIG-HOI's annotations, like swig_test_1000.json"
        raise bad_field(files.annotations, "file", expected, "annotations of another form")
    path = find_predictions_file(predictions)
    if is_published_form(path):
        detections = read_published(path, images, files.vocabulary)
    else:
        sizes = {image.name: image.size for image in images}
        detections = read_predictions(path, files.vocabulary, sizes)
    names = {image.name for image in images}
    num_unknown = _count_unknown(path, detections, names, files.annotations)
    if official is not None:
        write_published(official, detections, images, files.vocabulary)
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
            ScoringConfig(),
            images,
        ),
    )
    if json is not None:
        write_results(json, results)
    if issues := ground_truth.format_issues():
        logger.warning(f"{issues}; but scored as they stand in the file, as in the benchmark")
    if num_unknown:
        logger.warning(
            f"{count_noun(num_unknown, 'images')} not named in {files.annotations}: all detections"
            " on them count as wrong"
        )
    if missing := len(images) - len(detections) + num_unknown:
        logger.warning(f"{missing} of {len(images)} images have no predictions")
    if unlabelled := describe_unlabelled(images, files.vocabulary):
        logger.warning(unlabelled)
    return format_tables([results], details)


def _count_unknown(
    path: Path, detections: list[Detections], names: set[str], annotations: Path
) -> int:
    """Number of predicted images that the annotations do not name.

    Raises:
        InputError: there are no predicted images, or no others.
    """
    unknown = [item.image_id for item in detections if item.image_id not in names]
    if len(unknown) == len(detections):
        found = f"{len(unknown)} others, the first being {unknown[0]}" if unknown else "none"
        raise bad_field(path, "file", f"images of {annotations}", found)
    return len(unknown)
