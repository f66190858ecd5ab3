"""Finds the annotations that predictions are scored against, and their dataset folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pipeline.annotations.load import AnnotationFile
from pipeline.datasets.dataset import find_enclosing_dataset, open_dataset
from pipeline.types import Detections
from pipeline.utils.errors import InputError, bad_field
from pipeline.vocabulary import Vocabulary, load_vocabulary


@dataclass(frozen=True, eq=False)
class GroundTruthFiles:
    """The files of a test set's ground truth.

    Attributes:
        annotations: annotation file.
        vocabulary: of the numbers in the annotations and in the predictions.
        dataset: name of the dataset.
        folder: dataset folder, which contains the images; None unknown.
        instances, ids: COCO instances and id list that V-COCO's actions file refers to; None if
            the dataset does not name them.
    """

    annotations: Path
    vocabulary: Vocabulary
    dataset: str
    folder: Path | None
    instances: Path | None = None
    ids: Path | None = None


def find_ground_truth(
    annotations: Path | None,
    data: Path | None,
    vocabulary: str | None,
    default_vocabulary: str,
    default_dataset: str,
) -> GroundTruthFiles:
    """The ground truth of given annotations or of a dataset folder.

    Args:
        annotations: annotation file; None for that of the test part of `data`.
        data: dataset folder; None looks for one that contains the annotations.
        vocabulary: name or file; None for that of the dataset.
        default_vocabulary, default_dataset: vocabulary and dataset name without a dataset folder.

    Raises:
        InputError: both `annotations` and `data` are None, or a file is missing or invalid.
    """
    given = None if vocabulary is None else load_vocabulary(vocabulary)
    if data is not None:
        dataset = open_dataset(data)
    elif annotations is not None:
        enclosing = find_enclosing_dataset(annotations, "test")
        if enclosing is None or (given and given.digest() != enclosing.vocabulary.digest()):
            chosen = given or load_vocabulary(default_vocabulary)
            return GroundTruthFiles(annotations, chosen, default_dataset, None)
        dataset = enclosing
    else:
        raise InputError("expected --annotations FILE or --data DATASET, found neither")
    chosen = given or dataset.vocabulary
    if annotations is not None:
        return GroundTruthFiles(annotations, chosen, dataset.name, dataset.root)
    part = dataset.part("test")
    if part.annotations is None:
        raise InputError(f"{data}: expected annotations of the test part, found images alone")
    files = part.annotations, chosen, dataset.name, dataset.root, part.instances, part.ids
    return GroundTruthFiles(*files)


def keep_annotated_images(
    path: Path, detections: list[Detections], ground_truth: AnnotationFile
) -> list[Detections]:
    """The detections on images with annotated pairs.

    Images without pairs are not scored, because some forms of annotation file do not name them and
    all forms should give the same scores. Images outside the annotations are not scored, as in
    V-COCO's evaluation.

    Args:
        path: predictions file, for an error message.

    Raises:
        InputError: there are detections, but on no image that the annotation file names.
    """
    annotated = {item.image_id for item in ground_truth.annotations}
    listed = annotated | ground_truth.unlabelled
    if detections and not any(item.image_id in listed for item in detections):
        expected = f"images of {ground_truth.path}"
        found = f"{len(detections)} others, the first being {detections[0].image_id}"
        raise bad_field(path, "file_name", expected, found)
    return [item for item in detections if item.image_id in annotated]
