"""The HTML page of the report: headline, score tables with published results, template."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

from evaluation.analysis.class_tables import ClassRow, build_class_rows
from evaluation.analysis.comparison import Comparison, ComparisonEntry, EntryRole
from evaluation.report.charts.figure import Chart
from evaluation.report.charts.palette import DARK, LIGHT, css_declarations
from evaluation.report.gallery import GalleryRow, build_gallery
from evaluation.report.inputs import ReportInputs
from evaluation.report.sections import (
    Section,
    build_action_sections,
    build_class_section,
    build_confusion_sections,
    build_error_sections,
    build_frequency_sections,
    build_precision_recall_sections,
    build_training_sections,
    build_vcoco_sections,
)
from evaluation.results import Results
from evaluation.tables import (
    METRIC_TITLES,
    SETTING_TITLES,
    VCOCO_TITLES,
    format_percent,
    join_names,
)
from evaluation.vcoco.average_precision import AGENT_AP, ROLE_AP
from pipeline.images import read_image
from pipeline.utils.files import read_json

PROTOCOL_TITLES = {
    "detector": "candidate pairs from a frozen detector",
    "annotated": "candidate pairs from annotated boxes (the published, transductive protocol)",
}
# The table of interactions is open when the page loads if it has at most this many rows.
MAX_OPEN_ROWS = 60
KNOWN_OBJECT_TITLE = (
    "Known-object setting: for every interaction, only images with its object count"
)
VCOCO_CAPTION = (
    "V-COCO's own evaluation: average AP of every result, in %. Role AP is the official mean over"
    " all 25 roles; papers print the mean over 24, without point"
)
PUBLISHED_TITLE = "Published for this split under other conditions, so not directly comparable"
# Returns a metric of an entry by name.
MetricGetter = Callable[[ComparisonEntry, str], float | None]


@dataclass(frozen=True)
class Page:
    """The rendered page, and the charts and gallery on it."""

    html: str
    charts: tuple[Chart, ...]
    gallery_rows: tuple[GalleryRow, ...]


@dataclass(frozen=True)
class HeadlineBar:
    """An entry's bar below the headline.

    Attributes:
        title, note, style: of the entry.
        value: mAP in percent, as text.
        width: in percent of the widest possible bar.
    """

    title: str
    note: str
    style: str
    value: str
    width: float


def build_page(comparison: Comparison, inputs: ReportInputs) -> Page:
    """Renders the page, with every section whose inputs are available.

    Raises:
        InputError: a training log is invalid.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    detailed = comparison.with_interaction_ap
    rows = build_class_rows(detailed, inputs.training_counts, inputs.test_counts)
    classes = build_class_section(detailed, rows) if rows else None
    sections = build_sections(comparison, inputs, rows)
    gallery_rows = _build_gallery_rows(comparison, inputs)
    environment = Environment(
        loader=PackageLoader("evaluation.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    headline, details = build_headline(comparison)
    html = environment.get_template("report.html.jinja").render(
        comparison=comparison,
        facts=_facts(comparison),
        headline=headline,
        more=details,
        bars=_headline_bars(comparison),
        bars_title=_bars_title(comparison),
        tables=build_score_tables(
            comparison, find_published_results(comparison.first, comparison.split)
        ),
        percent=format_percent,
        rows=rows,
        rows_open=len(rows) <= MAX_OPEN_ROWS,
        classes=classes,
        class_entries=detailed.entries,
        sections=sections,
        gallery_rows=gallery_rows,
        notes=_missing_notes(comparison, inputs, sections, gallery_rows),
        protocols=_protocol_titles(comparison),
        light=css_declarations(LIGHT),
        dark=css_declarations(DARK),
    )
    charts = [
        chart for section in (classes, *sections) if section is not None for chart in section.charts
    ]
    return Page(html, tuple(charts), tuple(gallery_rows))


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


def _headline_bars(comparison: Comparison) -> list[HeadlineBar]:
    metric = "unseen" if comparison.unseen else "full"
    values = [
        entry.vcoco_metric(ROLE_AP[0]) if comparison.vcoco_leads else entry.metric(metric)
        for entry in comparison.entries
    ]
    return [
        HeadlineBar(entry.title, entry.note, entry.style, format_percent(value), 100 * value)
        for entry, value in zip(comparison.entries, values, strict=True)
        if value is not None
    ]


def _bars_title(comparison: Comparison) -> str:
    if comparison.vcoco_leads:
        return VCOCO_TITLES[ROLE_AP[0]]
    return f"mAP on {'unseen' if comparison.unseen else 'all'} interactions"


def _protocol_titles(comparison: Comparison) -> list[str]:
    used = {result.protocol for entry in comparison.entries for result in entry.results}
    return [title for protocol, title in PROTOCOL_TITLES.items() if protocol in used]


def _build_gallery_rows(comparison: Comparison, inputs: ReportInputs) -> list[GalleryRow]:
    files = inputs.image_files
    if not inputs.detailed or not files:
        return []
    return build_gallery(
        comparison,
        inputs.test_annotations,
        [(predictions.entry, predictions.detections) for predictions in inputs.detailed],
        lambda image_id: read_image(files[image_id]),
        files.keys(),
    )


def _missing_notes(
    comparison: Comparison,
    inputs: ReportInputs,
    sections: list[Section],
    gallery_rows: list[GalleryRow],
) -> list[str]:
    """Sentences on what is missing on the page."""
    notes = list(inputs.notes)
    titles = {
        "frequency": "AP against training instances",
        "curves": "precision and recall",
        "errors": "kinds of errors",
        "confusion": "confusion between verbs",
        "training": "training curves",
    }
    anchors = {section.anchor for section in sections}
    missing = [title for anchor, title in titles.items() if anchor not in anchors]
    if not gallery_rows:
        missing.append("test images")
    if missing:
        notes.append(f"Not on this page: {join_names(missing)}.")
    single_runs = [
        predictions.result
        for predictions in inputs.predictions
        if len(predictions.entry.results) > 1
    ]
    if single_runs:
        seeds = sorted({str(result.seed) for result in single_runs if result.seed is not None})
        which = f" (seed {join_names(seeds)})" if seeds else ""
        notes.append(
            "Scores are means over the runs. Precision and recall, errors, confusion and test"
            f" images are those of one run of each entry{which}."
        )
    return notes


def build_sections(
    comparison: Comparison, inputs: ReportInputs, rows: Sequence[ClassRow]
) -> list[Section]:
    """All sections except that of every interaction, in the order of the page.

    Args:
        rows: of `comparison.with_interaction_ap`.

    Raises:
        InputError: a training log is invalid.
    """
    return [
        *build_frequency_sections(comparison.with_interaction_ap, rows),
        *build_action_sections(comparison.with_interaction_ap),
        *build_vcoco_sections(comparison),
        *build_precision_recall_sections(comparison, inputs),
        *build_error_sections(comparison, inputs),
        *build_confusion_sections(comparison, inputs),
        *build_training_sections(comparison),
    ]


def build_headline(comparison: Comparison) -> tuple[str, str]:
    """The main result in one sentence, and further sentences; "" if there are none."""
    if comparison.vcoco_leads:
        return _build_vcoco_headline(comparison)
    metric = "unseen" if comparison.unseen else "full"
    scored = {
        entry.role: value
        for entry in comparison.entries
        if (value := entry.metric(metric)) is not None
    }
    if metric == "full" or "distilled" not in scored:
        numbers = ", ".join(
            f"{entry.title} {format_percent(entry.metric(metric))}" for entry in comparison.entries
        )
        return f"{metric.capitalize()} mAP: {numbers}.", ""
    distilled, control = scored["distilled"], scored.get("control")
    unseen_ap = format_percent(distilled)
    result = f"{unseen_ap} mAP on {_describe_unseen(comparison)} without any label of them"
    if control is None:
        return f"{result}.", "Compare it with a run without distillation, which is not among these."
    verdict = ": distillation did not help here" if distilled <= control else ""
    headline = f"{result}; {format_percent(control)} without distillation{verdict}."
    return headline, " ".join(_comparison_sentences(comparison, scored))


def _build_vcoco_headline(comparison: Comparison) -> tuple[str, str]:
    """The averages of the first entry with V-COCO's scores, and the role AP of the others."""
    entries = [entry for entry in comparison.entries if entry.vcoco_metric(ROLE_AP[0]) is not None]
    lead, *others = entries
    first, second, agent = (
        format_percent(lead.vcoco_metric(name)) for name in (*ROLE_AP, AGENT_AP)
    )
    numbers = [
        f"{entry.title} {format_percent(entry.vcoco_metric(ROLE_AP[0]))}" for entry in others
    ]
    further = f" Role AP of the others in scenario 1: {join_names(numbers)}." if numbers else ""
    headline = f"Role AP {first} in scenario 1 and {second} in scenario 2: {lead.title}."
    return headline, f"Agent AP {agent}.{further}"


def _describe_unseen(comparison: Comparison) -> str:
    vocabulary = comparison.vocabulary
    verbs = [vocabulary.verbs[verb].replace("_", " ") for verb in comparison.unseen_verbs]
    if 0 < len(verbs) <= 4:
        return join_names(verbs)
    if verbs:
        return f"{len(verbs)} unseen actions"
    return f"{len(comparison.unseen)} unseen interactions"


def _comparison_sentences(comparison: Comparison, scored: dict[EntryRole, float]) -> list[str]:
    sentences = []
    share = comparison.gap_closed()
    if "all_labels" in scored:
        upper_bound = format_percent(scored["all_labels"])
        closed = "" if share is None else f": distillation closes {100 * share:.0f} % of the gap"
        sentences.append(f"With all labels, the same student reaches {upper_bound}{closed}.")
    entries = [comparison.find(role) for role in ("distilled", "control")]
    seen = [format_percent(entry.metric("seen")) for entry in entries if entry is not None]
    sentences.append(f"On seen interactions it has {seen[0]}, without distillation {seen[1]}.")
    if "teacher" in scored:
        verdict = "better" if scored["distilled"] > scored["teacher"] else "not better"
        sentences.append(
            f"It is {verdict} than its teacher, which has {format_percent(scored['teacher'])}."
        )
    return sentences


@dataclass(frozen=True)
class ScoreRow:
    """A row of a score table.

    Attributes:
        kind: "entry"; "run" for one of several results of an entry; "group" for the heading of the
            rows below; "published".
        title, note: name of the result, and further information.
        style: CSS class of the entry.
        cells: a number for each column; empty for a heading.
    """

    kind: str
    title: str
    note: str = ""
    style: str = ""
    cells: tuple[str, ...] = ()


@dataclass(frozen=True)
class ScoreTable:
    """Average scores of every entry; `columns` are titles by the name of the metric."""

    caption: str
    columns: dict[str, str]
    rows: tuple[ScoreRow, ...]


@dataclass(frozen=True)
class PublishedResult:
    """A published result.

    Attributes:
        name: of the method.
        metrics: the published ones of the metrics in `Results`, as fractions.
        conditions: differences to the runs of this project.
        source: publication.
    """

    name: str
    metrics: dict[str, float]
    conditions: str
    source: str


def build_score_tables(
    comparison: Comparison, published: tuple[PublishedResult, ...]
) -> list[ScoreTable]:
    """A table for each protocol that some result has scores of, that of the headline first."""
    tables = []
    columns = _metric_columns(comparison, METRIC_TITLES, ComparisonEntry.metric)
    if columns:
        rows = _entry_rows(comparison, columns, ComparisonEntry.metric, _result_metric)
        rows += _known_object_rows(comparison, columns)
        rows += _published_rows(published, columns)
        tables.append(ScoreTable("mAP of every result, in %", columns, tuple(rows)))
    columns = _metric_columns(comparison, VCOCO_TITLES, ComparisonEntry.vcoco_metric)
    if columns:
        rows = _entry_rows(comparison, columns, ComparisonEntry.vcoco_metric, _result_vcoco_metric)
        table = ScoreTable(VCOCO_CAPTION, columns, tuple(rows))
        tables.insert(0 if comparison.vcoco_leads else len(tables), table)
    return tables


def _metric_columns(
    comparison: Comparison, titles: dict[str, str], get_metric: MetricGetter
) -> dict[str, str]:
    """Titles of the metrics that some entry has."""
    return {
        name: title
        for name, title in titles.items()
        if any(get_metric(entry, name) is not None for entry in comparison.entries)
    }


def _entry_rows(
    comparison: Comparison,
    columns: dict[str, str],
    get_metric: MetricGetter,
    get_result_metric: Callable[[Results, str], float | None],
) -> list[ScoreRow]:
    """A row for each entry with scores, followed by its runs if it is a mean of several."""
    rows = []
    for entry in comparison.entries:
        values = [get_metric(entry, name) for name in columns]
        if all(value is None for value in values):
            continue
        several = len(entry.results) > 1
        note = f"{entry.note}, mean of {len(entry.results)} runs" if several else entry.note
        cells = tuple(format_percent(value) for value in values)
        rows.append(ScoreRow("entry", entry.title, note, entry.style, cells))
        for result in entry.results if several else ():
            cells = tuple(format_percent(get_result_metric(result, name)) for name in columns)
            rows.append(ScoreRow("run", entry.run_title(result), cells=cells))
    return rows


def _known_object_rows(comparison: Comparison, columns: dict[str, str]) -> list[ScoreRow]:
    rows = [
        ScoreRow(
            "entry",
            entry.title,
            style=entry.style,
            cells=tuple(format_percent(entry.metric(name, known_object=True)) for name in columns),
        )
        for entry in comparison.entries
        if entry.metric("full", known_object=True) is not None
    ]
    return [ScoreRow("group", KNOWN_OBJECT_TITLE), *rows] if rows else []


def _published_rows(
    published: tuple[PublishedResult, ...], columns: dict[str, str]
) -> list[ScoreRow]:
    rows = [
        ScoreRow(
            "published",
            result.name,
            f"{result.source}. {result.conditions}",
            cells=tuple(format_percent(result.metrics.get(name)) for name in columns),
        )
        for result in published
    ]
    return [ScoreRow("group", PUBLISHED_TITLE), *rows] if rows else []


def _result_metric(result: Results, name: str) -> float | None:
    return result.metrics.get(name)


def _result_vcoco_metric(result: Results, name: str) -> float | None:
    return None if result.vcoco is None else result.vcoco.metrics.get(name)


def find_published_results(result: Results, split: str) -> tuple[PublishedResult, ...]:
    """Published results for the dataset, split and setting of a result.

    Args:
        split: the split by which the metrics are grouped.
    """
    value = _read_published()
    key = (result.dataset, result.vocabulary, result.setting)
    return tuple(
        PublishedResult(
            entry["name"],
            {name: number / 100 for name, number in entry["metrics"].items()},
            _describe_conditions(
                entry["conditions"], value["test_images"][entry["dataset"]], result
            ),
            entry["source"],
        )
        for entry in value["results"]
        if (entry["dataset"], entry["dataset"], entry["setting"]) == key
        and split in entry["splits"]
    )


def find_published_entry(name: str, dataset: str, split: str) -> dict[str, Any] | None:
    """A method's entry in the file of published results, in percent; None if there is none."""
    for entry in _read_published()["results"]:
        if (entry["name"], entry["dataset"]) == (name, dataset) and split in entry["splits"]:
            return entry
    return None


def _read_published() -> dict[str, Any]:
    with resources.as_file(resources.files("evaluation.report") / "published.json") as file:
        return read_json(file)


def _describe_conditions(stated: str, test_images: int, result: Results) -> str:
    if result.num_images == test_images:
        return stated
    return f"{stated}; all {test_images:,} test images instead of {result.num_images:,}"
