"""Tables of average scores in the report, with published results beside them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources
from typing import Any

from evaluation.analysis.comparison import Comparison, ComparisonEntry
from evaluation.results import Results
from evaluation.tables import METRIC_TITLES, VCOCO_TITLES, format_percent
from pipeline.utils.files import read_json

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
