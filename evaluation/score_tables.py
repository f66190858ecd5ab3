"""The report's tables of results: everybody's averages, and published ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from evaluation.comparison import Comparison
from evaluation.contestants import Contestant
from evaluation.published import Published
from evaluation.results import Results
from evaluation.wording import METRIC_TITLES, VCOCO_TITLES, percent

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
