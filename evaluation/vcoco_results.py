"""V-COCO's scores on disk: in `results.json` of a run, and in a file of their own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from evaluation.vcoco import SCENARIOS, VcocoScores
from pipeline.errors import bad_field

AGENT_AP = "average_agent_ap"
ROLE_AP = tuple(f"average_role_ap_scenario_{scenario}" for scenario in SCENARIOS)
# The mean that papers print; files of earlier versions lack it.
ROLE_AP_WITHOUT_POINT = tuple(f"{name}_without_point" for name in ROLE_AP)
SCENARIO_KEYS = tuple(f"scenario_{scenario}" for scenario in SCENARIOS)


@dataclass(frozen=True)
class ActionResults:
    """One action; fractions, None where nobody does it.

    Attributes:
        positives: annotated people who do it.
        agent_ap: AP of its agents.
        roles: by role, AP by scenario (`SCENARIO_KEYS`).
    """

    positives: int
    agent_ap: float | None
    roles: dict[str, dict[str, float | None]]


@dataclass(frozen=True)
class VcocoResults:
    """The averages (`AGENT_AP`, `ROLE_AP`, `ROLE_AP_WITHOUT_POINT`; None where nothing counts) and
    every action."""

    metrics: dict[str, float | None]
    per_action: dict[str, ActionResults]


def vcoco_results(scores: VcocoScores) -> VcocoResults:
    """Scores as they are written down."""

    def fraction(value: float) -> float | None:
        return None if np.isnan(value) else float(value)

    per_action = {
        action.name: ActionResults(
            int(scores.num_positives[row]),
            fraction(scores.agents[row]),
            {
                role: {
                    key: fraction(scores.roles[scenario][row, place])
                    for scenario, key in zip(SCENARIOS, SCENARIO_KEYS, strict=True)
                }
                for place, role in enumerate(action.roles)
            },
        )
        for row, action in enumerate(scores.actions)
    }
    return VcocoResults(scores.metrics(), per_action)


def parse_vcoco(path: Path | str, value: Mapping[str, Any]) -> VcocoResults:
    """Reads what `dataclasses.asdict` makes of `VcocoResults`.

    Raises:
        InputError: a field is missing or wrong.
    """
    metrics = _table(path, "metrics", value.get("metrics"))
    metrics = {**dict.fromkeys(ROLE_AP_WITHOUT_POINT), **metrics}
    per_action = {}
    for name, entry in _table(path, "per_action", value.get("per_action")).items():
        place = f"per_action.{name}"
        entry = _table(path, place, entry)
        positives = entry.get("positives")
        if not isinstance(positives, int):
            raise bad_field(path, f"{place}.positives", "a number of people", positives)
        roles = _table(path, f"{place}.roles", entry.get("roles"))
        per_action[name] = ActionResults(
            positives,
            _fraction(path, entry, "agent_ap", f"{place}."),
            {
                role: {
                    key: _fraction(path, scores, key, f"{place}.roles.{role}.")
                    for key in SCENARIO_KEYS
                }
                for role in roles
                if (scores := _table(path, f"{place}.roles.{role}", roles[role])) is not None
            },
        )
    return VcocoResults(
        {
            name: _fraction(path, metrics, name, "metrics.")
            for name in (AGENT_AP, *ROLE_AP, *ROLE_AP_WITHOUT_POINT)
        },
        per_action,
    )


def _table(path: Path | str, name: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise bad_field(path, name, "numbers by name", value)
    return value


def _fraction(path: Path | str, table: dict[str, Any], name: str, place: str) -> float | None:
    value = table.get(name, "nothing")
    if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
        raise bad_field(path, f"{place}{name}", "a fraction or null", value)
    return value
