"""Loads the test set and the predictions that the results of a comparison refer to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from evaluation.analysis.comparison import Comparison, ComparisonEntry
from evaluation.ground_truth import keep_annotated_images
from evaluation.hico.matching import MatchedDetections, count_interactions, match_and_sort
from evaluation.hico.nms import NmsConfig, pairwise_nms
from evaluation.predictions import read_predictions
from evaluation.results import Results
from evaluation.swig.average_precision import describe_unlabelled, match_swig
from evaluation.swig.predictions import is_published_form, read_published
from pipeline.annotations.load import AnnotationFile, load_annotations
from pipeline.datasets.dataset import Dataset, open_dataset
from pipeline.types import Annotation, Detections
from pipeline.vocabulary import Vocabulary

# Number of entries that the gallery and the confusion matrices show.
MAX_DETAILED = 2


@dataclass(frozen=True, eq=False)
class EntryPredictions:
    """Detections of one entry on the test set.

    Attributes:
        entry: entry of the comparison.
        result: the one of its results that the detections are of.
        detections: of every image, in the order of the file; after NMS if the result has NMS.
        matched: the same detections, matched in the setting of the result.
    """

    entry: ComparisonEntry
    result: Results
    detections: Sequence[Detections]
    matched: MatchedDetections


@dataclass(eq=False)
class ReportInputs:
    """Files behind the results; attributes are empty if a file is not where the results say.

    Attributes:
        test_annotations: of the annotated test images.
        image_files: path by image id, of the images that exist.
        training_counts, test_counts: (H,) labelled instances of every interaction; None unknown.
        predictions: of each entry whose predictions file exists.
        notes: a sentence on each missing file.
    """

    test_annotations: tuple[Annotation, ...] = ()
    image_files: dict[str, Path] = field(default_factory=dict)
    training_counts: np.ndarray | None = None
    test_counts: np.ndarray | None = None
    predictions: list[EntryPredictions] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def detailed(self) -> list[EntryPredictions]:
        """Predictions of the entries for the gallery and the confusion matrices."""
        return self.predictions[:MAX_DETAILED]


def find_dataset(results: Sequence[Results], data: Path | None = None) -> Dataset | None:
    """The first dataset folder of the results that exists, preferably of one with predictions.

    Args:
        data: dataset folder, in place of the ones in the results.

    Raises:
        InputError: the folder is no dataset.
    """
    by_predictions = sorted(results, key=lambda result: result.predictions is None)
    folders = [data] if data else [result.dataset_path for result in by_predictions]
    folder = next((path for path in folders if path and (data or path.is_dir())), None)
    return None if folder is None else open_dataset(folder)


def load_report_inputs(comparison: Comparison, dataset: Dataset | None) -> ReportInputs:
    """Loads the dataset and the predictions that the results refer to.

    All predictions are on the same dataset folder. An entry with several results is represented by
    its first result on that folder.

    Args:
        dataset: see `find_dataset`.

    Raises:
        InputError: a file is invalid, or predictions do not belong to the dataset.
    """
    inputs = ReportInputs()
    results = [result for entry in comparison.entries for result in entry.results]
    ground_truth = None
    if dataset is None:
        folders = [result.dataset_path for result in results if result.dataset_path is not None]
        reason = "The results name no dataset"
        if folders:
            reason = f"There is no dataset at {folders[0].resolve()}"
        inputs.notes.append(f"{reason}; give its folder with --data DATASET.")
        # Results without a dataset folder may name the annotation file.
        files = [result.annotations for result in results if result.annotations is not None]
        if file := next((file for file in files if file.is_file()), None):
            ground_truth = load_annotations(file, comparison.vocabulary, "test")
    else:
        if _has_annotations(dataset, "train"):
            train = dataset.load("train").annotations
            inputs.training_counts = count_interactions(train, comparison.vocabulary)
        if _has_annotations(dataset, "test"):
            ground_truth = dataset.load("test").limited(comparison.first.limit)
        else:
            root = dataset.root.resolve()
            inputs.notes.append(f"{root} has no annotations of its test part.")
    if ground_truth is None:
        return inputs
    num_images, expected = len(ground_truth.annotations), comparison.first.num_images
    if num_images != expected:
        inputs.notes.append(
            f"{ground_truth.path} has {num_images:,} annotated test images, the results are on"
            f" {expected:,}."
        )
        return inputs
    inputs.test_annotations = ground_truth.annotations
    inputs.test_counts = count_interactions(ground_truth.annotations, comparison.vocabulary)
    if dataset is not None:
        images = dataset.part("test").images
        inputs.image_files = {
            item.image_id: file
            for item in ground_truth.annotations
            if (file := images / item.image_id).is_file()
        }
        if (found := len(inputs.image_files)) < expected:
            count = f"{found or 'None'} of the {expected:,} test images are in"
            inputs.notes.append(f"{count} {images.resolve()}.")
    if comparison.first.setting == "swig" and (
        unlabelled := describe_unlabelled(ground_truth.swig_images, comparison.vocabulary)
    ):
        inputs.notes.append(f"{unlabelled}.")
    missing = []
    for entry in comparison.entries:
        # Results of other images than the first one's are only in the tables.
        same_images = [each for each in entry.results if each.limit == comparison.first.limit]
        result = next((each for each in same_images if _has_predictions(each, dataset)), None)
        if result is None:
            missing.append(entry.title)
            continue
        inputs.predictions.append(
            _load_predictions(entry, result, ground_truth, comparison.vocabulary, dataset)
        )
    if not inputs.predictions:
        inputs.notes.append("The predictions files of these results were not found.")
    elif missing:
        names = ", ".join(missing)
        inputs.notes.append(f"No predictions on this test set were found for {names}.")
    return inputs


def _has_annotations(dataset: Dataset, name: str) -> bool:
    part = dataset.parts.get(name)
    return part is not None and part.annotations is not None and part.annotations.is_file()


def _has_predictions(result: Results, dataset: Dataset | None) -> bool:
    """Whether the predictions file of a result exists and is not of another dataset folder.

    A result whose own dataset folder does not exist or is unknown is assumed to be on this one.
    """
    if result.predictions is None or not result.predictions.is_file():
        return False
    path = result.dataset_path
    return dataset is None or path is None or not path.is_dir() or dataset.root.samefile(path)


def _load_predictions(
    entry: ComparisonEntry,
    result: Results,
    ground_truth: AnnotationFile,
    vocabulary: Vocabulary,
    dataset: Dataset | None,
) -> EntryPredictions:
    if result.matches is not None:
        matched = result.matches.matched_detections(result.setting)
        return EntryPredictions(entry, result, result.matches.detections, matched)
    assert result.predictions is not None, "`_has_predictions` selects results with predictions"
    if result.setting == "swig" and is_published_form(result.predictions):
        detections = read_published(result.predictions, ground_truth.swig_images, vocabulary)
    else:
        detections = read_predictions(result.predictions, vocabulary)
    detections = keep_annotated_images(result.predictions, detections, ground_truth)
    if dataset is not None:
        detections = dataset.detections_to_upright("test", detections)
    if result.nms is not None:
        nms = NmsConfig(**result.nms)
        detections = [pairwise_nms(item, nms) for item in detections]
    if result.setting == "swig":
        matched = match_swig(ground_truth.swig_images, detections, vocabulary).matched
    else:
        matched = match_and_sort(ground_truth.annotations, detections, vocabulary, result.setting)
    return EntryPredictions(entry, result, detections, matched)
