"""Formats numbers, and tables of scores for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from evaluation.hico.average_precision import harmonic_mean
from evaluation.hico.matching import Setting
from evaluation.results import Results, SettingScores
from evaluation.vcoco.average_precision import (
    ACTION_EXCLUDED_BY_PAPERS,
    AGENT_AP,
    ROLE_AP,
    ROLE_AP_WITHOUT_POINT,
    SCENARIO_KEYS,
    VcocoResults,
)
from pipeline.utils.text import count_noun

METRIC_TITLES = {
    "full": "Full",
    "seen": "Seen",
    "unseen": "Unseen",
    "harmonic_mean": "Harmonic mean",
    "rare": "Rare",
    "non_rare": "Non-rare",
    "mean_max_recall": "Max recall",
}
VCOCO_TITLES = {
    ROLE_AP[0]: "Role AP, scenario 1",
    ROLE_AP[1]: "Role AP, scenario 2",
    ROLE_AP_WITHOUT_POINT[0]: "Without point, scenario 1",
    ROLE_AP_WITHOUT_POINT[1]: "Without point, scenario 2",
    AGENT_AP: "Agent AP",
}
SETTING_TITLES = {
    "default": "default setting",
    "known_object": "known-object setting",
    "swig": "SWIG-HOI",
}
# Tables that can be printed below the groups, with the title of their first column.
DETAIL_TITLES = {
    "splits": "split",
    "verbs": "verb",
    "objects": "object",
    "interactions": "interaction",
}
DETAILS = tuple(DETAIL_TITLES)
VCOCO_ROW = "{:<18}{:>7}{:>8}  {:<7}{:>11}{:>11}"


def format_percent(value: float | None, digits: int = 1) -> str:
    """A fraction in percent, without the sign: 0.701 is "70.1"; "-" for None and NaN."""
    return "-" if value is None or np.isnan(value) else f"{100 * value:.{digits}f}"


def join_names(names: Sequence[str]) -> str:
    """Joins names like "a, b and c"."""
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))


def setting_columns(results: Sequence[Results]) -> list[tuple[Setting, Results | SettingScores]]:
    """Setting and numbers of each column of a table: one or two for each result."""
    columns: list[tuple[Setting, Results | SettingScores]] = []
    for result in results:
        columns.append((result.setting, result))
        if result.known_object is not None:
            columns.append(("known_object", result.known_object))
    return columns


def format_results_table(results: Sequence[Results]) -> list[str]:
    """Lines of a table with a row for each metric and a column for each result and setting.

    Args:
        results: of one dataset and split.
    """
    first, columns = results[0], setting_columns(results)
    notes = ", after pairwise NMS" if first.nms else ""
    if first.limit_note:
        notes += f", {first.limit_note}"
    heading = (
        f"{first.dataset}, split {first.split}: {count_noun(first.num_images, 'images')},"
        f" {count_noun(len(first.per_class), 'interactions')}{notes}"
    )
    rows = {
        title.lower(): [scores.metrics.get(name) for _, scores in columns]
        for name, title in METRIC_TITLES.items()
    }
    rows = {title: values for title, values in rows.items() if set(values) != {None}}
    if not rows:
        return [f"{heading}: no scores, because no test image has labels"]
    return [heading, *_format_rows("mAP", columns, rows)]


def format_tables(results: Sequence[Results], details: Sequence[str]) -> list[str]:
    """Lines of the table of groups, and of a table for each of the given `DETAILS`."""
    lines = format_results_table(results)
    for detail in details:
        lines += ["", *format_detail_table(results, detail)]
    return lines


def format_detail_table(results: Sequence[Results], detail: str) -> list[str]:
    """Lines of a table with a row for each class with ground truth and a column for each setting.

    Args:
        results: of one dataset and split.
        detail: one of `DETAILS`.
    """
    columns = setting_columns(results)
    tables = [_detail_values(scores, detail) for _, scores in columns]
    # The union of all columns, as a setting may not have every class.
    names = dict.fromkeys(name for table in tables for name in table)
    rows = {name: [table.get(name) for table in tables] for name in names}
    return _format_rows(DETAIL_TITLES[detail], columns, rows)


def _format_rows(
    title: str,
    columns: Sequence[tuple[Setting, Results | SettingScores]],
    rows: Mapping[str, Sequence[float | None]],
) -> list[str]:
    """Lines of a table: the settings of the columns, then a row of percentages for each name."""
    settings = [SETTING_TITLES[setting] for setting, _ in columns]
    width = max(12, *(len(setting) + 2 for setting in settings))
    name_width = max(13, len(title), *map(len, rows)) + 2
    cells = {
        title: settings,
        **{name: [format_percent(value, 2) for value in row] for name, row in rows.items()},
    }
    return [
        f"{name:<{name_width}}" + "".join(f"{cell:>{width}}" for cell in row)
        for name, row in cells.items()
    ]


def _detail_values(scores: Results | SettingScores, detail: str) -> dict[str, float | None]:
    if detail == "splits":
        return {
            f"{split}, {group}": value
            for split, groups in scores.splits.items()
            for group, value in (
                *groups.items(),
                ("harmonic mean", harmonic_mean(groups.get("seen"), groups.get("unseen"))),
            )
        }
    tables = {"verbs": scores.per_verb, "objects": scores.per_object}
    return dict(tables.get(detail, scores.per_class))


def format_vcoco_table(scores: VcocoResults, num_images: int) -> list[str]:
    """Lines of a table with a row for each action and role, and the averages; AP in percent."""
    header = ("action", "people", "agent", "role", "scenario 1", "scenario 2")
    rows: list[tuple[object, ...]] = [header]
    num_roles = {}
    for action, result in scores.per_action.items():
        first: tuple[object, ...] = (
            action,
            result.positives,
            format_percent(result.agent_ap, 2),
        )
        for role, values in (result.roles or {"": {}}).items():
            cells = [format_percent(value, 2) for value in values.values()] or ["", ""]
            rows.append((*first, role, *cells))
            first = ("", "", "")
        num_roles[action] = sum(one[SCENARIO_KEYS[0]] is not None for one in result.roles.values())
    agent, *roles = (format_percent(value, 2) for value in scores.metrics.values())
    rows.append(("average", "", agent, "", *roles[:2]))
    rows.append((f"without {ACTION_EXCLUDED_BY_PAPERS}", "", "", "", *roles[2:]))
    num_official = sum(num_roles.values())
    num_papers = num_official - num_roles.get(ACTION_EXCLUDED_BY_PAPERS, 0)
    return [
        f"v-coco: {count_noun(num_images, 'images')}",
        *(VCOCO_ROW.format(*row).rstrip() for row in rows),
        f"role AP: the official mean is over {num_official} roles; papers print the mean without"
        f" {ACTION_EXCLUDED_BY_PAPERS}, over {num_papers}",
    ]
