"""Class names of detectors, and their mapping to the objects of a vocabulary."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from pathlib import Path

import numpy as np

from pipeline.datasets.dataset import Dataset
from pipeline.utils.errors import InputError, bad_field
from pipeline.utils.files import read_text
from pipeline.vocabulary import Vocabulary, find_names, load_vocabulary, normalise_name

# In place of a list: the objects that the dataset's annotations name.
ANNOTATED_OBJECTS = "annotated"
# Names of COCO's 80 objects in two orders: that of COCO's ids, and HICO-DET's alphabetical one.
COCO80, HICO80 = "coco80", "hico80"
BACKGROUND = "background"
# Names of numbers that mean no object: the background, and unused ones of COCO's ids.
NO_OBJECT = (BACKGROUND, "n/a", "")
# Spellings of COCO's objects in PASCAL VOC and darknet, which also stand in the configurations of
# RT-DETR and D-FINE.
OTHER_SPELLINGS = {
    "aeroplane": "airplane",
    "cellphone": "cell phone",
    "diningtable": "dining table",
    "hair dryer": "hair drier",
    "motorbike": "motorcycle",
    "pottedplant": "potted plant",
    "sofa": "couch",
    "tvmonitor": "tv",
}


def load_class_names(source: str) -> tuple[str, ...]:
    """Names of a detector's classes in their order, without the background.

    Args:
        source: "coco80", "hico80", or a file with one name per line, whose first line may be the
            background.

    Raises:
        InputError: the source is none of these, or a line is empty.
    """
    coco = load_vocabulary("hico-det")
    if source == COCO80:
        return tuple(name for _, name in sorted(zip(coco.category_ids, coco.objects, strict=True)))
    if source == HICO80:
        return tuple(sorted(coco.objects))
    if not Path(source).is_file():
        expected = f"{COCO80}, {HICO80} or a file with one name per line"
        raise InputError(f"--detector-classes: expected {expected}, found {source}")
    names = [line.strip() for line in read_text(source).rstrip().splitlines()]
    if "" in names:
        where = f"line {names.index('') + 1}"
        raise bad_field(source, where, "the name of a class", "an empty line")
    is_background = bool(names) and _plain_name(names[0]) == BACKGROUND
    return tuple(names[is_background:])


def annotated_object_names(dataset: Dataset, part: str, strict: bool) -> tuple[str, ...]:
    """Names of the objects with an annotated box in a dataset part, in the vocabulary's order.

    Raises:
        InputError: the annotation file is missing or wrong.
    """
    annotations = dataset.load(part, strict).annotations
    labels = set(chain.from_iterable(each.labels.tolist() for each in annotations))
    return tuple(dataset.vocabulary.objects[label] for label in sorted(labels))


def is_object_name(name: str) -> bool:
    """Whether a class name means an object at all."""
    return _plain_name(name) not in NO_OBJECT


def _plain_name(name: str) -> str:
    # The background is `__background__` in torchvision's lists and `background` in others.
    return normalise_name(name).strip("_ ")


def labels_from_names(names: Sequence[str], vocabulary: Vocabulary) -> np.ndarray:
    """(N,) int64: the vocabulary's object for each class name, -1 for names that it lacks.

    Names may differ in case and underscores, but the same name comes first: SWIG-HOI has the
    objects "Crown" and "crown".
    """
    return np.array(find_names(names, vocabulary.objects), dtype=np.int64)


def match_class_names(
    names: Sequence[str], vocabulary: Vocabulary
) -> tuple[np.ndarray, dict[str, str]]:
    """Like `labels_from_names`, also with the names in `OTHER_SPELLINGS`.

    Returns:
        (N,) int64 objects; and the vocabulary's objects by the names that are spelled differently.
    """
    labels, spellings = labels_from_names(names, vocabulary), {}
    for row in np.flatnonzero(labels < 0).tolist():
        spelling = OTHER_SPELLINGS.get(normalise_name(names[row]), "")
        (label,) = labels_from_names([spelling], vocabulary).tolist()
        if label >= 0 and label not in labels:
            labels[row], spellings[names[row]] = label, vocabulary.objects[label]
    return labels, spellings


def labels_from_ids(num_classes: int, vocabulary: Vocabulary) -> np.ndarray:
    """(num_classes,) int64: the vocabulary's object for each category id, -1 for unused ids."""
    labels = np.full(num_classes, -1, dtype=np.int64)
    labels[list(vocabulary.category_ids)] = np.arange(vocabulary.num_objects)
    return labels


def has_coco_objects(vocabulary: Vocabulary) -> bool:
    """Whether the vocabulary's objects are COCO's 80."""
    return set(map(normalise_name, vocabulary.objects)) == set(
        map(normalise_name, load_class_names(COCO80))
    )
