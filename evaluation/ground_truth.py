"""Annotations and dataset folder that predictions are scored against."""

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
    """Annotations and what is known about them.

    Attributes:
        annotations: the file.
        vocabulary: what its numbers, and those of predictions, mean.
        dataset: name of the dataset.
        folder: of the dataset, where the pictures are; None unknown.
        instances, ids: the files that belong to V-COCO's actions, where they are named.
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
    """The given ground truth, and the dataset folder around it.

    Args:
        annotations: file; None takes that of `data`'s test part.
        data: dataset folder; None looks for one around the annotations.
        vocabulary: name or file; None takes the dataset's.
        default_vocabulary, default_dataset: vocabulary and dataset name without a dataset folder.

    Raises:
        InputError: neither is named, or something is missing or wrong.
    """
    if data is not None:
        found = open_dataset(data)
        part = found.part("test")
        own = found.vocabulary if vocabulary is None else load_vocabulary(vocabulary)
        if annotations is not None:
            return GroundTruthFiles(annotations, own, found.name, data)
        if part.annotations is None:
            raise InputError(f"{data}: expected annotations of the test part, found images alone")
        return GroundTruthFiles(part.annotations, own, found.name, data, part.instances, part.ids)
    if annotations is None:
        raise InputError("expected --annotations FILE or --data DATASET, found neither")
    around = find_enclosing_dataset(annotations, "test")
    named = None if vocabulary is None else load_vocabulary(vocabulary)
    if around is not None and (named is None or named.digest() == around.vocabulary.digest()):
        return GroundTruthFiles(annotations, around.vocabulary, around.name, around.root)
    return GroundTruthFiles(
        annotations, named or load_vocabulary(default_vocabulary), default_dataset, None
    )


def keep_annotated_images(
    path: Path, detections: list[Detections], ground_truth: AnnotationFile
) -> list[Detections]:
    """The detections on images with annotated pairs; other images are not scored, as V-COCO's
    evaluation leaves out those outside its list. Some forms of an annotation file do not even name
    images without pairs, and all forms should give the same scores.

    Raises:
        InputError: there are predictions, but not for any image that the file names.
    """
    annotated = {item.image_id for item in ground_truth.annotations}
    named = annotated | ground_truth.unlabelled
    if detections and not any(item.image_id in named for item in detections):
        expected = f"images of {ground_truth.path}"
        found = f"{len(detections)} others, the first being {detections[0].image_id}"
        raise bad_field(path, "file_name", expected, found)
    return [item for item in detections if item.image_id in annotated]
