"""One self-contained HTML page from several results."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evaluation.charts import action_bars, require_report_packages, training_curves
from evaluation.comparison import (
    Comparison,
    Contestant,
    action_rows,
    compare,
)
from evaluation.gallery import Shelf, build_gallery
from evaluation.predictions import read_predictions
from evaluation.results import Results, read_results
from evaluation.training_log import TrainingLog, read_training_log
from evaluation.wording import METRIC_TITLES, SETTINGS, headline, listing, percent
from pipeline.datasets import open_dataset
from pipeline.errors import InputError
from pipeline.files import refuse_existing, write_text
from pipeline.images import read_image
from pipeline.vocabulary import SHIPPED, Vocabulary, load_vocabulary

MAX_ACTIONS = 40
MAX_VIEWS = 2
PROTOCOLS = {
    "detector": "candidate pairs from a frozen detector",
    "annotated": "candidate pairs from annotated boxes (the published, transductive protocol)",
}


@dataclass(frozen=True)
class Bar:
    """A contestant's bar beside the headline.

    Attributes:
        width: per cent of the bar's room.
    """

    title: str
    note: str
    role: str
    value: str
    width: float


def write_report(paths: Sequence[Path], out: Path, overwrite: bool = False) -> None:
    """Writes the report.

    What results point at and what is no longer there (the training log, the predictions, the
    dataset's pictures) is left out, and the page says so.

    Args:
        paths: results files in any order.
        out: the HTML file.
        overwrite: replace it.

    Raises:
        InputError: a package of the extra `report` is missing, a file is wrong, the results do
            not belong together, or the HTML file is there already.
    """
    require_report_packages()
    refuse_existing(out, overwrite)
    results = [read_results(path) for path in paths]
    comparison = compare(results, _vocabulary(results))
    write_text(out, render(comparison))


def render(comparison: Comparison) -> str:
    """The page as HTML."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("evaluation"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    first, more = headline(comparison)
    shelves, missing = _gallery(comparison)
    return environment.get_template("report.html.jinja").render(
        comparison=comparison,
        facts=_facts(comparison),
        headline=first,
        more=more,
        bars=_bars(comparison),
        columns=_columns(comparison),
        percent=percent,
        shelves=shelves,
        gallery_missing=missing,
        protocols=_protocols(comparison),
        **_charts(comparison),
    )


def _vocabulary(results: Sequence[Results]) -> Vocabulary:
    for result in results:
        if result.dataset_path is not None and result.dataset_path.is_dir():
            return open_dataset(result.dataset_path).vocabulary
    if results[0].vocabulary in SHIPPED:
        return load_vocabulary(results[0].vocabulary)
    raise InputError(
        f"{results[0].name}: expected the dataset that defines vocabulary"
        f" {results[0].vocabulary}, found none at {results[0].dataset_path}"
    )


def _facts(comparison: Comparison) -> list[str]:
    first, vocabulary = comparison.first, comparison.vocabulary
    runs = [one for who in comparison.contestants for one in who.results]
    seeds = sorted({one.seed for one in runs if one.seed is not None})
    held_back = f"{len(comparison.unseen)} of {vocabulary.num_interactions} interactions unseen"
    return [
        first.dataset,
        f"split {comparison.split}" + (f": {held_back}" if comparison.unseen else ""),
        f"{first.num_images:,} test pictures",
        SETTINGS[first.setting],
        *([f"seed {listing([str(seed) for seed in seeds])}"] if seeds else []),
    ]


def _bars(comparison: Comparison) -> list[Bar]:
    metric = "unseen" if comparison.unseen else "full"
    values = [(one, one.metric(metric)) for one in comparison.contestants]
    return [
        Bar(one.title, one.note, one.role, percent(value), 100 * value)
        for one, value in values
        if value is not None
    ]


def _columns(comparison: Comparison) -> dict[str, str]:
    """Columns in which some contestant has a number."""
    return {
        name: title
        for name, title in METRIC_TITLES.items()
        if any(one.metric(name) is not None for one in comparison.contestants)
    }


def _protocols(comparison: Comparison) -> list[str]:
    found = {one.protocol for who in comparison.contestants for one in who.results}
    return [text for protocol, text in PROTOCOLS.items() if protocol in found]


def _charts(comparison: Comparison) -> dict[str, Any]:
    actions, left_out = action_rows(comparison, MAX_ACTIONS)
    spoken = "; ".join(
        f"{action.name}{' (unseen)' if action.unseen else ''} "
        + ", ".join(
            f"{one.title} {percent(value)}"
            for one, value in zip(comparison.contestants, action.values, strict=True)
        )
        for action in actions
    )
    bars = [
        action_bars(actions, comparison.contestants, narrow, f"AP of every action: {spoken}.")
        for narrow in (False, True)
    ]
    logs = [
        (one, log)
        for one in comparison.contestants
        for result in one.results
        if (log := read_training_log(result.metrics_log)) is not None
    ]
    curves = [training_curves(logs, narrow, _spoken(logs)) for narrow in (False, True) if logs]
    trained = list(dict.fromkeys((one.role, one.title) for one, _ in logs))
    return {"action_charts": bars, "left_out": left_out, "curves": curves, "trained": trained}


def _spoken(logs: Sequence[tuple[Contestant, TrainingLog]]) -> str:
    ends = "; ".join(
        f"{one.title} after {int(log.steps[-1])} steps: "
        + ", ".join(f"{name} {values[-1]:.3g}" for name, values in log.series.items())
        for one, log in logs
    )
    return f"Training curves. {ends}."


def _gallery(comparison: Comparison) -> tuple[list[Shelf], str]:
    """The shelves, or why there are none."""
    able = [
        (one, result)
        for one in comparison.contestants
        for result in one.results[:1]
        if result.predictions is not None and result.predictions.is_file()
    ]
    folder = next((result.dataset_path for _, result in able if result.dataset_path), None)
    if not able:
        return [], "No predictions file lies beside these results."
    if folder is None or not folder.is_dir():
        return [], "The dataset with the test pictures is not where the results say."
    same = [(one, result) for one, result in able if _same(result.dataset_path, folder)]
    dataset = open_dataset(folder)
    test = dataset.load("test")
    files = {record.id: record.path for record in dataset.records(test)}
    shown = [
        (one, read_predictions(result.predictions, comparison.vocabulary))
        for one, result in same[:MAX_VIEWS]
        if result.predictions is not None
    ]
    shelves = build_gallery(
        comparison, test.annotations, shown, lambda image_id: read_image(files[image_id])
    )
    return shelves, ""


def _same(folder: Path | None, other: Path) -> bool:
    return folder is not None and folder.resolve() == other.resolve()
