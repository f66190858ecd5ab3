"""The report's page: everything computed, then filled into the template."""

from __future__ import annotations

from dataclasses import dataclass

from evaluation.charts import Chart
from evaluation.class_rows import class_rows
from evaluation.comparison import Comparison
from evaluation.evidence import Evidence
from evaluation.gallery import Shelf, build_gallery
from evaluation.palette import DARK, LIGHT, declarations
from evaluation.published import published_results
from evaluation.score_tables import score_tables
from evaluation.sections import Section, build_sections, by_class
from evaluation.vcoco_results import ROLE_AP
from evaluation.wording import SETTINGS, VCOCO_TITLES, headline, listing, percent
from pipeline.images import read_image

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
        loader=PackageLoader("evaluation"),
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
