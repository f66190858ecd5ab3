"""What is wrong with a dataset folder, and how its numbers compare with the published ones."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from pipeline.annotations.load import AnnotationFile
from pipeline.datasets.dataset import Dataset, image_names, missing_images
from pipeline.datasets.image_sizes import compare_sizes
from pipeline.utils.errors import InputError
from pipeline.vocabulary import Vocabulary

# What is found of pictures and labels, as people read it.
OTHER_ORIENTATION = "images whose declared size is that of the other orientation"
OTHER_SIZE = "images of another size than declared"
LEFT_OVER = "parts whose EXIF tags are left over from another orientation"
TURNED = "images turned by their EXIF tag, with boxes of an unknown orientation"


@dataclass(frozen=True)
class Finding:
    """Something found in one part, `count` times.

    Attributes:
        kind: what, for people.
        count: how often.
        first: the first of them.
        wrong: it must be mended; else it is a blemish that is clipped or dropped in use.
        each: all of them, where each is of interest.
    """

    kind: str
    count: int
    first: str
    wrong: bool
    each: tuple[str, ...] = ()


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
    if not annotations.boxes_only and not annotations.defects:
        try:
            annotations.require_labels()
        except InputError as error:
            check.problems.append(str(error))
    if folder.is_dir():
        _check_images(dataset, annotations, check, strict)
    return check


def _check_images(
    dataset: Dataset, annotations: AnnotationFile, check: PartCheck, strict: bool
) -> None:
    folder = dataset.parts[check.name].images
    missing = set(missing_images(folder, annotations))
    if missing:
        first = str(folder / min(missing))
        check.add(Finding("images missing", len(missing), first, wrong=True))
    there = [item for item in annotations.annotations if item.image_id not in missing]
    found = compare_sizes(dataset, replace(annotations, annotations=tuple(there)), decode=True)
    if found.unreadable:
        first = next(iter(found.unreadable.values()))
        check.add(Finding("images unreadable", len(found.unreadable), first, wrong=True))
    for kind, sizes, problem in (
        (OTHER_ORIENTATION, found.otherwise, found.wrong_orientation(strict)),
        (OTHER_SIZE, found.different, found.wrong_size(strict)),
    ):
        if sizes:
            each = tuple(f"{folder / name}: {told}" for name, told in sizes.items())
            check.add(Finding(kind, len(sizes), each[0], wrong=False, each=each))
        if problem:
            check.problems.append(problem)
    if problem := found.wrong_scale():
        check.problems.append(problem)
    if found.unsure and found.is_assumed:
        check.add(Finding(TURNED, len(found.unsure), " ".join(found.lines()), wrong=False))
    if found.left_over:
        check.add(Finding(LEFT_OVER, 1, found.left_over, wrong=False))
    outside = {
        item.image_id: int((item.boxes > np.tile(found.sizes[item.image_id], 2)).any(axis=1).sum())
        for item in there
        if item.image_id in found.sizes
    }
    if total := sum(outside.values()):
        first = str(folder / next(name for name, count in outside.items() if count))
        kind = "boxes outside the picture as it lies there"
        check.add(Finding(kind, total, first, wrong=False))


COLUMNS = ("images", "annotated", "labels")
# By dataset and part: images, annotated images, labelled pair-verb rows; None where none is stated.
# HICO-DET: Chao et al., WACV 2018, and its annotation file; V-COCO: Gupta and Malik, 2015, which
# takes its images from COCO's train2014 and val2014; COCO: its 2014 and 2017 releases.
PUBLISHED: dict[str, dict[str, tuple[int | None, int | None, int | None]]] = {
    "hico-det": {"train": (38118, 37633, 117871), "test": (9658, 9546, 33405)},
    "v-coco": {"train": (None, 5400, None), "test": (None, 4946, None)},
    "coco-2014": {"train": (82783, None, 0), "test": (40504, None, 0)},
    "coco-2017": {"train": (118287, None, 0), "test": (5000, None, 0)},
}


def table(dataset: Dataset, checks: list[PartCheck]) -> str:
    """Counts of every part, published numbers behind a slash; then how often each kind of finding
    was met, and the first of each."""
    vocabulary = dataset.vocabulary
    published = PUBLISHED.get(dataset.name, {})
    lines = [
        f"{dataset.name}: vocabulary {vocabulary.name}, {vocabulary.num_verbs} verbs,"
        f" {vocabulary.num_objects} objects, {vocabulary.num_interactions} interactions",
        *_aligned([["part", *COLUMNS], *(_counts(check, published) for check in checks)]),
    ]
    if published:
        lines.append("(behind the slash: as published)")
    return "\n".join([*lines, *_alike(vocabulary), *_findings(checks), *_details(checks)])


def _alike(vocabulary: Vocabulary) -> list[str]:
    """Verbs that share their form in sentences, and an object."""
    by_form: dict[str, list[int]] = {}
    for verb, ing in enumerate(vocabulary.verb_ings):
        by_form.setdefault(" ".join(ing.replace("_", " ").casefold().split()), []).append(verb)
    return [
        f'verbs of one form in sentences, "{form}", which a teacher cannot tell apart: '
        + ", ".join(vocabulary.verbs[verb] for verb in verbs)
        for form, verbs in by_form.items()
        if (vocabulary.valid[verbs].sum(axis=0) > 1).any()
    ]


def _counts(
    check: PartCheck, published: dict[str, tuple[int | None, int | None, int | None]]
) -> list[str]:
    stated = published.get(check.name, (None, None, None))
    found = (check.images, check.annotated, check.labels)
    counts = [
        f"{count}" if number is None else f"{count} / {number}"
        for count, number in zip(found, stated, strict=True)
    ]
    return [check.name, *counts]


def _findings(checks: list[PartCheck]) -> list[str]:
    """A row for each kind of finding, a column for each part."""
    wrong = {finding.kind: finding.wrong for check in checks for finding in check.findings}
    if not wrong:
        return []
    rows = [["found", *(check.name for check in checks), ""]]
    for kind, must in wrong.items():
        counts = [
            str(sum(finding.count for finding in check.findings if finding.kind == kind))
            for check in checks
        ]
        rows.append([kind, *counts, "wrong" if must else ""])
    return ["", *_aligned(rows)]


def _details(checks: list[PartCheck]) -> list[str]:
    """The first of each kind of finding, and every problem."""
    lines = []
    for check in checks:
        for finding in check.findings:
            first = ":" if finding.each else f", first {finding.first}"
            lines.append(f"{check.name}: {finding.count} {finding.kind}{first}")
            lines += [f"  {one}" for one in finding.each]
    problems = [f"{check.name}: {problem}" for check in checks for problem in check.problems]
    lines += [line for line in problems if line not in lines]
    return ["", *lines] if lines else []


def _aligned(rows: list[list[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
