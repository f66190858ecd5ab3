"""What is wrong with a dataset folder, and how its numbers compare with the published ones."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from pipeline.annotations import AnnotationFile
from pipeline.datasets import Dataset, image_names, missing_images
from pipeline.errors import InputError
from pipeline.images import read_image
from pipeline.progress import Progress
from pipeline.types import Annotation

COLUMNS = ("images", "annotated", "labels")
# By dataset and part: images, annotated images, labelled pair-verb rows; None where none is stated.
# HICO-DET: Chao et al., WACV 2018, and its annotation file; V-COCO: Gupta and Malik, 2015.
PUBLISHED: dict[str, dict[str, tuple[int | None, int | None, int | None]]] = {
    "hico-det": {"train": (38118, 37633, 117871), "test": (9658, 9546, 33405)},
    "v-coco": {"train": (None, 5400, None), "test": (None, 4946, None)},
    "coco-2014": {"train": (82783, None, 0), "test": (40504, None, 0)},
    "coco-2017": {"train": (118287, None, 0), "test": (5000, None, 0)},
}
# Decoding waits for the disk and leaves the interpreter's lock alone.
WORKERS = 8


@dataclass
class PartCheck:
    """What was found in one part.

    Attributes:
        name: "train" or "test".
        images: files in the images folder.
        annotated: annotated images.
        labels: labelled verbs on pairs.
        outside: boxes that reach over the edge of the picture as it lies there.
        blemishes: what the annotation file's reader clipped or dropped, in one line.
        problems: what must be mended, each in a few words.
    """

    name: str
    images: int = 0
    annotated: int = 0
    labels: int = 0
    outside: int = 0
    blemishes: str = ""
    problems: list[str] = field(default_factory=list)


def check_dataset(dataset: Dataset, strict: bool = False) -> list[PartCheck]:
    """Reads every annotation and every annotated picture of a dataset.

    Args:
        dataset: opened.
        strict: blemishes of annotation files are problems.
    """
    checks = [_check_part(dataset, name, strict) for name in dataset.parts]
    for kind, path in (("detector", dataset.detector), ("teacher", dataset.teacher)):
        if path is not None and not path.exists():
            checks[0].problems.append(f"{path}: no such {kind}")
    return checks


def table(dataset: Dataset, checks: list[PartCheck]) -> str:
    """The findings for people; published numbers stand behind a slash."""
    vocabulary = dataset.vocabulary
    published = PUBLISHED.get(dataset.name, {})
    rows = [["part", *COLUMNS, "boxes outside"]]
    for check in checks:
        stated = published.get(check.name, (None, None, None))
        found = (check.images, check.annotated, check.labels)
        counts = [
            f"{count}" if number is None else f"{count} / {number}"
            for count, number in zip(found, stated, strict=True)
        ]
        rows.append([check.name, *counts, f"{check.outside}"])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        f"{dataset.name}: vocabulary {vocabulary.name}, {vocabulary.num_verbs} verbs,"
        f" {vocabulary.num_objects} objects, {vocabulary.num_interactions} interactions",
        *("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows),
    ]
    if published:
        lines.append("(behind the slash: as published)")
    lines += [f"{check.name}: {check.blemishes}" for check in checks if check.blemishes]
    lines += [f"{check.name}: {problem}" for check in checks for problem in check.problems]
    return "\n".join(lines)


def summary(checks: list[PartCheck]) -> str:
    """The problems in one line, empty when there are none."""
    problems = [f"{check.name}: {problem}" for check in checks for problem in check.problems]
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return "".join(problems[:1]) + more


def _check_part(dataset: Dataset, name: str, strict: bool) -> PartCheck:
    check = PartCheck(name)
    folder = dataset.parts[name].images
    try:
        annotations = dataset.load(name, strict)
    except InputError as error:
        check.problems.append(str(error))
        return check
    check.annotated = len(annotations.annotations)
    check.labels = annotations.num_labels
    check.blemishes = annotations.blemish_line()
    try:
        check.images = len(image_names(folder))
    except InputError as error:
        check.problems.append(str(error))
        return check
    _check_images(folder, annotations, check)
    return check


def _check_images(folder: Path, annotations: AnnotationFile, check: PartCheck) -> None:
    missing = set(missing_images(folder, annotations))
    if missing:
        first = f"first {folder / min(missing)}"
        check.problems.append(f"{len(missing)} of {check.annotated} images missing, {first}")
    there = [item for item in annotations.annotations if item.image_id not in missing]
    unreadable = []
    with Progress(len(there), f"reading {check.name}", "images") as progress:
        for outside, error in _in_threads(folder, there):
            check.outside += outside
            if error:
                unreadable.append(error)
            progress.advance()
    if unreadable:
        count = f"{len(unreadable)} of {check.annotated} images unreadable"
        check.problems.append(f"{count}, first {unreadable[0]}")


def _in_threads(folder: Path, annotations: list[Annotation]) -> Iterator[tuple[int, str]]:
    pool = ThreadPoolExecutor(WORKERS)
    try:
        yield from pool.map(partial(_check_image, folder), annotations)
    finally:
        pool.shutdown(cancel_futures=True)


def _check_image(folder: Path, annotation: Annotation) -> tuple[int, str]:
    """Number of boxes outside the picture, and what is wrong with it."""
    try:
        width, height = read_image(folder / annotation.image_id).size
    except InputError as error:
        return 0, str(error)
    outside = annotation.boxes > np.array([width, height, width, height], dtype=np.float32)
    return int(outside.any(axis=1).sum()), ""
