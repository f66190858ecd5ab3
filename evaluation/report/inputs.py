"""What lies behind the numbers of a comparison: the test set, and what each model said about it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from evaluation.analysis.comparison import Comparison, Contestant
from evaluation.analysis.matched import Judged, count_interactions, judge
from evaluation.ground_truth import of_annotated_images
from evaluation.hico.nms import NmsConfig, suppress_pairs
from evaluation.predictions import read_predictions
from evaluation.results import Results
from pipeline.annotations.load import AnnotationFile, load_annotations
from pipeline.datasets.dataset import Dataset, image_names, open_dataset
from pipeline.types import Annotation, Detections
from pipeline.vocabulary import Vocabulary

MAX_SHOWN = 2


@dataclass(frozen=True, eq=False)
class View:
    """What one contestant said about the test set.

    Attributes:
        contestant: who.
        result: which of its results, where it has several.
        detections: of every image, in the order of the file; after NMS where the result is.
        judged: the same, judged in the result's setting.
    """

    contestant: Contestant
    result: Results
    detections: Sequence[Detections]
    judged: Judged


@dataclass(frozen=True, eq=False)
class Evidence:
    """What is there to look at; empty parts are not where the results say.

    Attributes:
        test: annotated test images.
        pictures: the files of those that are there, by image id.
        training_counts, test_counts: (H,) labelled instances of every interaction.
        views: of each contestant whose predictions are there.
        notes: what is missing, a sentence each.
    """

    test: tuple[Annotation, ...] = ()
    pictures: dict[str, Path] | None = None
    training_counts: np.ndarray | None = None
    test_counts: np.ndarray | None = None
    views: tuple[View, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def shown(self) -> tuple[View, ...]:
        """The views with a closer look, at pictures and confusion; nobody would look at more."""
        return self.views[:MAX_SHOWN]


def gather_evidence(comparison: Comparison, data: Path | None = None) -> Evidence:
    """Opens the dataset and the predictions that the results point at.

    All views are of one dataset folder; a contestant with results on several (one for each seed)
    is seen through the one on that folder.

    Args:
        data: the dataset folder, where it is not where the results say.

    Raises:
        InputError: a file that is there is wrong, or does not belong to the dataset.
    """
    folder = data or _folder(comparison)
    dataset = None
    if folder is None:
        truth, evidence = _annotations_alone(comparison)
    else:
        dataset = open_dataset(folder)
        truth, evidence = _test_part(dataset, comparison)
        counts = _training_counts(dataset, comparison.vocabulary)
        evidence = replace(evidence, training_counts=counts)
    if truth is None:
        return evidence
    views = tuple(
        _view(one, result, truth, comparison.vocabulary, dataset)
        for one in comparison.contestants
        if (result := _result_on(one, folder)) is not None
    )
    notes = list(evidence.notes)
    silent = [
        one.title
        for one in comparison.contestants
        if all(view.contestant is not one for view in views)
    ]
    if not views:
        notes.append("No predictions file lies beside these results.")
    elif silent:
        notes.append(f"No predictions on this test set lie beside {', '.join(silent)}.")
    return replace(evidence, views=views, notes=tuple(notes))


def _folder(comparison: Comparison) -> Path | None:
    """The first dataset folder that is there; of those with predictions where possible."""
    results = [result for one in comparison.contestants for result in one.results]
    results.sort(key=lambda result: result.predictions is None)
    folders = [result.dataset_path for result in results if result.dataset_path is not None]
    return next((folder for folder in folders if folder.is_dir()), None)


def _annotations_alone(comparison: Comparison) -> tuple[AnnotationFile | None, Evidence]:
    """The annotations that a result was scored against, where there is no dataset folder."""
    named = _named_folders(comparison)
    where = f"There is no dataset at {named[0]}" if named else "The results name no dataset"
    notes = (f"{where}; --data DATASET tells where it lies.",)
    files = [result.annotations for one in comparison.contestants for result in one.results]
    file = next((file for file in files if file is not None and file.is_file()), None)
    if file is None:
        return None, Evidence(notes=notes)
    truth = load_annotations(file, comparison.vocabulary, "test")
    if len(truth.annotations) != comparison.first.num_images:
        return None, Evidence(notes=notes)
    counts = count_interactions(truth.annotations, comparison.vocabulary)
    return truth, Evidence(truth.annotations, test_counts=counts, notes=notes)


def _named_folders(comparison: Comparison) -> list[Path]:
    return [
        result.dataset_path.resolve()
        for one in comparison.contestants
        for result in one.results
        if result.dataset_path is not None
    ]


def _result_on(contestant: Contestant, folder: Path | None) -> Results | None:
    """The contestant's first result with predictions on a dataset; a result whose own dataset is
    gone, or that names none, may be of any."""
    for result in contestant.results:
        found = result.predictions is not None and result.predictions.is_file()
        if found and not _elsewhere(result, folder):
            return result
    return None


def _elsewhere(result: Results, folder: Path | None) -> bool:
    own = result.dataset_path
    if folder is None or own is None or not own.is_dir():
        return False
    return not folder.samefile(own)


def _view(
    contestant: Contestant,
    result: Results,
    truth: AnnotationFile,
    vocabulary: Vocabulary,
    dataset: Dataset | None,
) -> View:
    if result.matches is not None:
        judged = result.matches.judged(result.setting)
        return View(contestant, result, result.matches.detections, judged)
    assert result.predictions is not None, "picked for having some"
    found = read_predictions(result.predictions, vocabulary)
    detections = of_annotated_images(result.predictions, found, truth)
    if dataset is not None:
        detections = dataset.upright_pixels("test", detections)
    if result.nms is not None:
        detections = suppress_pairs(detections, NmsConfig(**result.nms))
    judged = judge(truth.annotations, detections, vocabulary, result.setting)
    return View(contestant, result, detections, judged)


def _test_part(dataset: Dataset, comparison: Comparison) -> tuple[AnnotationFile | None, Evidence]:
    """The test annotations where they are those of the results, and what is there of them."""
    part = dataset.parts.get("test")
    if part is None or part.annotations is None or not part.annotations.is_file():
        note = f"{dataset.root.resolve()} has no annotations of its test part."
        return None, Evidence(notes=(note,))
    truth = dataset.load("test")
    part, test = dataset.part("test"), truth.annotations
    expected = comparison.first.num_images
    if len(test) != expected:
        where = f"{dataset.root.resolve()} has {len(test):,} annotated test pictures"
        return None, Evidence(notes=(f"{where}, the results are of {expected:,}.",))
    names = image_names(part.images) if part.images.is_dir() else set()
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
    return truth, Evidence(test, pictures, None, counts, (), tuple(notes))


def _training_counts(dataset: Dataset, vocabulary: Vocabulary) -> np.ndarray | None:
    part = dataset.parts.get("train")
    if part is None or part.annotations is None or not part.annotations.is_file():
        return None
    return count_interactions(dataset.load("train").annotations, vocabulary)
