"""Checks of a dataset folder for `eoid-data check`: problems, and counts beside published ones."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from pipeline.annotations.load import AnnotationFile
from pipeline.datasets.dataset import Dataset, list_file_names, missing_images
from pipeline.datasets.size_check import check_image_sizes
from pipeline.utils.errors import InputError
from pipeline.vocabulary import Vocabulary, normalise_name

# Kinds of issues, as the table of `eoid-data check` shows them.
ORIENTATION_MISMATCH = "images whose declared size is that of the other orientation"
SIZE_MISMATCH = "images of another size than declared"
STALE_EXIF = "parts with EXIF tags left over from another orientation"
ORIENTATION_UNKNOWN = "images with an EXIF orientation and boxes of unknown orientation"
BOX_OUTSIDE_FILE = "boxes outside the image file"


@dataclass(frozen=True)
class DatasetIssue:
    """One kind of issue in one part.

    Attributes:
        kind: description of the kind.
        count: number of occurrences.
        first: the first occurrence.
        is_error: the dataset has to be corrected; other issues are repaired when it is used.
        examples: all occurrences, for kinds that list them.
    """

    kind: str
    count: int
    first: str
    is_error: bool
    examples: tuple[str, ...] = ()


@dataclass
class PartReport:
    """Result of checking one part.

    Attributes:
        name: "train" or "test".
        images: number of files in the images folder.
        annotated: number of annotated images.
        labels: number of labelled pairs and verbs.
        issues: all kinds of issues.
        problems: messages about everything that has to be corrected.
    """

    name: str
    images: int = 0
    annotated: int = 0
    labels: int = 0
    issues: list[DatasetIssue] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def add(self, issue: DatasetIssue) -> None:
        """Adds an issue, and its message to `problems` if it is an error."""
        self.issues.append(issue)
        if issue.is_error:
            self.problems.append(f"{issue.count} {issue.kind}, first {issue.first}")


def check_dataset(dataset: Dataset, strict: bool = False) -> list[PartReport]:
    """Reads every annotation and every annotated image of a dataset.

    Args:
        dataset: the dataset.
        strict: annotation issues that are repaired in use count as errors.
    """
    checks = [_check_part(dataset, name, strict) for name in dataset.parts]
    for kind, path in (("detector", dataset.detector), ("teacher", dataset.teacher)):
        if path is not None and not path.exists():
            checks[0].problems.append(f"{path}: no such {kind}")
    return checks


def summarise_problems(checks: list[PartReport]) -> str:
    """The first problem and the number of the others, in one line; empty without problems."""
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
        # A missing images folder of a part without annotations raises the same error twice.
        if str(error) not in check.problems:
            check.problems.append(str(error))
        return check
    check.annotated = len(annotations.annotations)
    check.labels = annotations.num_labels
    for counts, is_error in ((annotations.entry_errors, True), (annotations.issues, strict)):
        for kind, count in counts.items():
            check.add(DatasetIssue(kind, count, annotations.examples[kind], is_error))
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
    present = tuple(item for item in annotations.annotations if item.image_id not in missing)
    found = check_image_sizes(dataset, replace(annotations, annotations=present), decode=True)
    if found.unreadable:
        first = next(iter(found.unreadable.values()))
        check.add(DatasetIssue("images unreadable", len(found.unreadable), first, is_error=True))
    for kind, sizes, problem in (
        (ORIENTATION_MISMATCH, found.orientation_mismatch, found.orientation_error(strict)),
        (SIZE_MISMATCH, found.size_mismatch, found.size_error(strict)),
    ):
        if sizes:
            examples = tuple(f"{folder / name}: {text}" for name, text in sizes.items())
            check.add(DatasetIssue(kind, len(sizes), examples[0], False, examples))
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
        for item in present
        if item.image_id in found.sizes
    }
    if total := sum(outside.values()):
        first = str(folder / next(name for name, count in outside.items() if count))
        check.add(DatasetIssue(BOX_OUTSIDE_FILE, total, first, is_error=False))


COUNT_COLUMNS = ("images", "annotated", "labels")
# By dataset and part: images, annotated images, labelled pairs and verbs; None if not published.
# HICO-DET: Chao et al., WACV 2018, and its annotation file. V-COCO: Gupta and Malik, 2015; its
# folders hold all of COCO's train2014 and val2014, so files are not counted. COCO: 2014 and 2017.
PUBLISHED_COUNTS: dict[str, dict[str, tuple[int | None, int | None, int | None]]] = {
    "hico-det": {"train": (38118, 37633, 117871), "test": (9658, 9546, 33405)},
    "v-coco": {"train": (None, 5400, None), "test": (None, 4946, None)},
    "coco-2014": {"train": (82783, None, 0), "test": (40504, None, 0)},
    "coco-2017": {"train": (118287, None, 0), "test": (5000, None, 0)},
}


def format_check(dataset: Dataset, checks: list[PartReport]) -> str:
    """The report of `eoid-data check`: counts of every part beside published ones, and issues."""
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
        lines.append("(after the slash: published counts)")
    return "\n".join(
        [*lines, *_ambiguous_verbs(vocabulary), *_issue_table(checks), *_issue_details(checks)]
    )


def _ambiguous_verbs(vocabulary: Vocabulary) -> list[str]:
    """Lines about verbs with the same form in prompts and a common object."""
    by_form: dict[str, list[int]] = {}
    for verb, ing in enumerate(vocabulary.verb_ings):
        by_form.setdefault(normalise_name(ing), []).append(verb)
    return [
        f'verbs with the same form in prompts, "{form}", which a teacher cannot distinguish: '
        + ", ".join(vocabulary.verbs[verb] for verb in verbs)
        for form, verbs in by_form.items()
        if (vocabulary.valid[verbs].sum(axis=0) > 1).any()
    ]


def _count_row(
    check: PartReport, published: dict[str, tuple[int | None, int | None, int | None]]
) -> list[str]:
    counts = (check.images, check.annotated, check.labels)
    cells = [
        f"{count}" if number is None else f"{count} / {number}"
        for count, number in zip(counts, published.get(check.name, (None, None, None)), strict=True)
    ]
    return [check.name, *cells]


def _issue_table(checks: list[PartReport]) -> list[str]:
    """A row for each kind of issue, a column for each part."""
    kinds = {issue.kind: issue.is_error for check in checks for issue in check.issues}
    if not kinds:
        return []
    rows = [["issues", *(check.name for check in checks), ""]]
    for kind, is_error in kinds.items():
        counts = [
            str(sum(issue.count for issue in check.issues if issue.kind == kind))
            for check in checks
        ]
        rows.append([kind, *counts, "error" if is_error else ""])
    return ["", *_align_columns(rows)]


def _issue_details(checks: list[PartReport]) -> list[str]:
    """Lines with the first occurrence of each kind of issue, and with every problem."""
    lines = []
    for check in checks:
        for issue in check.issues:
            first = ":" if issue.examples else f", first {issue.first}"
            lines.append(f"{check.name}: {issue.count} {issue.kind}{first}")
            lines += [f"  {example}" for example in issue.examples]
    problems = [f"{check.name}: {problem}" for check in checks for problem in check.problems]
    lines += [line for line in problems if line not in lines]
    return ["", *lines] if lines else []


def _align_columns(rows: list[list[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
