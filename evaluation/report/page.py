"""The report's page: everything computed, then filled into the template."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

from evaluation.analysis.class_tables import ClassRow, class_rows
from evaluation.analysis.comparison import Comparison, Contestant, Role
from evaluation.report.charts.figure import Chart
from evaluation.report.charts.palette import DARK, LIGHT, declarations
from evaluation.report.error_sections import by_confusion, by_error, by_recall
from evaluation.report.gallery import Shelf, build_gallery
from evaluation.report.inputs import Evidence
from evaluation.report.sections import (
    Section,
    Table,
    by_action,
    by_class,
    by_role,
    by_training,
    by_training_step,
)
from evaluation.results import AGENT_AP, ROLE_AP, Results
from evaluation.tables import METRIC_TITLES, SETTINGS, VCOCO_TITLES, listing, percent
from pipeline.images import read_image
from pipeline.utils.files import read_json

PROTOCOLS = {
    "detector": "candidate pairs from a frozen detector",
    "annotated": "candidate pairs from annotated boxes (the published, transductive protocol)",
}
# So many interactions stand open on the page; longer tables wait to be opened.
MOST_OPEN = 60


@dataclass(frozen=True)
class Page:
    """A finished report: the page, and the pictures on it."""

    html: str
    charts: tuple[Chart, ...]
    shelves: tuple[Shelf, ...]


@dataclass(frozen=True)
class Bar:
    """A contestant's bar beside the headline.

    Attributes:
        width: per cent of the bar's room.
    """

    title: str
    note: str
    style: str
    value: str
    width: float


def build_page(comparison: Comparison, evidence: Evidence) -> Page:
    """Computes and draws everything that the evidence is there for.

    Raises:
        InputError: a training log is wrong.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    detailed = comparison.by_interaction
    rows = class_rows(detailed, evidence.training_counts, evidence.test_counts)
    classes = by_class(detailed, rows) if rows else None
    others = build_sections(comparison, evidence, rows)
    shelves = _gallery(comparison, evidence)
    environment = Environment(
        loader=PackageLoader("evaluation.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    first, more = headline(comparison)
    html = environment.get_template("report.html.jinja").render(
        comparison=comparison,
        facts=_facts(comparison),
        headline=first,
        more=more,
        bars=_bars(comparison),
        bars_of=_bars_of(comparison),
        tables=score_tables(comparison, published_results(comparison.first, comparison.split)),
        percent=percent,
        rows=rows,
        rows_open=len(rows) <= MOST_OPEN,
        classes=classes,
        ranked=detailed.contestants,
        sections=others,
        shelves=shelves,
        notes=_notes(comparison, evidence, others, shelves),
        protocols=_protocols(comparison),
        light=declarations(LIGHT),
        dark=declarations(DARK),
    )
    charts = [chart for one in (classes, *others) if one is not None for chart in one.charts]
    return Page(html, tuple(charts), tuple(shelves))


def _facts(comparison: Comparison) -> list[str]:
    first, vocabulary = comparison.first, comparison.vocabulary
    runs = [one for who in comparison.contestants for one in who.results]
    seeds = sorted({one.seed for one in runs if one.seed is not None})
    held_back = f"{len(comparison.unseen)} of {vocabulary.num_interactions} interactions unseen"
    return [
        first.dataset,
        f"split {comparison.split}" + (f": {held_back}" if comparison.unseen else ""),
        f"{first.num_images:,} test pictures",
        *([SETTINGS[first.setting]] if first.per_class else []),
        *(["after pairwise NMS"] if first.nms else []),
        *([f"seed {listing([str(seed) for seed in seeds])}"] if seeds else []),
    ]


def _bars(comparison: Comparison) -> list[Bar]:
    metric = "unseen" if comparison.unseen else "full"
    values = [
        (one, one.vcoco_metric(ROLE_AP[0]) if comparison.by_vcoco else one.metric(metric))
        for one in comparison.contestants
    ]
    return [
        Bar(one.title, one.note, one.style, percent(value), 100 * value)
        for one, value in values
        if value is not None
    ]


def _bars_of(comparison: Comparison) -> str:
    if comparison.by_vcoco:
        return VCOCO_TITLES[ROLE_AP[0]]
    return f"mAP on {'unseen' if comparison.unseen else 'all'} interactions"


def _protocols(comparison: Comparison) -> list[str]:
    found = {one.protocol for who in comparison.contestants for one in who.results}
    return [text for protocol, text in PROTOCOLS.items() if protocol in found]


def _gallery(comparison: Comparison, evidence: Evidence) -> list[Shelf]:
    views = evidence.shown
    files = evidence.pictures
    if not views or not files:
        return []
    return build_gallery(
        comparison,
        evidence.test,
        [(view.contestant, view.detections) for view in views],
        lambda image_id: read_image(files[image_id]),
        files.keys(),
    )


def _notes(
    comparison: Comparison, evidence: Evidence, made: list[Section], shelves: list[Shelf]
) -> list[str]:
    """What is not on the page, and why."""
    notes = list(evidence.notes)
    wanted = {
        "frequency": "AP against training instances",
        "curves": "precision and recall",
        "errors": "kinds of errors",
        "confusion": "confusion among verbs",
        "training": "training curves",
    }
    anchors = {section.anchor for section in made}
    absent = [title for anchor, title in wanted.items() if anchor not in anchors]
    if not shelves:
        absent.append("test pictures")
    if absent:
        notes.append(f"Not on this page: {listing(absent)}.")
    several = [view for view in evidence.views if len(view.contestant.results) > 1]
    if several:
        shown = sorted({str(view.result.seed) for view in several if view.result.seed is not None})
        seeds = f" (seed {listing(shown)})" if shown else ""
        notes.append(
            "Numbers are means over the runs; labelled instances, precision and recall, errors,"
            f" confusion and pictures are those of one run each{seeds}."
        )
    return notes


KNOWN_OBJECT = (
    "In the known-object setting: of every interaction, only the pictures that have its object"
)
VCOCO_CAPTION = (
    "V-COCO's own evaluation: average AP of every result, in %. Role AP is the official mean over"
    " all 25 roles; papers print the mean over 24, without point"
)
PUBLISHED = "Published for this split, under other conditions: for scale, not for comparison"


@dataclass(frozen=True)
class ScoreRow:
    """One row.

    Attributes:
        kind: "contestant"; "one" of several runs; "group", a heading over rows; "published".
        title, note: whose numbers.
        style: a contestant's colour.
        cells: a number for each column, none for a heading.
    """

    kind: str
    title: str
    note: str = ""
    style: str = ""
    cells: tuple[str, ...] = ()


@dataclass(frozen=True)
class ScoreTable:
    """Averages of every contestant; columns are titles by the metric's name."""

    caption: str
    columns: dict[str, str]
    rows: tuple[ScoreRow, ...]


def score_tables(comparison: Comparison, published: tuple[Published, ...]) -> list[ScoreTable]:
    """A table for each protocol that some result has numbers of, the headline's first."""
    tables = []
    columns = _columns(comparison, METRIC_TITLES, Contestant.metric)
    if columns:
        rows = _contestants(comparison, columns, Contestant.metric, _metric)
        rows += _known_object(comparison, columns)
        rows += _published(published, columns)
        tables.append(ScoreTable("mAP of every result, in %", columns, tuple(rows)))
    columns = _columns(comparison, VCOCO_TITLES, Contestant.vcoco_metric)
    if columns:
        rows = _contestants(comparison, columns, Contestant.vcoco_metric, _vcoco_metric)
        caption = VCOCO_CAPTION
        place = 0 if comparison.by_vcoco else len(tables)
        tables.insert(place, ScoreTable(caption, columns, tuple(rows)))
    return tables


Of = Callable[[Contestant, str], float | None]


def _columns(comparison: Comparison, titles: dict[str, str], of: Of) -> dict[str, str]:
    """Columns in which some contestant has a number."""
    return {
        name: title
        for name, title in titles.items()
        if any(of(one, name) is not None for one in comparison.contestants)
    }


def _contestants(
    comparison: Comparison,
    columns: dict[str, str],
    of: Of,
    of_one: Callable[[Results, str], float | None],
) -> list[ScoreRow]:
    """Everybody with a number, and below a mean the runs it is of."""
    rows = []
    for one in comparison.contestants:
        values = [of(one, name) for name in columns]
        if all(value is None for value in values):
            continue
        several = len(one.results) > 1
        note = f"{one.note}, mean of {len(one.results)} runs" if several else one.note
        cells = tuple(percent(value) for value in values)
        rows.append(ScoreRow("contestant", one.title, note, one.style, cells))
        for result in one.results if several else ():
            cells = tuple(percent(of_one(result, name)) for name in columns)
            rows.append(ScoreRow("one", one.run_title(result), cells=cells))
    return rows


def _known_object(comparison: Comparison, columns: dict[str, str]) -> list[ScoreRow]:
    rows = [
        ScoreRow(
            "contestant",
            one.title,
            style=one.style,
            cells=tuple(percent(one.metric(name, known_object=True)) for name in columns),
        )
        for one in comparison.contestants
        if one.metric("full", known_object=True) is not None
    ]
    return [ScoreRow("group", KNOWN_OBJECT), *rows] if rows else []


def _published(published: tuple[Published, ...], columns: dict[str, str]) -> list[ScoreRow]:
    rows = [
        ScoreRow(
            "published",
            one.name,
            f"{one.source}. {one.conditions}",
            cells=tuple(percent(one.metrics.get(name)) for name in columns),
        )
        for one in published
    ]
    return [ScoreRow("group", PUBLISHED), *rows] if rows else []


def _metric(result: Results, name: str) -> float | None:
    return result.metrics.get(name)


def _vcoco_metric(result: Results, name: str) -> float | None:
    return None if result.vcoco is None else result.vcoco.metrics.get(name)


@dataclass(frozen=True)
class Published:
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


def published_results(result: Results, split: str) -> tuple[Published, ...]:
    """What is published for a result's dataset, split and setting; empty where nothing is.

    Args:
        split: the split that the metrics are grouped by.
    """
    value = _file()
    wanted = (result.dataset, result.vocabulary, result.setting)
    return tuple(
        Published(
            entry["name"],
            {name: number / 100 for name, number in entry["metrics"].items()},
            _conditions(entry["conditions"], value["test_images"][entry["dataset"]], result),
            entry["source"],
        )
        for entry in value["results"]
        if (entry["dataset"], entry["dataset"], entry["setting"]) == wanted
        and split in entry["splits"]
    )


def published_entry(name: str, dataset: str, split: str) -> dict[str, Any] | None:
    """What the file of published results says of a method, in percent; None for nothing."""
    for entry in _file()["results"]:
        if (entry["name"], entry["dataset"]) == (name, dataset) and split in entry["splits"]:
            return entry
    return None


def _file() -> dict[str, Any]:
    with resources.as_file(resources.files("evaluation.report") / "published.json") as file:
        return read_json(file)


def _conditions(stated: str, test_images: int, result: Results) -> str:
    if result.num_images == test_images:
        return stated
    others = f"all {test_images:,} test pictures instead of {result.num_images:,}"
    return f"{stated}; {others}"


__all__ = ["Section", "Table", "build_sections", "by_class"]


def build_sections(
    comparison: Comparison, evidence: Evidence, rows: Sequence[ClassRow]
) -> list[Section]:
    """All sections but that of every interaction, in the page's order.

    Args:
        rows: of `comparison.by_interaction`.

    Raises:
        InputError: a training log is wrong.
    """
    return [
        *by_training(comparison.by_interaction, rows),
        *by_action(comparison.by_interaction),
        *by_role(comparison),
        *by_recall(comparison, evidence),
        *by_error(comparison, evidence),
        *by_confusion(comparison, evidence),
        *by_training_step(comparison),
    ]


def headline(comparison: Comparison) -> tuple[str, str]:
    """The finding: one sentence with this run's numbers, and a few more beside it."""
    if comparison.by_vcoco:
        return _vcoco_headline(comparison)
    metric = "unseen" if comparison.unseen else "full"
    scored = {
        one.role: value
        for one in comparison.contestants
        if (value := one.metric(metric)) is not None
    }
    if metric == "full" or "distilled" not in scored:
        numbers = ", ".join(
            f"{one.title} {percent(one.metric(metric))}" for one in comparison.contestants
        )
        return f"{metric.capitalize()} mAP: {numbers}.", ""
    distilled, control = scored["distilled"], scored.get("control")
    found = f"{percent(distilled)} mAP on {_held_back(comparison)} without one label for them"
    if control is None:
        return f"{found}.", "A run without distillation belongs beside this number; none is here."
    verdict = ": here the answers did not help" if distilled <= control else ""
    first = f"{found}; {percent(control)} when the teacher's answers are left out{verdict}."
    return first, " ".join(_beside(comparison, scored))


def _vcoco_headline(comparison: Comparison) -> tuple[str, str]:
    """The averages of the first contestant that has them, and what the others' role AP is."""
    scored = [one for one in comparison.contestants if one.vcoco_metric(ROLE_AP[0]) is not None]
    lead, *others = scored
    first, second, agent = (percent(lead.vcoco_metric(name)) for name in (*ROLE_AP, AGENT_AP))
    told = [f"{one.title} {percent(one.vcoco_metric(ROLE_AP[0]))}" for one in others]
    beside = f" Role AP of the others in scenario 1: {listing(told)}." if told else ""
    found = f"Role AP {first} in scenario 1 and {second} in scenario 2: {lead.title}."
    return found, f"Agent AP {agent}.{beside}"


def _held_back(comparison: Comparison) -> str:
    vocabulary = comparison.vocabulary
    verbs = [vocabulary.verbs[verb].replace("_", " ") for verb in comparison.unseen_verbs]
    if 0 < len(verbs) <= 4:
        return listing(verbs)
    if verbs:
        return f"{len(verbs)} unseen actions"
    return f"{len(comparison.unseen)} unseen interactions"


def _beside(comparison: Comparison, scored: dict[Role, float]) -> list[str]:
    sentences = []
    share = comparison.share_closed()
    if "all_labels" in scored:
        ceiling = (
            f"Trained with every label, the same student reaches {percent(scored['all_labels'])}"
        )
        closed = "" if share is None else f": distillation closes {100 * share:.0f} % of the gap"
        sentences.append(f"{ceiling}{closed}.")
    pair = [comparison.find(role) for role in ("distilled", "control")]
    seen = [percent(one.metric("seen")) for one in pair if one is not None]
    sentences.append(f"On seen interactions it stands at {seen[0]} against {seen[1]}.")
    if "teacher" in scored:
        verdict = "beats" if scored["distilled"] > scored["teacher"] else "stays below"
        sentences.append(f"It {verdict} its teacher, which has {percent(scored['teacher'])}.")
    return sentences
