"""What lies behind the numbers of a comparison: the test set, and what each model said about it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from evaluation.analysis.comparison import Comparison, ComparisonEntry
from evaluation.ground_truth import keep_annotated_images
from evaluation.hico.matching import MatchedDetections, count_interactions, match_and_sort
from evaluation.hico.nms import NmsConfig, batched_pairwise_nms
from evaluation.predictions import read_predictions
from evaluation.results import Results
from pipeline.annotations.load import AnnotationFile, load_annotations
from pipeline.datasets.dataset import Dataset, list_file_names, open_dataset
from pipeline.types import Annotation, Detections
from pipeline.vocabulary import Vocabulary

MAX_DETAILED = 2


@dataclass(frozen=True, eq=False)
class EntryPredictions:
    """What one entry said about the test set.

    Attributes:
        entry: who.
        result: which of its results, where it has several.
        detections: of every image, in the order of the file; after NMS where the result is.
        matched: the same, matched in the result's setting.
    """

    entry: ComparisonEntry
    result: Results
    detections: Sequence[Detections]
    matched: MatchedDetections


@dataclass(frozen=True, eq=False)
class ReportInputs:
    """What is there to look at; empty parts are not where the results say.

    Attributes:
        test_annotations: of the annotated test images.
        image_files: of those images that were found, by image id.
        training_counts, test_counts: (H,) labelled instances of every interaction.
        predictions: of each entry whose predictions are there.
        notes: what is missing, a sentence each.
    """

    test_annotations: tuple[Annotation, ...] = ()
    image_files: dict[str, Path] | None = None
    training_counts: np.ndarray | None = None
    test_counts: np.ndarray | None = None
    predictions: tuple[EntryPredictions, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def detailed(self) -> tuple[EntryPredictions, ...]:
        """The views with a closer look, at pictures and confusion; nobody would look at more."""
        return self.predictions[:MAX_DETAILED]


def load_report_inputs(comparison: Comparison, data: Path | None = None) -> ReportInputs:
    """Opens the dataset and the predictions that the results point at.

    All views are of one dataset folder; an entry with results on several (one for each seed)
    is seen through the one on that folder.

    Args:
        data: the dataset folder, where it is not where the results say.

    Raises:
        InputError: a file that is there is wrong, or does not belong to the dataset.
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
    views = tuple(
        _load_predictions(one, result, ground_truth, comparison.vocabulary, dataset)
        for one in comparison.entries
        if (result := _find_result(one, folder)) is not None
    )
    notes = list(inputs.notes)
    silent = [
        one.title for one in comparison.entries if all(view.entry is not one for view in views)
    ]
    if not views:
        notes.append("No predictions file lies beside these results.")
    elif silent:
        notes.append(f"No predictions on this test set lie beside {', '.join(silent)}.")
    return replace(inputs, predictions=views, notes=tuple(notes))


def _find_dataset_folder(comparison: Comparison) -> Path | None:
    """The first dataset folder that is there; of those with predictions where possible."""
    results = [result for one in comparison.entries for result in one.results]
    results.sort(key=lambda result: result.predictions is None)
    folders = [result.dataset_path for result in results if result.dataset_path is not None]
    return next((folder for folder in folders if folder.is_dir()), None)


def _load_annotations_only(comparison: Comparison) -> tuple[AnnotationFile | None, ReportInputs]:
    """The annotations that a result was scored against, where there is no dataset folder."""
    named = _dataset_paths(comparison)
    where = f"There is no dataset at {named[0]}" if named else "The results name no dataset"
    notes = (f"{where}; --data DATASET tells where it lies.",)
    files = [result.annotations for one in comparison.entries for result in one.results]
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
        for one in comparison.entries
        for result in one.results
        if result.dataset_path is not None
    ]


def _find_result(entry: ComparisonEntry, folder: Path | None) -> Results | None:
    """The entry's first result with predictions on a dataset; a result whose own dataset is
    gone, or that names none, may be of any."""
    for result in entry.results:
        found = result.predictions is not None and result.predictions.is_file()
        if found and not _is_of_other_dataset(result, folder):
            return result
    return None


def _is_of_other_dataset(result: Results, folder: Path | None) -> bool:
    own = result.dataset_path
    if folder is None or own is None or not own.is_dir():
        return False
    return not folder.samefile(own)


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
    assert result.predictions is not None, "picked for having some"
    found = read_predictions(result.predictions, vocabulary)
    detections = keep_annotated_images(result.predictions, found, ground_truth)
    if dataset is not None:
        detections = dataset.detections_to_upright("test", detections)
    if result.nms is not None:
        detections = batched_pairwise_nms(detections, NmsConfig(**result.nms))
    matched = match_and_sort(ground_truth.annotations, detections, vocabulary, result.setting)
    return EntryPredictions(entry, result, detections, matched)


def _load_test_part(
    dataset: Dataset, comparison: Comparison
) -> tuple[AnnotationFile | None, ReportInputs]:
    """The test annotations where they are those of the results, and what is there of them."""
    part = dataset.parts.get("test")
    if part is None or part.annotations is None or not part.annotations.is_file():
        note = f"{dataset.root.resolve()} has no annotations of its test part."
        return None, ReportInputs(notes=(note,))
    ground_truth = dataset.load("test")
    part, test = dataset.part("test"), ground_truth.annotations
    expected = comparison.first.num_images
    if len(test) != expected:
        where = f"{dataset.root.resolve()} has {len(test):,} annotated test pictures"
        return None, ReportInputs(notes=(f"{where}, the results are of {expected:,}.",))
    names = list_file_names(part.images) if part.images.is_dir() else set()
    pictures = {
        item.image_id: part.images / item.image_id
        for item in test
        if item.image_id in names or (names and (part.images / item.image_id).is_file())
    }
    notes = []
    if len(pictures) < len(test):
        count = "None" if not pictures else f"{len(pictures):,}"
        notes.append(f"{count} of the {len(test):,} test pictures lie in {part.images.resolve()}.")
    counts = count_interactions(test, comparison.vocabulary)
    return ground_truth, ReportInputs(test, pictures, None, counts, (), tuple(notes))


def _count_training_labels(dataset: Dataset, vocabulary: Vocabulary) -> np.ndarray | None:
    part = dataset.parts.get("train")
    if part is None or part.annotations is None or not part.annotations.is_file():
        return None
    return count_interactions(dataset.load("train").annotations, vocabulary)
