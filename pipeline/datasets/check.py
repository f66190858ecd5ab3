"""Checks of a dataset folder for `eoid-data check`: problems, and counts beside published ones."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from pipeline.annotations.load import AnnotationFile
from pipeline.datasets.dataset import Dataset, list_file_names, missing_images
from pipeline.datasets.layouts import DATASET_FILE, find_layout
from pipeline.datasets.size_check import check_image_sizes
from pipeline.images import IMAGE_EXTENSIONS, unread_images
from pipeline.utils.errors import InputError
from pipeline.utils.text import count_noun
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
    is_error: bool = False
    examples: tuple[str, ...] = ()


@dataclass
class PartReport:
    """Result of checking one part.

    Attributes:
        name: "train" or "test".
        images, annotated, labels: numbers of the part's image files, of annotated images, and of
            labelled pairs and verbs. All images of a folder are the part's, unless several parts
            share the folder: then those that its annotation file names.
        files: names of all files in the images folder.
        listed: names of the images in the annotation file that exist.
        issues: all kinds of issues.
        problems: messages about everything that has to be corrected.
    """

    name: str
    images: int = 0
    annotated: int = 0
    labels: int = 0
    files: frozenset[str] = frozenset()
    listed: frozenset[str] = frozenset()
    issues: list[DatasetIssue] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def add(self, issue: DatasetIssue) -> None:
        """Adds an issue, and its message to `problems` if it is an error."""
        if not issue.count:
            return
        self.issues.append(issue)
        if issue.is_error:
            self.problems.append(f"{count_noun(issue.count, issue.kind)}, first {issue.first}")

    @contextmanager
    def catch_errors(self) -> Iterator[None]:
        """Adds an `InputError` of the body to `problems`, once."""
        try:
            yield
        except InputError as error:
            if str(error) not in self.problems:
                self.problems.append(str(error))


def check_dataset(dataset: Dataset, strict: bool = False) -> list[PartReport]:
    """Reads every annotation and every annotated image of a dataset.

    Args:
        dataset: the dataset.
        strict: annotation issues that are repaired in use count as errors.
    """
    checks = [_check_part(dataset, name, strict) for name in dataset.parts]
    for group in _by_folder(dataset, checks).values():
        for check in group:
            found = check.listed if len(group) > 1 else _image_names(check.files) | check.listed
            check.images = len(found)
    for kind, path in (("detector", dataset.detector), ("teacher", dataset.teacher)):
        if path is not None and not path.exists():
            checks[0].problems.append(f"{path}: no such {kind}")
    return checks


def _by_folder(dataset: Dataset, checks: list[PartReport]) -> dict[Path, list[PartReport]]:
    """The parts by their folders of images."""
    groups: dict[Path, list[PartReport]] = {}
    for check in checks:
        groups.setdefault(dataset.parts[check.name].images.resolve(), []).append(check)
    return groups


def _describe_folders(dataset: Dataset, checks: list[PartReport]) -> list[str]:
    """Lines about files that no part uses, as far as the counts of the parts do not show them."""
    lines = []
    for folder, group in _by_folder(dataset, checks).items():
        files = group[0].files
        if len(group) > 1:
            listed = frozenset[str]().union(*(check.listed for check in group))
            if unlisted := len(_image_names(files) - listed):
                lines.append(f"{folder}: {count_noun(unlisted, 'images')} of no part")
        unread, kind = unread_images(map(Path, files))
        if unread and dataset.parts[group[0].name].annotations is not None:
            lines.append(f"{folder}: {count_noun(len(unread), kind)}")
    return lines


def _image_names(files: frozenset[str]) -> frozenset[str]:
    """The file names with an ending of images, without hidden ones."""
    return frozenset(
        name
        for name in files
        if Path(name).suffix.lower() in IMAGE_EXTENSIONS and not name.startswith(".")
    )


def summarise_problems(checks: list[PartReport]) -> str:
    """The first problem and the number of the others, in one line; empty without problems."""
    problems = [f"{check.name}: {problem}" for check in checks for problem in check.problems]
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return "".join(problems[:1]) + more


def _check_part(dataset: Dataset, name: str, strict: bool) -> PartReport:
    check, folder = PartReport(name), dataset.parts[name].images
    with check.catch_errors():
        check.files = frozenset(list_file_names(folder))
    with check.catch_errors():
        annotations = dataset.load(name, strict, lenient=True)
        # Images of a part without an annotation file are annotated as empty ones when loaded.
        if dataset.parts[name].annotations is not None:
            check.annotated = len(annotations.annotations)
        names = {annotation.image_id for annotation in annotations.annotations}
        check.listed = frozenset(
            name
            for name in names | annotations.unlabelled
            if name in check.files or (folder / name).is_file()
        )
        check.labels = annotations.num_labels
        for counts, is_error in ((annotations.entry_errors, True), (annotations.issues, strict)):
            for kind, count in counts.items():
                check.add(DatasetIssue(kind, count, annotations.examples[kind], is_error))
        if not annotations.boxes_only and not annotations.entry_errors:
            with check.catch_errors():
                annotations.require_labels()
        if folder.is_dir():
            _check_images(dataset, annotations, check, strict)
    return check


def _check_images(
    dataset: Dataset, annotations: AnnotationFile, check: PartReport, strict: bool
) -> None:
    folder = dataset.parts[check.name].images
    missing = set(missing_images(folder, annotations))
    first = str(folder / min(missing, default=""))
    check.add(DatasetIssue("images missing", len(missing), first, is_error=True))
    present = tuple(item for item in annotations.annotations if item.image_id not in missing)
    found = check_image_sizes(dataset, replace(annotations, annotations=present), decode=True)
    first = next(iter(found.unreadable.values()), "")
    check.add(DatasetIssue("images unreadable", len(found.unreadable), first, is_error=True))
    for kind, sizes in (
        (ORIENTATION_MISMATCH, found.orientation_mismatch),
        (SIZE_MISMATCH, found.size_mismatch),
    ):
        examples = tuple(f"{folder / name}: {text}" for name, text in sizes.items())
        check.add(DatasetIssue(kind, len(sizes), "", examples=examples))
    check.problems += found.errors(strict)
    if found.orientation_assumed:
        first = " ".join(found.warnings())
        check.add(DatasetIssue(ORIENTATION_UNKNOWN, len(found.ambiguous), first))
    check.add(DatasetIssue(STALE_EXIF, bool(found.stale_exif), found.stale_exif))
    outside = {
        item.image_id: int((item.boxes > np.tile(found.sizes[item.image_id], 2)).any(axis=1).sum())
        for item in present
        if item.image_id in found.sizes
    }
    first = str(folder / next((name for name, count in outside.items() if count), ""))
    check.add(DatasetIssue(BOX_OUTSIDE_FILE, sum(outside.values()), first))


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
    table = [["part", *COUNT_COLUMNS]]
    for check in checks:
        numbers = published.get(check.name, (None, None, None))
        counts = (check.images, check.annotated, check.labels)
        table.append(
            [check.name]
            + [
                f"{count}" if number is None else f"{count} / {number}"
                for count, number in zip(counts, numbers, strict=True)
            ]
        )
    lines = [
        f"{dataset.name}: vocabulary {vocabulary.name}, "
        + ", ".join(
            count_noun(count, nouns)
            for count, nouns in (
                (vocabulary.num_verbs, "verbs"),
                (vocabulary.num_objects, "objects"),
                (vocabulary.num_interactions, "interactions"),
            )
        ),
        *_align_columns(table),
        *(["(after the slash: published counts)"] if published else []),
        *_missing_parts(dataset),
        *_describe_folders(dataset, checks),
        *_ambiguous_verbs(vocabulary),
    ]
    kinds = {issue.kind: issue.is_error for check in checks for issue in check.issues}
    if kinds:
        table = [["issues", *(check.name for check in checks), ""]]
        for kind, is_error in kinds.items():
            counts_by_kind = [
                sum(issue.count for issue in check.issues if issue.kind == kind) for check in checks
            ]
            table.append([kind, *map(str, counts_by_kind), "error" if is_error else ""])
        lines += ["", *_align_columns(table)]
    details = []
    for check in checks:
        for issue in check.issues:
            first = ":" if issue.examples else f", first {issue.first}"
            details.append(f"{check.name}: {count_noun(issue.count, issue.kind)}{first}")
            details += [f"  {example}" for example in issue.examples]
    problems = [f"{check.name}: {problem}" for check in checks for problem in check.problems]
    details += [line for line in problems if line not in details]
    return "\n".join([*lines, *([""] if details else []), *details])


def _missing_parts(dataset: Dataset) -> list[str]:
    """Lines about the parts of a published layout that have no annotation file."""
    layout = find_layout(dataset.root)
    if layout is None or (dataset.root / DATASET_FILE).is_file():
        return []
    return [
        f"{part}: no annotations; expected {dataset.root / paths[0]}"
        for part, paths in layout.annotations.items()
        if part not in dataset.parts
    ]


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


def _align_columns(rows: list[list[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
