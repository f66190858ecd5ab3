"""Scores detections by the V-COCO protocol: for `eoid-eval vcoco`, and for evaluations of a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from evaluation.ground_truth import find_ground_truth
from evaluation.pickles import is_pickle
from evaluation.predictions import find_predictions_file, predictions_name, read_predictions
from evaluation.results import vcoco_only_results, write_vcoco_results
from evaluation.tables import format_vcoco_table
from evaluation.vcoco.average_precision import VcocoResults, evaluate_vcoco
from evaluation.vcoco.detections import (
    VcocoDetections,
    read_detections,
    to_vcoco_detections,
    write_detections,
)
from pipeline.annotations.base import ParseContext, format_issues
from pipeline.annotations.box_format import XYXY, BoxFormatCheck
from pipeline.annotations.vcoco import (
    VcocoGroundTruth,
    find_vcoco_files,
    is_actions_file,
    read_vcoco,
)
from pipeline.datasets.dataset import Dataset
from pipeline.types import Detections
from pipeline.utils.errors import InputError, bad_field
from pipeline.utils.files import iter_json, refuse_existing
from pipeline.utils.logging import get_logger
from pipeline.utils.text import count_noun
from pipeline.vocabulary import Vocabulary

logger = get_logger(__name__)

# Name of the file of V-COCO's scores in a run folder.
VCOCO_RESULTS_FILE = "vcoco.json"


def score_vcoco_file(
    predictions: Path,
    actions: Path | None = None,
    data: Path | None = None,
    instances: Path | None = None,
    ids: Path | None = None,
    vocabulary: str | None = None,
    strict: bool = False,
    json: Path | None = None,
    official: Path | None = None,
    overwrite: bool = False,
) -> list[str]:
    """Scores detections and writes the results file and the official layout.

    The arguments are the options of the command.

    Returns:
        lines to print: a table of the scores.

    Raises:
        InputError: a file is missing or invalid, or there are detections on unknown images.
    """
    for output in (json, official):
        if output is not None:
            refuse_existing(output, overwrite)
    source = find_ground_truth(actions, data, vocabulary, "vcoco", "v-coco")
    if actions is None and not is_actions_file(source.annotations):
        expected = "V-COCO's official actions, like vcoco_test.json"
        raise bad_field(source.annotations, "file", expected, "annotations of another form")
    files = find_vcoco_files(source.annotations, instances or source.instances, ids or source.ids)
    context = ParseContext(files.actions, source.vocabulary, strict)
    ground_truth = read_vcoco(files, context)
    path = find_predictions_file(predictions)
    hoia = _is_hoia_form(path)
    detections = (
        _read_hoia_form(path, ground_truth, source.vocabulary)
        if hoia
        else read_detections(path, ground_truth.actions)
    )
    if not hoia and not len(detections):
        raise bad_field(path, "file", "a list of detections", "an empty list")
    scored, num_outside = _select_listed(detections, ground_truth, path)
    if official is not None:
        write_detections(official, scored)
    scores = evaluate_vcoco(ground_truth, scored)
    if json is not None:
        results = vcoco_only_results(
            name=predictions_name(path),
            dataset=source.dataset,
            vocabulary=source.vocabulary.name,
            num_images=len(ground_truth.images),
            dataset_path=source.folder,
            # The report reads the detections of single images in the HOIA form only.
            predictions=path if hoia and not num_outside else None,
            vcoco=scores,
        )
        write_vcoco_results(json, results)
    _log_left_out(context, ground_truth, scored, num_outside)
    return format_vcoco_table(scores, len(ground_truth.images))


def _log_left_out(
    context: ParseContext,
    ground_truth: VcocoGroundTruth,
    scored: VcocoDetections,
    num_outside: int,
) -> None:
    """Reports annotation issues, and detections and images that are not scored."""
    if issues := format_issues(context.file, context.issues):
        logger.warning(issues)
    if unknown_keys := scored.unknown_keys:
        logger.warning(
            f"left out {count_noun(len(unknown_keys), 'keys')} with the form of scores, but"
            f" none of the annotations' actions and roles, first {unknown_keys[0]}"
        )
    if num_outside:
        logger.warning(
            f"left out {count_noun(num_outside, 'detections on images outside the part')}"
        )
    if missing := len(ground_truth.images) - len(np.unique(scored.image_ids)):
        logger.warning(f"{missing} of {len(ground_truth.images)} images have no detections")


def score_detections(
    detections: Sequence[Detections], ground_truth: VcocoGroundTruth, vocabulary: Vocabulary
) -> VcocoResults:
    """V-COCO's scores of detections whose image ids are file names of the ground truth."""
    coco_ids = {image.name: image.id for image in ground_truth.images}
    ids = [coco_ids[item.image_id] for item in detections]
    return evaluate_vcoco(
        ground_truth, to_vcoco_detections(detections, ids, vocabulary, ground_truth.actions)
    )


def _read_hoia_form(
    path: Path, ground_truth: VcocoGroundTruth, vocabulary: Vocabulary
) -> VcocoDetections:
    sizes = {image.name: image.size for image in ground_truth.images}
    detections = read_predictions(path, vocabulary, sizes)
    coco_ids = {
        **ground_truth.other_image_ids,
        **{image.name: image.id for image in ground_truth.images},
    }
    unknown = [item.image_id for item in detections if item.image_id not in coco_ids]
    if unknown:
        raise _unknown_images_error(path, len(unknown), unknown[0])
    ids = [coco_ids[item.image_id] for item in detections]
    return to_vcoco_detections(detections, ids, vocabulary, ground_truth.actions)


def _is_hoia_form(path: Path) -> bool:
    """Whether the first entry of a file has the HOIA form; the readers check the rest."""
    if path.suffix.lower() == ".npz" or is_pickle(path):
        return False
    entries = iter_json(path)
    first = next(entries, None)
    return isinstance(first, dict) and "file_name" in first


def _select_listed(
    detections: VcocoDetections, ground_truth: VcocoGroundTruth, path: Path
) -> tuple[VcocoDetections, int]:
    """The detections on the images of the part, and the number of the other detections.

    Raises:
        InputError: there are detections on images that the COCO file does not name, or none on
            the images of the part, or boxes have another form or scale.
    """
    ids = detections.image_ids
    inside = np.isin(ids, [image.id for image in ground_truth.images])
    unknown = ~inside & ~np.isin(ids, list(ground_truth.other_image_ids.values()))
    if unknown.any():
        raise _unknown_images_error(path, len(np.unique(ids[unknown])), int(ids[unknown][0]))
    if len(ids) and not inside.any():
        expected = "detections on the images of the id list"
        raise bad_field(path, "image_id", expected, f"none, but {ids[0]} and others")
    kept = detections.keep(np.flatnonzero(inside))
    sizes = {image.id: image.size for image in ground_truth.images}
    form = BoxFormatCheck(XYXY)
    form.add(kept.person_boxes, np.array([sizes[number] for number in kept.image_ids.tolist()]))
    form.check(path, "person_box")
    return kept, int((~inside).sum())


def _unknown_images_error(path: Path, count: int, first: str | int) -> InputError:
    expected = "images that the COCO file names"
    return bad_field(path, "image", expected, f"{count} others, the first being {first}")


def score_run(dataset: Dataset, detections: Sequence[Detections]) -> VcocoResults | None:
    """Scores predictions on images of the test part of a dataset and prints the table.

    The images are those of the predictions; all of them, unless a limit was given.

    Returns:
        None for a dataset without V-COCO's official files.
    """
    ground_truth = dataset.vcoco_ground_truth("test")
    if ground_truth is None:
        return None
    predicted = {item.image_id for item in detections}
    images = tuple(image for image in ground_truth.images if image.name in predicted)
    ground_truth = replace(ground_truth, images=images)
    scores = score_detections(detections, ground_truth, dataset.vocabulary)
    print("\n".join(format_vcoco_table(scores, len(ground_truth.images))))
    return scores
