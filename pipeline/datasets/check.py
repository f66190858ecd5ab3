"""What is wrong with a dataset folder, and how its numbers compare with the published ones."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from pipeline.annotations.load import AnnotationFile
from pipeline.datasets.dataset import Dataset, list_file_names, missing_images
from pipeline.datasets.size_check import check_image_sizes
from pipeline.utils.errors import InputError
from pipeline.vocabulary import Vocabulary

# What is found of pictures and labels, as people read it.
ORIENTATION_MISMATCH = "images whose declared size is that of the other orientation"
SIZE_MISMATCH = "images of another size than declared"
STALE_EXIF = "parts whose EXIF tags are left over from another orientation"
ORIENTATION_UNKNOWN = "images turned by their EXIF tag, with boxes of an unknown orientation"


@dataclass(frozen=True)
class DatasetIssue:
    """Something found in one part, `count` times.

    Attributes:
        kind: what, for people.
        count: how often.
        first: the first of them.
        is_error: it must be mended; else it is an issue that is clipped or dropped in use.
        examples: all of them, where each is of interest.
    """

    kind: str
    count: int
    first: str
    is_error: bool
    examples: tuple[str, ...] = ()


@dataclass
class PartReport:
    """What was found in one part.

    Attributes:
        name: "train" or "test".
        images: files in the images folder.
        annotated: annotated images.
        labels: labelled verbs on pairs.
        issues: what is not as it should be.
        problems: what must be mended, each in a few words.
    """

    name: str
    images: int = 0
    annotated: int = 0
    labels: int = 0
    issues: list[DatasetIssue] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def add(self, issue: DatasetIssue) -> None:
        """Notes an issue."""
        self.issues.append(issue)
        if issue.is_error:
            self.problems.append(f"{issue.count} {issue.kind}, first {issue.first}")


def check_dataset(dataset: Dataset, strict: bool = False) -> list[PartReport]:
    """Reads every annotation and every annotated picture of a dataset.

    Args:
        dataset: opened.
        strict: annotation issues are problems.
    """
    checks = [_check_part(dataset, name, strict) for name in dataset.parts]
    for kind, path in (("detector", dataset.detector), ("teacher", dataset.teacher)):
        if path is not None and not path.exists():
            checks[0].problems.append(f"{path}: no such {kind}")
    return checks


def summarise_problems(checks: list[PartReport]) -> str:
    """The problems in one line, empty when there are none."""
    problems = [f"{check.name}: {problem}" for check in checks for problem in check.problems]
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return "".join(problems[:1]) + more


def _check_part(dataset: Dataset, name: str, strict: bool) -> PartReport:
    check = PartReport(name)
    folder = dataset.parts[name].images
    try:
        check.images = len(list_file_names(folder))
    except InputError as error:
        check.problems.append(str(error))
    try:
        annotations = dataset.load(name, strict, lenient=True)
    except InputError as error:
        # Pictures without annotations are missed by both.
        if str(error) not in check.problems:
            check.problems.append(str(error))
        return check
    check.annotated = len(annotations.annotations)
    check.labels = annotations.num_labels
    for found, wrong in ((annotations.entry_errors, True), (annotations.issues, strict)):
        for kind, count in found.items():
            check.add(DatasetIssue(kind, count, annotations.examples[kind], wrong))
    if not annotations.boxes_only and not annotations.entry_errors:
        try:
            annotations.require_labels()
        except InputError as error:
            check.problems.append(str(error))
    if folder.is_dir():
        _check_images(dataset, annotations, check, strict)
    return check


def _check_images(
    dataset: Dataset, annotations: AnnotationFile, check: PartReport, strict: bool
) -> None:
    folder = dataset.parts[check.name].images
    missing = set(missing_images(folder, annotations))
    if missing:
        first = str(folder / min(missing))
        check.add(DatasetIssue("images missing", len(missing), first, is_error=True))
    there = [item for item in annotations.annotations if item.image_id not in missing]
    found = check_image_sizes(dataset, replace(annotations, annotations=tuple(there)), decode=True)
    if found.unreadable:
        first = next(iter(found.unreadable.values()))
        check.add(DatasetIssue("images unreadable", len(found.unreadable), first, is_error=True))
    for kind, sizes, problem in (
        (ORIENTATION_MISMATCH, found.orientation_mismatch, found.orientation_error(strict)),
        (SIZE_MISMATCH, found.size_mismatch, found.size_error(strict)),
    ):
        if sizes:
            each = tuple(f"{folder / name}: {told}" for name, told in sizes.items())
            check.add(DatasetIssue(kind, len(sizes), each[0], is_error=False, examples=each))
        if problem:
            check.problems.append(problem)
    if problem := found.scale_error():
        check.problems.append(problem)
    if found.ambiguous and found.orientation_assumed:
        check.add(
            DatasetIssue(
                ORIENTATION_UNKNOWN,
                len(found.ambiguous),
                " ".join(found.warnings()),
                is_error=False,
            )
        )
    if found.stale_exif:
        check.add(DatasetIssue(STALE_EXIF, 1, found.stale_exif, is_error=False))
    outside = {
        item.image_id: int((item.boxes > np.tile(found.sizes[item.image_id], 2)).any(axis=1).sum())
        for item in there
        if item.image_id in found.sizes
    }
    if total := sum(outside.values()):
        first = str(folder / next(name for name, count in outside.items() if count))
        kind = "boxes outside the picture as it lies there"
        check.add(DatasetIssue(kind, total, first, is_error=False))


COUNT_COLUMNS = ("images", "annotated", "labels")
# By dataset and part: images, annotated images, labelled pair-verb rows; None where none is stated.
# HICO-DET: Chao et al., WACV 2018, and its annotation file; V-COCO: Gupta and Malik, 2015, which
# takes its images from COCO's train2014 and val2014; COCO: its 2014 and 2017 releases.
PUBLISHED_COUNTS: dict[str, dict[str, tuple[int | None, int | None, int | None]]] = {
    "hico-det": {"train": (38118, 37633, 117871), "test": (9658, 9546, 33405)},
    "v-coco": {"train": (None, 5400, None), "test": (None, 4946, None)},
    "coco-2014": {"train": (82783, None, 0), "test": (40504, None, 0)},
    "coco-2017": {"train": (118287, None, 0), "test": (5000, None, 0)},
}


def format_check(dataset: Dataset, checks: list[PartReport]) -> str:
    """Counts of every part, published numbers behind a slash; then how often each kind of issue
    was met, and the first of each."""
    vocabulary = dataset.vocabulary
    published = PUBLISHED_COUNTS.get(dataset.name, {})
    lines = [
        f"{dataset.name}: vocabulary {vocabulary.name}, {vocabulary.num_verbs} verbs,"
        f" {vocabulary.num_objects} objects, {vocabulary.num_interactions} interactions",
        *_align_columns(
            [["part", *COUNT_COLUMNS], *(_count_row(check, published) for check in checks)]
        ),
    ]
    if published:
        lines.append("(behind the slash: as published)")
    return "\n".join(
        [*lines, *_ambiguous_verbs(vocabulary), *_issue_table(checks), *_issue_details(checks)]
    )


def _ambiguous_verbs(vocabulary: Vocabulary) -> list[str]:
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


def _count_row(
    check: PartReport, published: dict[str, tuple[int | None, int | None, int | None]]
) -> list[str]:
    stated = published.get(check.name, (None, None, None))
    found = (check.images, check.annotated, check.labels)
    counts = [
        f"{count}" if number is None else f"{count} / {number}"
        for count, number in zip(found, stated, strict=True)
    ]
    return [check.name, *counts]


def _issue_table(checks: list[PartReport]) -> list[str]:
    """A row for each kind of issue, a column for each part."""
    wrong = {issue.kind: issue.is_error for check in checks for issue in check.issues}
    if not wrong:
        return []
    rows = [["found", *(check.name for check in checks), ""]]
    for kind, must in wrong.items():
        counts = [
            str(sum(issue.count for issue in check.issues if issue.kind == kind))
            for check in checks
        ]
        rows.append([kind, *counts, "wrong" if must else ""])
    return ["", *_align_columns(rows)]


def _issue_details(checks: list[PartReport]) -> list[str]:
    """The first of each kind of issue, and every problem."""
    lines = []
    for check in checks:
        for issue in check.issues:
            first = ":" if issue.examples else f", first {issue.first}"
            lines.append(f"{check.name}: {issue.count} {issue.kind}{first}")
            lines += [f"  {one}" for one in issue.examples]
    problems = [f"{check.name}: {problem}" for check in checks for problem in check.problems]
    lines += [line for line in problems if line not in lines]
    return ["", *lines] if lines else []


def _align_columns(rows: list[list[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
