"""What a section of the report is made of."""

from __future__ import annotations

from dataclasses import dataclass, field

from evaluation.charts import Chart


@dataclass(frozen=True)
class Table:
    """Numbers behind a chart: caption, names of the columns, rows."""

    caption: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Section:
    """Charts under one heading.

    Attributes:
        anchor: its id on the page.
        title, note: heading and what to know before looking.
        charts: pictures, at least one.
        terms: words that the charts use, with their meaning.
        tables: numbers behind the charts.
        beside: the charts stand side by side where there is room.
    """

    anchor: str
    title: str
    note: str
    charts: tuple[Chart, ...]
    terms: dict[str, str] = field(default_factory=dict)
    tables: tuple[Table, ...] = ()
    beside: bool = False
