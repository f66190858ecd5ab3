"""The section of V-COCO's own scores."""

from __future__ import annotations

from collections.abc import Callable

from evaluation.action_rows import Action
from evaluation.charts.verbs import action_bars
from evaluation.comparison import Comparison
from evaluation.contestants import Contestant
from evaluation.sections.section import Section, Table
from evaluation.vcoco_results import SCENARIO_KEYS, ActionResults
from evaluation.wording import percent

# Gives an action's AP of agents, or of a role in a scenario.
Pick = Callable[[ActionResults], float | None]


def by_role(comparison: Comparison) -> list[Section]:
    """Role AP and agent AP of every action of V-COCO; none without its evaluation."""
    scored = [one for one in comparison.contestants if one.vcoco_actions()]
    if not scored:
        return []
    actions = list(dict.fromkeys(name for one in scored for name in one.vcoco_actions()))
    roles = [
        (action, role)
        for action in actions
        for role in dict.fromkeys(role for one in scored for role in one.vcoco_roles(action))
    ]
    charts = [
        action_bars(bars, scored, name, title, panel=title)
        for name, title, bars in (
            (
                "roles",
                "Role AP, scenario 1",
                _rows(
                    scored, [(f"{_said(a)}, {r}", a, _role(r, SCENARIO_KEYS[0])) for a, r in roles]
                ),
            ),
            ("agents", "Agent AP", _rows(scored, [(_said(a), a, _agent) for a in actions])),
        )
        if bars
    ]
    if not charts:
        return []
    note = (
        "V-COCO's own evaluation: an agent is a person who does the action, a role is the object"
        " that goes with it. Where an object is annotated nowhere, scenario 1 wants an empty"
        " answer and scenario 2 takes any."
    )
    return [
        Section("roles", "Agents and roles", note, tuple(charts), tables=(_table(scored, actions),))
    ]


def _said(name: str) -> str:
    return name.replace("_", " ")


def _agent(action: ActionResults) -> float | None:
    return action.agent_ap


def _role(role: str, scenario: str) -> Pick:
    return lambda action: action.roles.get(role, {}).get(scenario)


def _rows(scored: list[Contestant], wanted: list[tuple[str, str, Pick]]) -> list[Action]:
    """Rows of a chart by the first contestant's AP; those nobody has a number of are left out."""
    rows = [
        Action(title, False, tuple(one.vcoco_ap(action, pick) for one in scored))
        for title, action, pick in wanted
    ]
    rows = [row for row in rows if any(value is not None for value in row.values)]
    return sorted(rows, key=lambda row: -(row.values[0] or 0.0))


def _table(scored: list[Contestant], actions: list[str]) -> Table:
    rows = []
    for one in scored:
        for action in actions:
            agent = percent(one.vcoco_ap(action, _agent))
            for place, role in enumerate(one.vcoco_roles(action) or [""]):
                values = [percent(one.vcoco_ap(action, _role(role, key))) for key in SCENARIO_KEYS]
                first = (one.title, _said(action), "" if place else agent)
                rows.append((*first, role, *(values if role else ["", ""])))
    head = ("", "action", "agent AP", "role", "role AP, scenario 1", "role AP, scenario 2")
    return Table("V-COCO's AP of every action, in %", head, tuple(rows))
