"""Scores a predictions file, ours or another project's, or that of a run."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from evaluation.details import tables
from evaluation.numbering import object_pairs
from evaluation.predictions import predictions_name, predictions_path, read_predictions
from evaluation.results import Results, write_results
from evaluation.scoring import Scoring, scored_fields
from evaluation.truth_files import find_truth
from pipeline.annotations import AnnotationFile, load_annotations
from pipeline.errors import bad_field
from pipeline.files import refuse_existing
from pipeline.splits import load_split
from pipeline.types import Detections
from pipeline.vocabulary import Vocabulary

HICO = "hico-det"


@dataclass(frozen=True)
class ScoreConfig:
    """What to score, and how.

    Attributes:
        predictions: file, or folder of a run.
        annotations: file; None takes that of `data`.
        vocabulary, split: names or files; without vocabulary the dataset's, else HICO-DET's.
        scoring: settings and NMS.
        details: tables wanted beside the groups, of `evaluation.details.DETAILS`.
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


def of_annotated_images(
    path: Path, detections: list[Detections], truth: AnnotationFile
) -> list[Detections]:
    """The detections on images with annotated pairs; other images are not scored, as V-COCO's
    evaluation leaves out those outside its list. Some forms of an annotation file do not even name
    images without pairs, and all forms should give the same scores.

    Raises:
        InputError: there are predictions, but not for any image that the file names.
    """
    annotated = {item.image_id for item in truth.annotations}
    named = annotated | truth.unlabelled
    if detections and not any(item.image_id in named for item in detections):
        expected = f"images of {truth.path}"
        found = f"{len(detections)} others, the first being {detections[0].image_id}"
        raise bad_field(path, "file_name", expected, found)
    return [item for item in detections if item.image_id in annotated]


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
