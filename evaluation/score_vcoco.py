"""Scores V-COCO detections: the official layout, a predictions file of this project's, or a run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from evaluation.ground_truth import find_ground_truth
from evaluation.pickles import is_pickle
from evaluation.predictions import find_predictions_file, predictions_name, read_predictions
from evaluation.results import (
    VcocoResults,
    build_vcoco_results,
    vcoco_only_results,
    write_vcoco_results,
)
from evaluation.tables import format_vcoco_table
from evaluation.vcoco.average_precision import VcocoScores, evaluate_vcoco
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
from pipeline.vocabulary import Vocabulary


@dataclass(frozen=True)
class VcocoScoreConfig:
    """What to score, and against what.

    Attributes:
        predictions: detections in the official layout (JSON, NPZ or a pickle), in the HOIA form, or
            a run.
        actions: official actions file; None takes that of `data`.
        instances, ids: the files that belong to it; looked for around it where not named.
        vocabulary: what the numbers of the HOIA form mean, a name or a file; without it the
            dataset's, else V-COCO's.
        strict: refuse annotations with issues.
        json: results file to write.
        official: where to write the detections in the official layout.
        overwrite: replace these files.
        data: dataset folder; looked for around the actions where not named.
    """

    predictions: Path
    actions: Path | None
    instances: Path | None = None
    ids: Path | None = None
    vocabulary: str | None = None
    strict: bool = False
    json: Path | None = None
    official: Path | None = None
    overwrite: bool = False
    data: Path | None = None


def score_vcoco_file(config: VcocoScoreConfig) -> list[str]:
    """Scores the detections and writes what is wanted.

    Returns:
        a table for people.

    Raises:
        InputError: a file is missing or wrong, or there are detections for unknown images.
    """
    for path in (config.json, config.official):
        if path is not None:
            refuse_existing(path, config.overwrite)
    source = find_ground_truth(
        config.actions,
        config.data,
        config.vocabulary,
        default_vocabulary="vcoco",
        default_dataset="v-coco",
    )
    if config.actions is None and not is_actions_file(source.annotations):
        expected = "V-COCO's official actions, like vcoco_test.json"
        raise bad_field(source.annotations, "file", expected, "annotations of another form")
    files = find_vcoco_files(
        source.annotations, config.instances or source.instances, config.ids or source.ids
    )
    reading = ParseContext(files.actions, source.vocabulary, config.strict)
    ground_truth = read_vcoco(files, reading)
    path = find_predictions_file(config.predictions)
    hoia = _is_hoia_form(path)
    detections = (
        _read_hoia_form(path, ground_truth, source.vocabulary)
        if hoia
        else read_detections(path, ground_truth.actions)
    )
    if not hoia and not len(detections):
        raise bad_field(path, "file", "a list of detections", "an empty list")
    found, outside = _select_listed(detections, ground_truth, path)
    if config.official is not None:
        write_detections(config.official, found)
    scores = evaluate_vcoco(ground_truth, found)
    if config.json is not None:
        results = vcoco_only_results(
            name=predictions_name(path),
            dataset=source.dataset,
            vocabulary=source.vocabulary.name,
            num_images=len(ground_truth.images),
            dataset_path=source.folder,
            # What the report shows of single pictures, it reads in the HOIA form.
            predictions=path if hoia and not outside else None,
            vcoco=build_vcoco_results(scores),
        )
        write_vcoco_results(config.json, results)
    return [
        *format_vcoco_table(scores, len(ground_truth.images)),
        *_notes(reading, ground_truth, found, outside),
    ]


def _notes(
    reading: ParseContext, ground_truth: VcocoGroundTruth, found: VcocoDetections, outside: int
) -> Iterator[str]:
    if issues := format_issues(reading.file, reading.issues):
        yield issues
    if unknown_keys := found.unknown_keys:
        yield (
            f"{len(unknown_keys)} keys that look like scores but are none of the annotations'"
            f" actions and roles were left out, the first being {unknown_keys[0]}"
        )
    if outside:
        yield f"{outside} detections on images outside the part were left out"
    if silent := len(ground_truth.images) - len(np.unique(found.image_ids)):
        yield f"{silent} of {len(ground_truth.images)} images have no detections"


def score_detections(
    detections: Sequence[Detections], ground_truth: VcocoGroundTruth, vocabulary: Vocabulary
) -> VcocoScores:
    """Scores detected interactions of the part's images, named by the ground truth's file names."""
    number = {image.name: image.id for image in ground_truth.images}
    ids = [number[item.image_id] for item in detections]
    return evaluate_vcoco(
        ground_truth, to_vcoco_detections(detections, ids, vocabulary, ground_truth.actions)
    )


def _read_hoia_form(
    path: Path, ground_truth: VcocoGroundTruth, vocabulary: Vocabulary
) -> VcocoDetections:
    sizes = {image.name: image.size for image in ground_truth.images}
    detections = read_predictions(path, vocabulary, sizes)
    number = {
        **ground_truth.other_image_ids,
        **{image.name: image.id for image in ground_truth.images},
    }
    unknown = [item.image_id for item in detections if item.image_id not in number]
    if unknown:
        raise _unknown_images_error(path, len(unknown), unknown[0])
    ids = [number[item.image_id] for item in detections]
    return to_vcoco_detections(detections, ids, vocabulary, ground_truth.actions)


def _is_hoia_form(path: Path) -> bool:
    """Whether a file's first entry is an image of the HOIA form; the readers find what is wrong."""
    if path.suffix.lower() == ".npz" or is_pickle(path):
        return False
    entries = iter_json(path)
    first = next(entries, None)
    return isinstance(first, dict) and "file_name" in first


def _select_listed(
    found: VcocoDetections, ground_truth: VcocoGroundTruth, path: Path
) -> tuple[VcocoDetections, int]:
    """The detections on the part's images, and how many others there are.

    Raises:
        InputError: detections on images that COCO's file does not know, or on none of the part's,
            or boxes of another form or scale.
    """
    ids = found.image_ids
    inside = np.isin(ids, [image.id for image in ground_truth.images])
    unknown = ~inside & ~np.isin(ids, list(ground_truth.other_image_ids.values()))
    if unknown.any():
        raise _unknown_images_error(path, len(np.unique(ids[unknown])), int(ids[unknown][0]))
    if len(ids) and not inside.any():
        expected = "detections on the images of the id list"
        raise bad_field(path, "image_id", expected, f"none, but {ids[0]} and others")
    kept = found.keep(np.flatnonzero(inside))
    sizes = {image.id: image.size for image in ground_truth.images}
    form = BoxFormatCheck(XYXY)
    form.add(kept.person_boxes, np.array([sizes[number] for number in kept.image_ids.tolist()]))
    form.check(path, "person_box")
    return kept, int((~inside).sum())


def _unknown_images_error(path: Path, count: int, first: str | int) -> InputError:
    expected = "images that the COCO file names"
    return bad_field(path, "image", expected, f"{count} others, the first being {first}")


VCOCO_RESULTS_FILE = "vcoco.json"


def score_run(dataset: Dataset, detections: Sequence[Detections]) -> VcocoResults | None:
    """Scores the predictions of the test part and prints the table; None for datasets without
    V-COCO's official files."""
    ground_truth = dataset.vcoco_ground_truth("test")
    if ground_truth is None:
        return None
    scores = score_detections(detections, ground_truth, dataset.vocabulary)
    print("\n".join(format_vcoco_table(scores, len(ground_truth.images))))
    return build_vcoco_results(scores)
