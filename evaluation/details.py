"""Tables of single verbs, objects, interactions and splits for a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from evaluation.hico import harmonic_mean
from evaluation.results import Results, SettingScores
from evaluation.wording import SETTINGS, columns, percent, results_table

DETAILS = ("splits", "verbs", "objects", "interactions")
TITLES = {
    "splits": "split",
    "verbs": "verb",
    "objects": "object",
    "interactions": "interaction",
}


def tables(results: Sequence[Results], details: Sequence[str]) -> list[str]:
    """The groups, and the wanted details below."""
    lines = results_table(results)
    for detail in details:
        lines += ["", *detail_table(results, detail)]
    return lines


def detail_table(results: Sequence[Results], detail: str) -> list[str]:
    """A row for each entry that has ground truth, a column for each setting; AP in percent.

    Args:
        results: of one dataset and split.
        detail: one of `DETAILS`.
    """
    shown = columns(results)
    tables = [_numbers(scores, detail) for _, scores in shown]
    settings = [SETTINGS[setting] for setting, _ in shown]
    width = max(12, *(len(setting) + 2 for setting in settings))
    # The union: a later setting may lack an entry.
    names = list(dict.fromkeys(name for table in tables for name in table))
    stub = max([len(TITLES[detail]), *(len(name) for name in names)]) + 2
    lines = [f"{TITLES[detail]:<{stub}}" + "".join(f"{title:>{width}}" for title in settings)]
    for name in names:
        cells = "".join(f"{percent(table.get(name), 2):>{width}}" for table in tables)
        lines.append(f"{name:<{stub}}{cells}")
    return lines


def _numbers(scores: Results | SettingScores, detail: str) -> dict[str, float | None]:
    if detail == "splits":
        return {
            f"{split}, {group}": value
            for split, groups in scores.splits.items()
            for group, value in (
                *groups.items(),
                ("harmonic mean", harmonic_mean(groups.get("seen"), groups.get("unseen"))),
            )
        }
    numbers = {
        "verbs": scores.per_verb,
        "objects": scores.per_object,
        "interactions": scores.per_class,
    }[detail]
    return dict(numbers)
