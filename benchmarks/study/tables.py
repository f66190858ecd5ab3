"""Results of experiments: per seed, mean, standard deviation, and differences between rows."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean, stdev
from typing import Any

from benchmarks.study.artifacts import TEACHER_RESULTS, WHOLE
from benchmarks.study.experiment import Experiment, Variant
from benchmarks.study.records import ACCURACY, GROUPS, NAMES, Records
from benchmarks.study.runner import SeedRunner
from evaluation.report.page import find_published_entry


def measure(
    experiment: Experiment, runners: Sequence[SeedRunner], records: Records | None = None
) -> dict[str, Any]:
    """The available results of an experiment, as plain values for JSON.

    A row has `values`, the mAP of the groups and the accuracy of the teacher in percent by seed;
    `mean` and `spread` (the standard deviation over seeds, 0 for one seed) of each; and `against`
    another row: mean and spread of the difference in unseen mAP over seeds that have both, and
    `wins`, the seeds in which it is larger.

    Args:
        experiment: the experiment.
        runners: one per seed.
        records: recorded results; those of `runners` take precedence.
    """
    rows = [_row(variant, runners, records or Records()) for variant in experiment.variants]
    by_label = {row["label"]: row for row in rows}
    for row, variant in zip(rows, experiment.variants, strict=True):
        other = by_label.get(variant.against or experiment.reference or "")
        if other is not None and other is not row:
            row["against"] = _difference(row, other)
    seeds = {int(seed) for row in rows for found in row["values"].values() for seed in found}
    return {
        "name": experiment.name,
        "title": experiment.title,
        "paper": experiment.paper,
        "axis": experiment.axis,
        "seeds": sorted(seeds),
        "rows": rows,
    }


def _row(variant: Variant, runners: Sequence[SeedRunner], records: Records) -> dict[str, Any]:
    values: dict[str, dict[str, float]] = {name: {} for name in NAMES}
    scale = runners[0].scale if runners else WHOLE
    made = {runner.seed: _made(variant, runner) for runner in runners}
    found = records.values(variant, scale) | {seed: own for seed, own in made.items() if own}
    for seed in sorted(found):
        for name, value in found[seed].items():
            values[name][str(seed)] = value
    entry = (
        None if variant.paper is None else find_published_entry("EoID", "hico-det", variant.paper)
    )
    return {
        "label": variant.label,
        "x": variant.x,
        "options": list(variant.run.command),
        "digest": variant.digest(scale),
        "values": {name: found for name, found in values.items() if found},
        **{
            statistic: {
                name: round(of(list(found.values())), 3) for name, found in values.items() if found
            }
            for statistic, of in (("mean", mean), ("spread", spread))
        },
        "paper": None if entry is None else entry["metrics"],
    }


def _made(variant: Variant, runner: SeedRunner) -> dict[str, float]:
    """Metrics of a seed in percent, by name; empty if there is no student."""
    results = runner.results(variant.run)
    if results is None:
        return {}
    # The test images of a small toy dataset may lack a group.
    metrics = {name: results["metrics"].get(name) for name in GROUPS}
    if variant.teacher is not None:
        scores = runner.results(variant.teacher, TEACHER_RESULTS)
        metrics[ACCURACY] = None if scores is None else scores["extra"].get(ACCURACY)
    return {name: 100 * value for name, value in metrics.items() if value is not None}


def spread(values: Sequence[float]) -> float:
    """Standard deviation over seeds; 0 for a single seed."""
    return stdev(values) if len(values) > 1 else 0.0


def _difference(row: dict[str, Any], other: dict[str, Any]) -> dict[str, Any] | None:
    mine, theirs = (each["values"].get("unseen", {}) for each in (row, other))
    gaps = [mine[seed] - theirs[seed] for seed in mine if seed in theirs]
    if not gaps:
        return None
    return {
        "label": other["label"],
        "mean": round(mean(gaps), 3),
        "spread": round(spread(gaps), 3),
        "wins": sum(gap > 0 for gap in gaps),
        "seeds": len(gaps),
    }


def markdown(measured: dict[str, Any]) -> str:
    """A Markdown table of the rows that have results."""
    rows = [row for row in measured["rows"] if row["values"]]
    with_teacher = any(ACCURACY in row["mean"] for row in rows)
    with_paper = any(row["paper"] for row in rows)
    titles = ["", "seeds", *GROUPS, "unseen against", "higher in"]
    titles += ["teacher's accuracy"] if with_teacher else []
    titles += ["paper: unseen / seen / full"] if with_paper else []
    lines = [f"| {' | '.join(titles)} |", "|" + "---|" * len(titles)]
    for row in rows:
        cells = [row["label"], str(len(row["values"].get("full", {})))]
        cells += [_cell(row, group) for group in GROUPS]
        cells += _against(row.get("against"))
        cells += [_cell(row, ACCURACY)] if with_teacher else []
        cells += [_paper(row["paper"])] if with_paper else []
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(row: dict[str, Any], name: str) -> str:
    if name not in row["mean"]:
        return ""
    return f"{row['mean'][name]:.1f} ± {row['spread'][name]:.1f}"


def _against(found: dict[str, Any] | None) -> list[str]:
    if found is None:
        return ["", ""]
    difference = f"{found['mean']:+.1f} ± {found['spread']:.1f} ({found['label']})"
    return [difference, f"{found['wins']} of {found['seeds']}"]


def _paper(metrics: dict[str, float] | None) -> str:
    if metrics is None:
        return ""
    return " / ".join(f"{metrics[group]:.1f}" if group in metrics else "" for group in GROUPS)
