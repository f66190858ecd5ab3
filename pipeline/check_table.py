"""The findings of a dataset check for people, beside the published numbers."""

from __future__ import annotations

from pipeline.check import PartCheck
from pipeline.datasets import Dataset
from pipeline.vocabulary import Vocabulary

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
