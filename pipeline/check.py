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

# Decoding waits for the disk and leaves the interpreter's lock alone.
WORKERS = 8


@dataclass(frozen=True)
class Finding:
    """Something found in one part, `count` times.

    Attributes:
        kind: what, for people.
        count: how often.
        first: the first of them.
        wrong: it must be mended; else it is a blemish that is clipped or dropped in use.
    """

    kind: str
    count: int
    first: str
    wrong: bool


@dataclass
class PartCheck:
    """What was found in one part.

    Attributes:
        name: "train" or "test".
        images: files in the images folder.
        annotated: annotated images.
        labels: labelled verbs on pairs.
        findings: what is not as it should be.
        problems: what must be mended, each in a few words.
    """

    name: str
    images: int = 0
    annotated: int = 0
    labels: int = 0
    findings: list[Finding] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def add(self, finding: Finding) -> None:
        """Notes a finding."""
        self.findings.append(finding)
        if finding.wrong:
            self.problems.append(f"{finding.count} {finding.kind}, first {finding.first}")


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


def summary(checks: list[PartCheck]) -> str:
    """The problems in one line, empty when there are none."""
    problems = [f"{check.name}: {problem}" for check in checks for problem in check.problems]
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return "".join(problems[:1]) + more


def _check_part(dataset: Dataset, name: str, strict: bool) -> PartCheck:
    check = PartCheck(name)
    folder = dataset.parts[name].images
    try:
        check.images = len(image_names(folder))
    except InputError as error:
        check.problems.append(str(error))
    try:
        annotations = dataset.load(name, strict, survey=True)
    except InputError as error:
        # Pictures without annotations are missed by both.
        if str(error) not in check.problems:
            check.problems.append(str(error))
        return check
    check.annotated = len(annotations.annotations)
    check.labels = annotations.num_labels
    for found, wrong in ((annotations.defects, True), (annotations.blemishes, strict)):
        for kind, count in found.items():
            check.add(Finding(kind, count, annotations.examples[kind], wrong))
    if folder.is_dir():
        _check_images(folder, annotations, check)
    return check


def _check_images(folder: Path, annotations: AnnotationFile, check: PartCheck) -> None:
    missing = set(missing_images(folder, annotations))
    if missing:
        first = str(folder / min(missing))
        check.add(Finding("images missing", len(missing), first, wrong=True))
    there = [item for item in annotations.annotations if item.image_id not in missing]
    outside, first_outside, unreadable = 0, "", []
    with Progress(len(there), f"reading {check.name}", "images") as progress:
        for item, (boxes, error) in zip(there, _in_threads(folder, there), strict=True):
            outside += boxes
            if boxes and not first_outside:
                first_outside = str(folder / item.image_id)
            if error:
                unreadable.append(error)
            progress.advance()
    if unreadable:
        check.add(Finding("images unreadable", len(unreadable), unreadable[0], wrong=True))
    if outside:
        kind = "boxes outside the picture as it lies there"
        check.add(Finding(kind, outside, first_outside, wrong=False))


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
