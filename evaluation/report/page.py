"""The HTML page of the report: headline, score tables with published results, template."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any, NamedTuple

from evaluation.analysis.class_tables import build_class_rows
from evaluation.analysis.comparison import Comparison, ComparisonEntry, result_metric
from evaluation.report.charts.figure import Chart
from evaluation.report.charts.palette import DARK, LIGHT, css_declarations
from evaluation.report.gallery import GalleryRow, build_gallery
from evaluation.report.inputs import ReportInputs
from evaluation.report.sections import Section, build_sections
from evaluation.results import Results
from evaluation.tables import (
    METRIC_TITLES,
    SETTING_TITLES,
    VCOCO_TITLES,
    format_percent,
    join_names,
)
from evaluation.vcoco.average_precision import AGENT_AP, ROLE_AP
from pipeline.utils.files import read_json

PROTOCOL_TITLES = {
    "detector": "candidate pairs from a frozen detector",
    "annotated": "candidate pairs from annotated boxes (the published, transductive protocol)",
}
# Sections and what the page says if they are missing.
OPTIONAL_SECTIONS = {
    "frequency": "AP against training instances",
    "curves": "precision and recall",
    "errors": "kinds of errors",
    "confusion": "confusion between verbs",
    "training": "training curves",
}
# The table of interactions is open when the page loads if it has at most this many rows.
MAX_OPEN_ROWS = 60
MAX_UNSEEN_VERBS_IN_HEADLINE = 4
KNOWN_OBJECT_TITLE = (
    "Known-object setting: for every interaction, only images with its object count"
)
HICO_CAPTION = "mAP of every result, in %"
VCOCO_CAPTION = (
    "V-COCO's own evaluation: average AP of every result, in %. Role AP is the official mean over"
    " all 25 roles; papers print the mean over 24, without point"
)
PUBLISHED_TITLE = "Published for this split under other conditions, so not directly comparable"


@dataclass(frozen=True)
class Page:
    """The rendered page, and the charts and gallery on it."""

    html: str
    charts: list[Chart]
    gallery_rows: list[GalleryRow]


def build_page(comparison: Comparison, inputs: ReportInputs) -> Page:
    """Renders the page, with every section whose inputs are available.

    Raises:
        InputError: a training log is invalid.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    detailed = comparison.with_interaction_ap
    rows = build_class_rows(detailed, inputs.training_counts, inputs.test_counts)
    sections = build_sections(comparison, inputs, rows)
    entries = [(predictions.entry, predictions.detections) for predictions in inputs.detailed]
    gallery_rows = []
    if inputs.image_files and entries:
        gallery_rows = build_gallery(
            comparison, inputs.test_annotations, entries, inputs.image_files
        )
    environment = Environment(
        loader=PackageLoader("evaluation.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    headline, details = build_headline(comparison)
    limited = [
        f"{entry.title} ({entry.results[0].limit_note})"
        for entry in comparison.entries
        if entry.results[0].limit_note
    ]
    if limited:
        details += f" A short trial with a few images, not a whole run: {join_names(limited)}."
    metric = comparison.headline_metric
    used = {result.protocol for entry in comparison.entries for result in entry.results}
    html = environment.get_template("report.html.jinja").render(
        comparison=comparison,
        facts=_facts(comparison),
        headline=headline,
        more=details.strip(),
        bars=[(entry, entry.metric(metric)) for entry in _scored(comparison)],
        bars_title={
            "unseen": "mAP on unseen interactions",
            "full": "mAP on all interactions",
            **VCOCO_TITLES,
        }[metric],
        tables=build_score_tables(
            comparison, find_published_results(comparison.first, comparison.split)
        ),
        percent=format_percent,
        rows=rows,
        rows_open=len(rows) <= MAX_OPEN_ROWS,
        class_entries=detailed.entries,
        sections=sections,
        gallery_rows=gallery_rows,
        notes=_build_notes(inputs, sections, gallery_rows),
        protocols=[title for protocol, title in PROTOCOL_TITLES.items() if protocol in used],
        light=css_declarations(LIGHT),
        dark=css_declarations(DARK),
    )
    return Page(html, [chart for section in sections for chart in section.charts], gallery_rows)


def _scored(comparison: Comparison) -> list[ComparisonEntry]:
    """The entries that have the metric of the headline."""
    metric = comparison.headline_metric
    return [entry for entry in comparison.entries if entry.metric(metric) is not None]


def _facts(comparison: Comparison) -> list[str]:
    """Dataset, split, number of images and so on, for the top of the page."""
    first, vocabulary = comparison.first, comparison.vocabulary
    results = [result for entry in comparison.entries for result in entry.results]
    seeds = sorted({result.seed for result in results if result.seed is not None})
    unseen = f"{len(comparison.unseen)} of {vocabulary.num_interactions} interactions unseen"
    return [
        first.dataset,
        f"split {comparison.split}" + (f": {unseen}" if comparison.unseen else ""),
        f"{first.num_images:,} test images",
        *([SETTING_TITLES[first.setting]] if first.per_class else []),
        *(["after pairwise NMS"] if first.nms else []),
        *([f"seed {join_names([str(seed) for seed in seeds])}"] if seeds else []),
    ]


def _build_notes(
    inputs: ReportInputs, sections: Sequence[Section], gallery_rows: Sequence[GalleryRow]
) -> list[str]:
    """Sentences on what is missing on the page."""
    notes = list(inputs.notes)
    anchors = {section.anchor for section in sections}
    missing = [title for anchor, title in OPTIONAL_SECTIONS.items() if anchor not in anchors]
    if not gallery_rows:
        missing.append("test images")
    if missing:
        notes.append(f"Not on this page: {join_names(missing)}.")
    single_runs = [each.result for each in inputs.predictions if len(each.entry.results) > 1]
    if single_runs:
        seeds = sorted({str(result.seed) for result in single_runs if result.seed is not None})
        which = f" (seed {join_names(seeds)})" if seeds else ""
        notes.append(
            "Scores are means over the runs. Precision and recall, errors, confusion and test"
            f" images are those of one run of each entry{which}."
        )
    return notes


def build_headline(comparison: Comparison) -> tuple[str, str]:
    """The main result in one sentence, and further sentences; "" if there are none."""
    metric, entries = comparison.headline_metric, _scored(comparison)
    if not entries:
        return "No scores: no test image has labels.", ""
    numbers = [f"{entry.title} {format_percent(entry.metric(metric))}" for entry in entries]
    if metric == ROLE_AP[0]:
        first, second, agent = (
            format_percent(entries[0].metric(name)) for name in (*ROLE_AP, AGENT_AP)
        )
        headline = f"Role AP {first} in scenario 1 and {second} in scenario 2: {entries[0].title}."
        others = join_names(numbers[1:])
        further = f" Role AP of the others in scenario 1: {others}." if others else ""
        return headline, f"Agent AP {agent}.{further}"
    distilled, control, all_labels, teacher = (
        next((entry.metric(metric) for entry in entries if entry.role == role), None)
        for role in ("distilled", "control", "all_labels", "teacher")
    )
    if metric == "full" or distilled is None:
        unscored = metric == "full" and comparison.unseen
        note = "No test image has a label of an unseen interaction." if unscored else ""
        return f"{metric.capitalize()} mAP: {', '.join(numbers)}.", note
    result = f"{format_percent(distilled)} mAP on {_describe_unseen(comparison)}"
    result += " without any label of them"
    if control is None:
        return f"{result}.", "Compare it with a run without distillation, which is not among these."
    verdict = ": distillation did not help here" if distilled <= control else ""
    headline = f"{result}; {format_percent(control)} without distillation{verdict}."
    sentences = []
    if all_labels is not None:
        share = comparison.gap_closed()
        closed = "" if share is None else f": distillation closes {100 * share:.0f} % of the gap"
        upper_bound = format_percent(all_labels)
        sentences.append(f"With all labels, the same student reaches {upper_bound}{closed}.")
    seen = [
        format_percent(entry.metric("seen"))
        for entry in entries
        if entry.role in ("distilled", "control")
    ]
    sentences.append(f"On seen interactions it has {seen[0]}, without distillation {seen[1]}.")
    if teacher is not None:
        verdict = "better" if distilled > teacher else "not better"
        sentences.append(f"It is {verdict} than its teacher, which has {format_percent(teacher)}.")
    return headline, " ".join(sentences)


def _describe_unseen(comparison: Comparison) -> str:
    vocabulary = comparison.vocabulary
    verbs = [vocabulary.verbs[verb].replace("_", " ") for verb in comparison.unseen_verbs]
    if comparison.unseen_in_seen_verbs:
        return f"{len(comparison.unseen):,} unseen interactions"
    if len(verbs) > MAX_UNSEEN_VERBS_IN_HEADLINE:
        return f"{len(verbs)} unseen actions"
    return join_names(verbs)


class ScoreRow(NamedTuple):
    """A row of a score table.

    Attributes:
        kind: "entry"; "run" for one of several results of an entry; "group" for the heading of the
            rows below; "published".
        title, note: name of the result, and further information.
        values: fractions, one for each column; empty for a heading.
        style: CSS class of the entry.
    """

    kind: str
    title: str
    values: list[float | None]
    note: str = ""
    style: str = ""


class ScoreTable(NamedTuple):
    """Average scores of every entry; `columns` are titles by the name of the metric."""

    caption: str
    columns: dict[str, str]
    rows: list[ScoreRow]


def build_score_tables(
    comparison: Comparison, published: Sequence[dict[str, Any]]
) -> list[ScoreTable]:
    """A table for each protocol that some result has scores of, that of the headline first.

    Args:
        published: see `find_published_results`.
    """
    tables = []
    for caption, titles in ((HICO_CAPTION, METRIC_TITLES), (VCOCO_CAPTION, VCOCO_TITLES)):
        columns, rows = {}, []
        for name, title in titles.items():
            if any(entry.metric(name) is not None for entry in comparison.entries):
                columns[name] = title
        for entry in comparison.entries:
            values = [entry.metric(name) for name in columns]
            if any(value is not None for value in values):
                runs = entry.results if len(entry.results) > 1 else ()
                note = entry.note + (f", mean of {len(runs)} runs" if runs else "")
                rows.append(ScoreRow("entry", entry.title, values, note, entry.style))
                for result in runs:
                    values = [result_metric(result, name) for name in columns]
                    rows.append(ScoreRow("run", entry.run_title(result), values))
        if titles is METRIC_TITLES:
            rows += _further_rows(comparison, columns, published)
        if columns:
            tables.append(ScoreTable(caption, columns, rows))
    return tables[::-1] if comparison.headline_metric == ROLE_AP[0] else tables


def _further_rows(
    comparison: Comparison, columns: dict[str, str], published: Sequence[dict[str, Any]]
) -> list[ScoreRow]:
    """Rows of the known-object setting and of published results, below headings."""
    known_object = []
    for entry in comparison.entries:
        values = [entry.metric(name, known_object=True) for name in columns]
        if any(value is not None for value in values):
            known_object.append(ScoreRow("entry", entry.title, values, style=entry.style))
    papers = []
    for result in published:
        percent = [result["metrics"].get(name) for name in columns]
        values = [None if value is None else value / 100 for value in percent]
        note = f"{result['source']}. {result['conditions']}"
        papers.append(ScoreRow("published", result["name"], values, note))
    rows = []
    for title, members in ((KNOWN_OBJECT_TITLE, known_object), (PUBLISHED_TITLE, papers)):
        if members:
            rows += [ScoreRow("group", title, []), *members]
    return rows


def find_published_results(result: Results, split: str) -> list[dict[str, Any]]:
    """Published results for the dataset, split and setting of a result, in percent.

    Args:
        split: the split by which the metrics are grouped.

    Returns:
        entries of `published.json`: `name`, `metrics`, `source`, and `conditions`, the differences
        to the runs of this project.
    """
    found = []
    for entry in _read_published():
        key = (entry["dataset"], entry["dataset"], entry["setting"])
        if key == (result.dataset, result.vocabulary, result.setting) and split in entry["splits"]:
            conditions = entry["conditions"]
            if entry["test_images"] and result.num_images != entry["test_images"]:
                conditions += (
                    f"; all {entry['test_images']:,} test images instead of {result.num_images:,}"
                )
            found.append({**entry, "conditions": conditions})
    return found


def find_published_entry(name: str, dataset: str, split: str) -> dict[str, Any] | None:
    """A method's entry in the file of published results, in percent; None if there is none."""
    for entry in _read_published():
        if (entry["name"], entry["dataset"]) == (name, dataset) and split in entry["splits"]:
            return entry
    return None


def _read_published() -> list[dict[str, Any]]:
    with resources.as_file(resources.files("evaluation.report") / "published.json") as file:
        value = read_json(file)
    return [
        {**entry, "test_images": value["test_images"].get(entry["dataset"])}
        for entry in value["results"]
    ]
