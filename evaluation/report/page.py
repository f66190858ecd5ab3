"""The report's page: everything computed, then filled into the template."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

from evaluation.analysis.class_tables import ClassRow, build_class_rows
from evaluation.analysis.comparison import Comparison, ComparisonEntry, EntryRole
from evaluation.report.charts.figure import Chart
from evaluation.report.charts.palette import DARK, LIGHT, css_declarations
from evaluation.report.error_sections import (
    build_confusion_sections,
    build_error_sections,
    build_precision_recall_sections,
)
from evaluation.report.gallery import GalleryRow, build_gallery
from evaluation.report.inputs import ReportInputs
from evaluation.report.sections import (
    Section,
    Table,
    build_action_sections,
    build_class_section,
    build_frequency_sections,
    build_training_sections,
    build_vcoco_sections,
)
from evaluation.results import AGENT_AP, ROLE_AP, Results
from evaluation.tables import (
    METRIC_TITLES,
    SETTING_TITLES,
    VCOCO_TITLES,
    format_percent,
    join_names,
)
from pipeline.images import read_image
from pipeline.utils.files import read_json

PROTOCOL_TITLES = {
    "detector": "candidate pairs from a frozen detector",
    "annotated": "candidate pairs from annotated boxes (the published, transductive protocol)",
}
# So many interactions stand open on the page; longer tables wait to be opened.
MAX_OPEN_ROWS = 60


@dataclass(frozen=True)
class Page:
    """A finished report: the page, and the pictures on it."""

    html: str
    charts: tuple[Chart, ...]
    gallery_rows: tuple[GalleryRow, ...]


@dataclass(frozen=True)
class HeadlineBar:
    """An entry's bar beside the headline.

    Attributes:
        width: per cent of the bar's room.
    """

    title: str
    note: str
    style: str
    value: str
    width: float


def build_page(comparison: Comparison, inputs: ReportInputs) -> Page:
    """Computes and draws every section that the inputs suffice for.

    Raises:
        InputError: a training log is wrong.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    detailed = comparison.with_interaction_ap
    rows = build_class_rows(detailed, inputs.training_counts, inputs.test_counts)
    classes = build_class_section(detailed, rows) if rows else None
    others = build_sections(comparison, inputs, rows)
    gallery_rows = _build_gallery_rows(comparison, inputs)
    environment = Environment(
        loader=PackageLoader("evaluation.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    first, more = build_headline(comparison)
    html = environment.get_template("report.html.jinja").render(
        comparison=comparison,
        facts=_facts(comparison),
        headline=first,
        more=more,
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
        sections=others,
        gallery_rows=gallery_rows,
        notes=_missing_notes(comparison, inputs, others, gallery_rows),
        protocols=_protocol_titles(comparison),
        light=css_declarations(LIGHT),
        dark=css_declarations(DARK),
    )
    charts = [chart for one in (classes, *others) if one is not None for chart in one.charts]
    return Page(html, tuple(charts), tuple(gallery_rows))


def _facts(comparison: Comparison) -> list[str]:
    first, vocabulary = comparison.first, comparison.vocabulary
    runs = [one for who in comparison.entries for one in who.results]
    seeds = sorted({one.seed for one in runs if one.seed is not None})
    held_back = f"{len(comparison.unseen)} of {vocabulary.num_interactions} interactions unseen"
    return [
        first.dataset,
        f"split {comparison.split}" + (f": {held_back}" if comparison.unseen else ""),
        f"{first.num_images:,} test pictures",
        *([SETTING_TITLES[first.setting]] if first.per_class else []),
        *(["after pairwise NMS"] if first.nms else []),
        *([f"seed {join_names([str(seed) for seed in seeds])}"] if seeds else []),
    ]


def _headline_bars(comparison: Comparison) -> list[HeadlineBar]:
    metric = "unseen" if comparison.unseen else "full"
    values = [
        (one, one.vcoco_metric(ROLE_AP[0]) if comparison.vcoco_leads else one.metric(metric))
        for one in comparison.entries
    ]
    return [
        HeadlineBar(one.title, one.note, one.style, format_percent(value), 100 * value)
        for one, value in values
        if value is not None
    ]


def _bars_title(comparison: Comparison) -> str:
    if comparison.vcoco_leads:
        return VCOCO_TITLES[ROLE_AP[0]]
    return f"mAP on {'unseen' if comparison.unseen else 'all'} interactions"


def _protocol_titles(comparison: Comparison) -> list[str]:
    found = {one.protocol for who in comparison.entries for one in who.results}
    return [text for protocol, text in PROTOCOL_TITLES.items() if protocol in found]


def _build_gallery_rows(comparison: Comparison, inputs: ReportInputs) -> list[GalleryRow]:
    views = inputs.detailed
    files = inputs.image_files
    if not views or not files:
        return []
    return build_gallery(
        comparison,
        inputs.test_annotations,
        [(view.entry, view.detections) for view in views],
        lambda image_id: read_image(files[image_id]),
        files.keys(),
    )


def _missing_notes(
    comparison: Comparison,
    inputs: ReportInputs,
    made: list[Section],
    gallery_rows: list[GalleryRow],
) -> list[str]:
    """What is not on the page, and why."""
    notes = list(inputs.notes)
    wanted = {
        "frequency": "AP against training instances",
        "curves": "precision and recall",
        "errors": "kinds of errors",
        "confusion": "confusion among verbs",
        "training": "training curves",
    }
    anchors = {section.anchor for section in made}
    absent = [title for anchor, title in wanted.items() if anchor not in anchors]
    if not gallery_rows:
        absent.append("test pictures")
    if absent:
        notes.append(f"Not on this page: {join_names(absent)}.")
    several = [view for view in inputs.predictions if len(view.entry.results) > 1]
    if several:
        shown = sorted({str(view.result.seed) for view in several if view.result.seed is not None})
        seeds = f" (seed {join_names(shown)})" if shown else ""
        notes.append(
            "Numbers are means over the runs; labelled instances, precision and recall, errors,"
            f" confusion and pictures are those of one run each{seeds}."
        )
    return notes


KNOWN_OBJECT_TITLE = (
    "In the known-object setting: of every interaction, only the pictures that have its object"
)
VCOCO_CAPTION = (
    "V-COCO's own evaluation: average AP of every result, in %. Role AP is the official mean over"
    " all 25 roles; papers print the mean over 24, without point"
)
PUBLISHED_TITLE = "Published for this split, under other conditions: for scale, not for comparison"


@dataclass(frozen=True)
class ScoreRow:
    """One row.

    Attributes:
        kind: "entry"; "run", one of several; "group", a heading over rows; "published".
        title, note: whose numbers.
        style: an entry's colour.
        cells: a number for each column, none for a heading.
    """

    kind: str
    title: str
    note: str = ""
    style: str = ""
    cells: tuple[str, ...] = ()


@dataclass(frozen=True)
class ScoreTable:
    """Averages of every entry; columns are titles by the metric's name."""

    caption: str
    columns: dict[str, str]
    rows: tuple[ScoreRow, ...]


def build_score_tables(
    comparison: Comparison, published: tuple[PublishedResult, ...]
) -> list[ScoreTable]:
    """A table for each protocol that some result has numbers of, the headline's first."""
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
        caption = VCOCO_CAPTION
        place = 0 if comparison.vcoco_leads else len(tables)
        tables.insert(place, ScoreTable(caption, columns, tuple(rows)))
    return tables


MetricGetter = Callable[[ComparisonEntry, str], float | None]


def _metric_columns(
    comparison: Comparison, titles: dict[str, str], get_metric: MetricGetter
) -> dict[str, str]:
    """Columns in which some entry has a number."""
    return {
        name: title
        for name, title in titles.items()
        if any(get_metric(one, name) is not None for one in comparison.entries)
    }


def _entry_rows(
    comparison: Comparison,
    columns: dict[str, str],
    get_metric: MetricGetter,
    get_result_metric: Callable[[Results, str], float | None],
) -> list[ScoreRow]:
    """Everybody with a number, and below a mean the runs it is of."""
    rows = []
    for one in comparison.entries:
        values = [get_metric(one, name) for name in columns]
        if all(value is None for value in values):
            continue
        several = len(one.results) > 1
        note = f"{one.note}, mean of {len(one.results)} runs" if several else one.note
        cells = tuple(format_percent(value) for value in values)
        rows.append(ScoreRow("entry", one.title, note, one.style, cells))
        for result in one.results if several else ():
            cells = tuple(format_percent(get_result_metric(result, name)) for name in columns)
            rows.append(ScoreRow("run", one.run_title(result), cells=cells))
    return rows


def _known_object_rows(comparison: Comparison, columns: dict[str, str]) -> list[ScoreRow]:
    rows = [
        ScoreRow(
            "entry",
            one.title,
            style=one.style,
            cells=tuple(format_percent(one.metric(name, known_object=True)) for name in columns),
        )
        for one in comparison.entries
        if one.metric("full", known_object=True) is not None
    ]
    return [ScoreRow("group", KNOWN_OBJECT_TITLE), *rows] if rows else []


def _published_rows(
    published: tuple[PublishedResult, ...], columns: dict[str, str]
) -> list[ScoreRow]:
    rows = [
        ScoreRow(
            "published",
            one.name,
            f"{one.source}. {one.conditions}",
            cells=tuple(format_percent(one.metrics.get(name)) for name in columns),
        )
        for one in published
    ]
    return [ScoreRow("group", PUBLISHED_TITLE), *rows] if rows else []


def _result_metric(result: Results, name: str) -> float | None:
    return result.metrics.get(name)


def _result_vcoco_metric(result: Results, name: str) -> float | None:
    return None if result.vcoco is None else result.vcoco.metrics.get(name)


@dataclass(frozen=True)
class PublishedResult:
    """One published result.

    Attributes:
        name: of the method.
        metrics: fractions by the names that `Results` uses; not all of them were published.
        conditions: in which ways it differs from anybody's own runs.
        source: where it was published.
    """

    name: str
    metrics: dict[str, float]
    conditions: str
    source: str


def find_published_results(result: Results, split: str) -> tuple[PublishedResult, ...]:
    """What is published for a result's dataset, split and setting; empty where nothing is.

    Args:
        split: the split that the metrics are grouped by.
    """
    value = _read_published()
    wanted = (result.dataset, result.vocabulary, result.setting)
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
        if (entry["dataset"], entry["dataset"], entry["setting"]) == wanted
        and split in entry["splits"]
    )


def find_published_entry(name: str, dataset: str, split: str) -> dict[str, Any] | None:
    """What the file of published results says of a method, in percent; None for nothing."""
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
    others = f"all {test_images:,} test pictures instead of {result.num_images:,}"
    return f"{stated}; {others}"


__all__ = ["Section", "Table", "build_class_section", "build_sections"]


def build_sections(
    comparison: Comparison, inputs: ReportInputs, rows: Sequence[ClassRow]
) -> list[Section]:
    """All sections but that of every interaction, in the page's order.

    Args:
        rows: of `comparison.with_interaction_ap`.

    Raises:
        InputError: a training log is wrong.
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
    """The finding: one sentence with this run's numbers, and a few more beside it."""
    if comparison.vcoco_leads:
        return _build_vcoco_headline(comparison)
    metric = "unseen" if comparison.unseen else "full"
    scored = {
        one.role: value for one in comparison.entries if (value := one.metric(metric)) is not None
    }
    if metric == "full" or "distilled" not in scored:
        numbers = ", ".join(
            f"{one.title} {format_percent(one.metric(metric))}" for one in comparison.entries
        )
        return f"{metric.capitalize()} mAP: {numbers}.", ""
    distilled, control = scored["distilled"], scored.get("control")
    unseen_ap = format_percent(distilled)
    found = f"{unseen_ap} mAP on {_describe_unseen(comparison)} without one label for them"
    if control is None:
        return f"{found}.", "A run without distillation belongs beside this number; none is here."
    verdict = ": here the answers did not help" if distilled <= control else ""
    first = f"{found}; {format_percent(control)} when the teacher's answers are left out{verdict}."
    return first, " ".join(_comparison_sentences(comparison, scored))


def _build_vcoco_headline(comparison: Comparison) -> tuple[str, str]:
    """The averages of the first entry that has them, and what the others' role AP is."""
    scored = [one for one in comparison.entries if one.vcoco_metric(ROLE_AP[0]) is not None]
    lead, *others = scored
    first, second, agent = (
        format_percent(lead.vcoco_metric(name)) for name in (*ROLE_AP, AGENT_AP)
    )
    told = [f"{one.title} {format_percent(one.vcoco_metric(ROLE_AP[0]))}" for one in others]
    beside = f" Role AP of the others in scenario 1: {join_names(told)}." if told else ""
    found = f"Role AP {first} in scenario 1 and {second} in scenario 2: {lead.title}."
    return found, f"Agent AP {agent}.{beside}"


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
        reached = format_percent(scored["all_labels"])
        ceiling = f"Trained with every label, the same student reaches {reached}"
        closed = "" if share is None else f": distillation closes {100 * share:.0f} % of the gap"
        sentences.append(f"{ceiling}{closed}.")
    pair = [comparison.find(role) for role in ("distilled", "control")]
    seen = [format_percent(one.metric("seen")) for one in pair if one is not None]
    sentences.append(f"On seen interactions it stands at {seen[0]} against {seen[1]}.")
    if "teacher" in scored:
        verdict = "beats" if scored["distilled"] > scored["teacher"] else "stays below"
        sentences.append(
            f"It {verdict} its teacher, which has {format_percent(scored['teacher'])}."
        )
    return sentences
