"""Loads the test set and the predictions that the results of a comparison refer to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from evaluation.analysis.comparison import Comparison, ComparisonEntry
from evaluation.ground_truth import keep_annotated_images
from evaluation.hico.matching import MatchedDetections, count_interactions, match_and_sort
from evaluation.hico.nms import NmsConfig, pairwise_nms
from evaluation.predictions import read_predictions
from evaluation.results import Results
from pipeline.annotations.load import AnnotationFile, load_annotations
from pipeline.datasets.dataset import Dataset, list_file_names, open_dataset
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


@dataclass(frozen=True, eq=False)
class ReportInputs:
    """Files behind the results; attributes are empty if a file is not where the results say.

    Attributes:
        test_annotations: of the annotated test images.
        image_files: path by image id, of the images that exist; None without dataset folder.
        training_counts, test_counts: (H,) labelled instances of every interaction; None unknown.
        predictions: of each entry whose predictions file exists.
        notes: a sentence on each missing file.
    """

    test_annotations: tuple[Annotation, ...] = ()
    image_files: dict[str, Path] | None = None
    training_counts: np.ndarray | None = None
    test_counts: np.ndarray | None = None
    predictions: tuple[EntryPredictions, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def detailed(self) -> tuple[EntryPredictions, ...]:
        """Predictions of the entries for the gallery and the confusion matrices."""
        return self.predictions[:MAX_DETAILED]


def load_report_inputs(comparison: Comparison, data: Path | None = None) -> ReportInputs:
    """Loads the dataset and the predictions that the results refer to.

    All predictions are on the same dataset folder. An entry with several results is represented by
    its first result on that folder.

    Args:
        data: dataset folder, in place of the one in the results.

    Raises:
        InputError: a file is invalid, or predictions do not belong to the dataset.
    """
    folder = data or _find_dataset_folder(comparison)
    dataset = None
    if folder is None:
        ground_truth, inputs = _load_annotations_only(comparison)
    else:
        dataset = open_dataset(folder)
        ground_truth, inputs = _load_test_part(dataset, comparison)
        counts = _count_training_labels(dataset, comparison.vocabulary)
        inputs = replace(inputs, training_counts=counts)
    if ground_truth is None:
        return inputs
    loaded, missing = [], []
    for entry in comparison.entries:
        result = _find_result(entry, folder)
        if result is None:
            missing.append(entry.title)
        else:
            loaded.append(
                _load_predictions(entry, result, ground_truth, comparison.vocabulary, dataset)
            )
    notes = list(inputs.notes)
    if not loaded:
        notes.append("The predictions files of these results were not found.")
    elif missing:
        notes.append(f"No predictions on this test set were found for {', '.join(missing)}.")
    return replace(inputs, predictions=tuple(loaded), notes=tuple(notes))


def _find_dataset_folder(comparison: Comparison) -> Path | None:
    """The first dataset folder that exists, preferably of a result with predictions."""
    results = [result for entry in comparison.entries for result in entry.results]
    results.sort(key=lambda result: result.predictions is None)
    folders = [result.dataset_path for result in results if result.dataset_path is not None]
    return next((folder for folder in folders if folder.is_dir()), None)


def _load_annotations_only(comparison: Comparison) -> tuple[AnnotationFile | None, ReportInputs]:
    """The annotation file that a result names, for results without a dataset folder."""
    folders = _dataset_paths(comparison)
    reason = f"There is no dataset at {folders[0]}" if folders else "The results name no dataset"
    notes = (f"{reason}; give its folder with --data DATASET.",)
    files = [result.annotations for entry in comparison.entries for result in entry.results]
    file = next((file for file in files if file is not None and file.is_file()), None)
    if file is None:
        return None, ReportInputs(notes=notes)
    ground_truth = load_annotations(file, comparison.vocabulary, "test")
    if len(ground_truth.annotations) != comparison.first.num_images:
        return None, ReportInputs(notes=notes)
    counts = count_interactions(ground_truth.annotations, comparison.vocabulary)
    return ground_truth, ReportInputs(ground_truth.annotations, test_counts=counts, notes=notes)


def _dataset_paths(comparison: Comparison) -> list[Path]:
    return [
        result.dataset_path.resolve()
        for entry in comparison.entries
        for result in entry.results
        if result.dataset_path is not None
    ]


def _find_result(entry: ComparisonEntry, folder: Path | None) -> Results | None:
    """The first result of an entry with predictions on a dataset folder.

    A result whose own dataset folder does not exist or is unknown is assumed to be on this one.
    """
    for result in entry.results:
        exists = result.predictions is not None and result.predictions.is_file()
        if exists and not _is_of_other_dataset(result, folder):
            return result
    return None


def _is_of_other_dataset(result: Results, folder: Path | None) -> bool:
    path = result.dataset_path
    if folder is None or path is None or not path.is_dir():
        return False
    return not folder.samefile(path)


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
    assert result.predictions is not None, "_find_result selects results with predictions"
    detections = read_predictions(result.predictions, vocabulary)
    detections = keep_annotated_images(result.predictions, detections, ground_truth)
    if dataset is not None:
        detections = dataset.detections_to_upright("test", detections)
    if result.nms is not None:
        nms = NmsConfig(**result.nms)
        detections = [pairwise_nms(item, nms) for item in detections]
    matched = match_and_sort(ground_truth.annotations, detections, vocabulary, result.setting)
    return EntryPredictions(entry, result, detections, matched)


def _load_test_part(
    dataset: Dataset, comparison: Comparison
) -> tuple[AnnotationFile | None, ReportInputs]:
    """The annotations and images of the test part, unless the results are on other images."""
    part = dataset.parts.get("test")
    if part is None or part.annotations is None or not part.annotations.is_file():
        note = f"{dataset.root.resolve()} has no annotations of its test part."
        return None, ReportInputs(notes=(note,))
    ground_truth = dataset.load("test")
    part, test = dataset.part("test"), ground_truth.annotations
    expected = comparison.first.num_images
    if len(test) != expected:
        found = f"{dataset.root.resolve()} has {len(test):,} annotated test images"
        return None, ReportInputs(notes=(f"{found}, the results are on {expected:,}.",))
    names = list_file_names(part.images) if part.images.is_dir() else set()
    image_files = {
        item.image_id: part.images / item.image_id
        for item in test
        if item.image_id in names or (names and (part.images / item.image_id).is_file())
    }
    notes = []
    if len(image_files) < len(test):
        count = f"{len(image_files):,}" if image_files else "None"
        notes.append(f"{count} of the {len(test):,} test images are in {part.images.resolve()}.")
    counts = count_interactions(test, comparison.vocabulary)
    return ground_truth, ReportInputs(test, image_files, None, counts, (), tuple(notes))


def _count_training_labels(dataset: Dataset, vocabulary: Vocabulary) -> np.ndarray | None:
    part = dataset.parts.get("train")
    if part is None or part.annotations is None or not part.annotations.is_file():
        return None
    return count_interactions(dataset.load("train").annotations, vocabulary)
